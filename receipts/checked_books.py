"""What the books have of a transaction, and what they must have."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, select

from receipts.arithmetic import microjoules
from receipts.checked_rows import ColumnTypes
from receipts.document import Receipt
from receipts.errors import InvalidDocument
from receipts.ledger_books import METER, REVENUE
from receipts.ledger_payments import is_payment_id
from receipts.ledger_rows import customer_book
from receipts.ledger_schema import (
    MICROJOULES,
    USD_PICOS,
    accounts,
    entries,
    failed_attempts,
    payments,
    receipts,
    reversals,
)

OPENING: Final = "opening:"
_FAILED: Final = "failed:"
_AT_ONCE: Final = 500
# More than any transaction has; what is beyond them makes nothing right again.
_MOST_ENTRIES: Final = 8
_ENTRY: Final = (entries.c.transaction_id, entries.c.unit, entries.c.book_account, entries.c.amount)
_ENTRY_TYPES: Final = ColumnTypes(*_ENTRY, entries.c.created_unix_ns)

Entry = tuple[str, str, int, int]
"""Unit, book account, amount, and when it was entered, in ns since 1970."""


def booked(connection: Connection, names: Collection[str]) -> Mapping[str, Sequence[Entry]]:
    """The sorted entries of each of these transactions; without those whose columns have other types."""
    found: dict[str, list[Entry]] = {}
    query = select(*_ENTRY, entries.c.created_unix_ns).where(entries.c.transaction_id.in_(names))
    for row in connection.execute(query.execution_options(yield_per=_AT_ONCE)):
        _, faults = _ENTRY_TYPES.checked(row)
        its_entries = found.setdefault(row.transaction_id, [])
        if not faults and len(its_entries) < _MOST_ENTRIES:
            its_entries.append((row.unit, row.book_account, row.amount, row.created_unix_ns))
    return {name: sorted(its_entries) for name, its_entries in found.items()}


def transferred(unit: str, giver: str, taker: str, amount: int, created_unix_ns: int) -> list[Entry]:
    """The sorted entries of a transfer."""
    sides = [(unit, giver, -amount, created_unix_ns), (unit, taker, amount, created_unix_ns)]
    return sorted(sides) if amount else []


def charged(document: Receipt, created_unix_ns: int) -> list[Entry]:
    """The sorted entries of a receipt."""
    payer = customer_book(document.workload.account)
    energy = transferred(MICROJOULES, METER, payer, billed_microjoules(document) or 0, created_unix_ns)
    return sorted([*energy, *transferred(USD_PICOS, payer, REVENUE, document.price.usd_picos, created_unix_ns)])


def undone(its_entries: Sequence[Entry], created_unix_ns: int) -> list[Entry]:
    """The sorted entries of the reversal of a transaction that has these."""
    return sorted((unit, book_account, -amount, created_unix_ns) for unit, book_account, amount, _ in its_entries)


def difference(found: Sequence[Entry], expected: Sequence[Entry]) -> str | None:
    """In which words the books differ from what they must have; None when they don't."""
    if list(found) == list(expected):
        return None
    if [each[:3] for each in found] == [each[:3] for each in expected]:
        times = " and ".join(sorted({str(each[3]) for each in found}))
        return f"the books have it at {times} ns, and it is of {expected[0][3]} ns"
    return f"the books have {_written(found)}, and it says {_written(expected)}"


def billed_microjoules(document: Receipt) -> int | None:
    """None too for a figure that is no whole number of them, which is a finding of its own."""
    total = document.energy.total_joules
    try:
        return None if total is None else microjoules(total, "energy.total_joules")
    except InvalidDocument:
        return None


def failures_name(settlement_sha256: bytes) -> str:
    """The transaction of an attempt that failed."""
    return f"{_FAILED}{settlement_sha256.hex()}"


def known_transactions(connection: Connection, names: Collection[str]) -> set[str]:
    """Those of the transactions that are about something in the ledger, by what each kind's name says."""
    known: set[str] = set()
    for prefix, column, key in (
        ("rcpt_", receipts.c.receipt_id, str),
        (OPENING, accounts.c.account, lambda name: name.removeprefix(OPENING)),
        ("reversal:", reversals.c.transaction_id, str),
        (_FAILED, failed_attempts.c.settlement_sha256, _failures_hash),
    ):
        keys = {key(name): name for name in names if name.startswith(prefix)}
        keys.pop(None, None)
        if keys:
            found = connection.scalars(select(column).where(column.in_(list(keys))))
            known |= {keys[each] for each in found}
    paid = [name for name in names if is_payment_id(name)]
    if paid:
        known |= set(connection.scalars(select(payments.c.payment_id).where(payments.c.payment_id.in_(paid))))
    return known


def _failures_hash(name: str) -> bytes | None:
    """None for any spelling but the one: another would be a second transaction of the same attempt."""
    try:
        settlement_sha256 = bytes.fromhex(name.removeprefix(_FAILED))
    except ValueError:
        return None
    return settlement_sha256 if failures_name(settlement_sha256) == name else None


def _written(its_entries: Sequence[Entry]) -> str:
    return "; ".join(f"{amount} {unit} of {account}" for unit, account, amount, _ in its_entries) or "nothing"
