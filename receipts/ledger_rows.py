"""What the ledger's rows mean to those who write and to those who read them."""

from typing import Any, Final

from sqlalchemy import Row

from metering.statements import SignedStatement
from receipts.errors import DamagedReceipt
from receipts.ledger_schema import receipts
from receipts.stored_receipt import StoredReceipt

STORED: Final = (
    receipts.c.receipt_id,
    receipts.c.account,
    receipts.c.seq,
    receipts.c.signed_bytes,
    receipts.c.signature,
    receipts.c.statement,
    receipts.c.statement_signature,
)
"""The columns that make a `StoredReceipt`."""


def stored_receipt(row: "Row[*tuple[Any, ...]]") -> StoredReceipt:
    """The receipt in a row that has the columns `STORED`.

    Raises:
        DamagedReceipt: a column of it is of another type, or no text; SQLite takes that for it.
    """
    texts = [row.receipt_id, row.account]
    statement = None
    if row.statement is not None:
        texts += [row.statement, row.statement_signature]
        statement = SignedStatement(statement=row.statement, signature=row.statement_signature)
    is_sound = (
        isinstance(row.seq, int)
        and isinstance(row.signed_bytes, bytes)
        and isinstance(row.signature, bytes | None)
        and all(isinstance(each, str) and "\N{REPLACEMENT CHARACTER}" not in each for each in texts)
    )
    if not is_sound:
        raise DamagedReceipt(str(row.account), row.seq)
    return StoredReceipt(
        receipt_id=row.receipt_id,
        account=row.account,
        seq=row.seq,
        signed_bytes=row.signed_bytes,
        signature=row.signature,
        statement=statement,
    )


def customer_book(account: str) -> str:
    """The book account of a customer's account."""
    return f"customer:{account}"
