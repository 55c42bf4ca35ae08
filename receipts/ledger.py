"""The ledger: receipts in their accounts' chains, and the two books (energy and money) that they are entered in.

No Ray, no asyncio; one thread calls it. `receipts.ledger_writer` gathers concurrent settlements into its commits.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Self

from sqlalchemy import ColumnElement, bindparam, select, update

from metering.settlement import Settlement
from receipts.ledger_accounts import OPENING_CREDIT_USD_PICOS, LedgerAccounts
from receipts.ledger_books import reversal_id, reverse
from receipts.ledger_chains import ExaminedHeads
from receipts.ledger_commit import SettlementCommit, context_of
from receipts.ledger_database import LedgerDatabase
from receipts.ledger_rows import STORED, stored_receipt
from receipts.ledger_schema import receipts
from receipts.stored_receipt import StoredReceipt

__all__ = ["OPENING_CREDIT_USD_PICOS", "Ledger"]

_RECEIPT_ID: Final = re.compile(r"rcpt_[0-9a-f]{32}")


class Ledger(LedgerAccounts):
    """The accounts, their keys, their receipts and what they were charged.

    Every method is one transaction, durable when it returns. Each may raise `LedgerUnavailable` (nothing was
    stored, call again), `LedgerUnusable`, and where a server's connection had been lost, `LedgerInUse`. One that is
    lost in the commit itself may have stored all of it: what is settled again then gets the same receipt.
    """

    def __init__(
        self,
        database: LedgerDatabase,
        *,
        wall_clock_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        key_id: str,
    ) -> None:
        super().__init__(database, wall_clock_ns=wall_clock_ns, random_bytes=random_bytes)
        self._key_id = key_id
        self._examined = ExaminedHeads()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        wall_clock_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        key_id: str,
    ) -> Self:
        """Open the ledger at an SQLAlchemy URL as its only writer; an empty database becomes a ledger.

        One that an earlier version has written is brought up to date first, all or nothing.

        ``key_id`` names the group key that new receipts are to be signed with.

        Raises:
            LedgerInUse: another process writes to this ledger.
        """
        database = LedgerDatabase.open(url)
        return cls(database, wall_clock_ns=wall_clock_ns, random_bytes=random_bytes, key_id=key_id)

    def reverse(self, transaction_id: str, reason: str) -> str:
        """Undo a transaction by another with the opposite entries, in both books; what was entered stays.

        A receipt's transaction has its receipt's id. The receipt itself stays as it is, and in its chain.
        Gives the new transaction's id.

        Raises:
            LedgerError: there is no such transaction, it is reversed already, or the reason is no line of text.
        """
        with self._transaction() as connection:
            undone = reverse(connection, transaction_id, reason, self._wall_clock_ns())
        self._balances.entered(undone)
        return reversal_id(transaction_id)

    def settle(self, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        """Store the receipts of these settlements and enter their charges, all in one commit; in their order.

        A request that has its receipt gets the same one again. A failed attempt makes none: its energy is entered as
        the mesh's overhead, once, and the request may be settled later. So is that of another attempt at a request
        that has its receipt, known by another statement of a meter.

        Without its meter's statement (from the journal of a meter that didn't sign yet) no receipt is made: it could
        never be signed, and its account would wait for ever. Nor is one on a chain whose last receipt is damaged.

        Raises:
            SettlementRefused: names one settlement that cannot be stored; nothing was.
        """
        contexts = [context_of(each) for each in settlements]
        with self._transaction() as connection:
            commit = SettlementCommit.prepare(
                connection,
                settlements,
                contexts,
                self._examined,
                now_ns=self._wall_clock_ns(),
                key_id=self._key_id,
            )
            outcomes = [commit.settle(*each) for each in zip(contexts, settlements, strict=True)]
            commit.write(connection)
        self._examined.committed(commit.heads)
        self._budgets.committed(commit.receipt_rows)
        self._balances.entered(commit.entry_rows)
        return outcomes

    def receipt(self, receipt_id: str, account: str) -> StoredReceipt | None:
        """A receipt of this account; None also when it is another's."""
        if not _RECEIPT_ID.fullmatch(receipt_id):  # what anybody asks for; not every text can be put to a database
            return None
        return self._first(receipts.c.receipt_id == receipt_id, receipts.c.account == account)

    def receipt_at(self, account: str, seq: int) -> StoredReceipt | None:
        """The receipt at a place in the account's chain."""
        return self._first(receipts.c.account == account, receipts.c.seq == seq)

    def unsigned(self, limit: int, *, excluding: Collection[str] = ()) -> list[StoredReceipt]:
        """Receipts without a signature, in the order of storing, which in each account is that of ``seq``.

        Those of the accounts in ``excluding`` are left out.

        Raises:
            DamagedReceipt: one of them cannot be read; with its account left out the others can.
        """
        query = (
            select(*STORED)
            .where(receipts.c.signature.is_(None), receipts.c.account.not_in(excluding))
            .order_by(receipts.c.position)
            .limit(limit)
        )
        with self._transaction() as connection:
            # Left out here too: where it is the account's name that is damaged, the query does not find it.
            return [stored_receipt(row) for row in connection.execute(query) if str(row.account) not in excluding]

    def waiting(self) -> dict[str, int]:
        """The receipts without a signature: by id, when each was stored; in the order of storing."""
        query = (
            select(receipts.c.receipt_id, receipts.c.created_unix_ns)
            .where(receipts.c.signature.is_(None))
            .order_by(receipts.c.position)
        )
        with self._transaction() as connection:
            return {row.receipt_id: row.created_unix_ns for row in connection.execute(query)}

    def attach_signatures(self, signatures: Mapping[str, bytes]) -> None:
        """Store signatures (64 bytes, already verified) by receipt id; a receipt that has one keeps it."""
        statement = (
            update(receipts)
            .where(receipts.c.receipt_id == bindparam("of_receipt"), receipts.c.signature.is_(None))
            .values(signature=bindparam("new_signature"))
        )
        rows = [{"of_receipt": each, "new_signature": signatures[each]} for each in signatures]
        if rows:
            with self._transaction() as connection:
                connection.execute(statement, rows)

    def _first(self, *conditions: ColumnElement[bool]) -> StoredReceipt | None:
        with self._transaction() as connection:
            row = connection.execute(select(*STORED).where(*conditions)).first()
        return None if row is None else stored_receipt(row)
