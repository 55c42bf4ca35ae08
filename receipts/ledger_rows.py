"""What the ledger's rows mean to those who write and to those who read them."""

from typing import Any, Final

from sqlalchemy import Row

from metering.statements import SignedStatement
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
    """The receipt in a row that has the columns `STORED`."""
    statement = None
    if row.statement is not None:
        statement = SignedStatement(statement=row.statement, signature=row.statement_signature)
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
