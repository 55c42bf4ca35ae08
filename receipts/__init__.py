"""The receipts room: signed evidence of what ran, and the ledger made of it. The bill is the receipts.

The document and its canonical bytes, the arithmetic that anyone can repeat, the FROST signer group, the ledger
with its per-account chain, and verification. `receipts.verify` and what it imports run on the base install: no
Ray, no database, nothing of the meter. Only the ledger actor and the signer actors may import Ray.

May import `metering` for settlements, never `serve` or `mesh`. Time and randomness are passed in; nothing here
reads settings or the environment, and nothing ever sees a prompt.
"""
