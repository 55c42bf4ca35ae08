"""A receipt as the ledger holds it."""

from dataclasses import dataclass

from metering.statements import SignedStatement
from receipts.document import with_signature


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReceipt:
    """Durably stored; ``signature`` (64 bytes) is None while the group has not signed it yet.

    ``statement`` is the meter's word for its energy, which the signers examine; None when the settlement had none.
    """

    receipt_id: str
    account: str
    seq: int
    signed_bytes: bytes
    signature: bytes | None
    statement: SignedStatement | None

    def document_bytes(self) -> bytes:
        """The receipt as it is served: canonical bytes of the whole document, its signature null while pending."""
        return with_signature(self.signed_bytes, self.signature)
