"""A ledger opened for a test, and a look into its tables."""

import os
from collections.abc import Callable

from sqlalchemy import func, select

from metering.settlement import Settlement
from receipts.ledger import Ledger
from receipts.ledger_schema import entries
from receipts.stored_receipt import StoredReceipt

KEY_ID = "0123456789abcdef"
NOW_NS = 1_782_219_900_000_000_000
CHARGE_USD_PICOS = 43_056
"""What a settlement of the tests costs."""


def opened(url: str, key_id: str = KEY_ID, wall_clock_ns: Callable[[], int] = lambda: NOW_NS) -> Ledger:
    """Its clock stands unless another is given."""
    return Ledger.open(url, wall_clock_ns=wall_clock_ns, random_bytes=os.urandom, key_id=key_id)


def rows(ledger: Ledger, *what) -> list[tuple]:
    with ledger._database.transaction() as connection:
        return [tuple(row) for row in connection.execute(select(*what))]


def imbalance(ledger: Ledger) -> list[tuple]:
    """Transactions that do not sum to zero."""
    sums = select(entries.c.transaction_id, entries.c.unit).group_by(entries.c.transaction_id, entries.c.unit)
    with ledger._database.transaction() as connection:
        return [tuple(row) for row in connection.execute(sums.having(func.sum(entries.c.amount) != 0))]


def book(ledger: Ledger, unit: str) -> dict[str, int]:
    """The balance of every account of one book."""
    balances: dict[str, int] = {}
    for account, its_unit, amount in rows(ledger, entries.c.book_account, entries.c.unit, entries.c.amount):
        if its_unit == unit:
            balances[account] = balances.get(account, 0) + amount
    return balances


def settle(ledger: Ledger, *settlements: Settlement) -> list[StoredReceipt]:
    stored = ledger.settle(settlements)
    assert all(isinstance(each, StoredReceipt) for each in stored)
    return [each for each in stored if each is not None]
