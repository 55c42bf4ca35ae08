"""The two books, energy and money: transfers between book accounts, exact sums, and what a correction is."""

import hashlib
from collections.abc import Iterable
from typing import Final, TypedDict

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select

from receipts.errors import LedgerError
from receipts.ledger_rows import customer_book
from receipts.ledger_schema import USD_PICOS, entries, reversals

METER: Final = "meter"
OVERHEAD: Final = "overhead"
REVENUE: Final = "revenue"
OPENING_CREDITS: Final = "opening-credits"
# Sums of int64 amounts can pass 2^63, where SQLite raises and others round: the halves of each amount are summed.
HALF: Final = 10**9
_MOST_ID_CHARACTERS: Final = 160
_MOST_REASON_CHARACTERS: Final = 256


class EntryRow(TypedDict):
    """A row of the table ``entries``."""

    transaction_id: str
    unit: str
    book_account: str
    amount: int
    created_unix_ns: int


def transfer(transaction_id: str, unit: str, giver: str, taker: str, amount: int, now_ns: int) -> list[EntryRow]:
    """The two entries of a transfer, which sum to zero; of nothing there are none."""
    sides = ((giver, -amount), (taker, amount)) if amount else ()
    return [_entry(transaction_id, unit, book_account, signed, now_ns) for book_account, signed in sides]


def balance(connection: Connection, book_account: str, unit: str) -> int:
    """The sum of a book account's entries in one unit."""
    return exact_sum(connection, and_(entries.c.book_account == book_account, entries.c.unit == unit))


def exact_sum(connection: Connection, condition: ColumnElement[bool]) -> int:
    """The sum of all amounts for which ``condition`` holds, however large."""
    return exact_total(connection, entries.c.amount, condition)


def exact_total(connection: Connection, column: ColumnElement[int], condition: ColumnElement[bool]) -> int:
    """The sum of a column of whole numbers where ``condition`` holds, however large; of no rows it is 0."""
    row = connection.execute(select(*halves(column)).where(condition)).one()
    return joined(row[0], row[1])


def halves(column: ColumnElement[int]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """Two sums that make the column's, with `joined`."""
    return func.sum(column // HALF), func.sum(column % HALF)


def joined(high: object, low: object) -> int:
    """The sum of which these are the `halves`, as the database gives them."""
    return int(str(high or 0)) * HALF + int(str(low or 0))


def reversal_id(transaction_id: str) -> str:
    """The transaction that undoes this one: always the same, so that there is one at most."""
    return f"reversal:{hashlib.sha256(transaction_id.encode()).hexdigest()}"


def reverse(connection: Connection, transaction_id: str, reason: str, now_ns: int) -> list[EntryRow]:
    """Enter what undoes a transaction, in both books; gives the new entries.

    Raises:
        LedgerError: there is no such transaction, it is reversed already, or the reason is none.
    """
    if not (reason.strip() and len(reason) <= _MOST_REASON_CHARACTERS and reason.isprintable()):
        raise LedgerError(f"the reason for a reversal is a line of 1 to {_MOST_REASON_CHARACTERS} characters")
    rows: list[EntryRow] = []
    if transaction_id.isascii() and transaction_id.isprintable():  # any other text is no id, nor fit for a database
        undone = reversal_id(transaction_id)
        found = connection.execute(select(entries).where(entries.c.transaction_id == transaction_id))
        rows = [_entry(undone, each.unit, each.book_account, -each.amount, now_ns) for each in found]
    if not rows:
        raise LedgerError(
            f"the books have no transaction {transaction_id[:_MOST_ID_CHARACTERS]!r}; "
            "what a receipt was charged with has the receipt's id"
        )
    if connection.scalar(select(reversals.c.transaction_id).where(reversals.c.reverses == transaction_id)):
        raise LedgerError(f"{transaction_id} is reversed already, by {undone}")
    record = {"transaction_id": undone, "reverses": transaction_id, "reason": reason, "created_unix_ns": now_ns}
    connection.execute(insert(reversals), record)
    connection.execute(insert(entries), rows)
    return rows


class KnownBalances:
    """What customers have left, of those accounts whose balance was read once. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._usd_picos: dict[str, int] = {}

    def of(self, account: str) -> int | None:
        """In pico-USD; None where it is not known."""
        return self._usd_picos.get(customer_book(account))

    def set(self, account: str, usd_picos: int) -> None:
        """As it was just read."""
        self._usd_picos[customer_book(account)] = usd_picos

    def entered(self, rows: Iterable[EntryRow]) -> None:
        """These entries were committed."""
        for row in rows:
            if row["unit"] == USD_PICOS and row["book_account"] in self._usd_picos:
                self._usd_picos[row["book_account"]] += row["amount"]

    def forget(self) -> None:
        """What is in the ledger is not certain."""
        self._usd_picos.clear()


def _entry(transaction_id: str, unit: str, book_account: str, amount: int, now_ns: int) -> EntryRow:
    return EntryRow(
        transaction_id=transaction_id, unit=unit, book_account=book_account, amount=amount, created_unix_ns=now_ns
    )
