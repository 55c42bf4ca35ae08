"""The ledger: receipts in their accounts' chains, and the two books (energy and money) that they are entered in.

No Ray, no asyncio; one thread calls it. `receipts.ledger_writer` gathers concurrent settlements into its commits.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Final, Self

from pydantic import StringConstraints, TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Connection, bindparam, insert, select, update

from metering.settlement import Settlement
from receipts.errors import DamagedReceipt, LedgerError, SettlementRefused
from receipts.ledger_books import (
    OPENING_CREDITS,
    EntryRow,
    KnownBalances,
    balance,
    reversal_id,
    reverse,
    transfer,
)
from receipts.ledger_chains import ExaminedHeads
from receipts.ledger_commit import SettlementCommit, context_of
from receipts.ledger_database import LedgerDatabase
from receipts.ledger_rows import STORED, customer_book, stored_receipt
from receipts.ledger_schema import USD_PICOS, accounts, api_keys, entries, receipts
from receipts.members import AccountName
from receipts.stored_receipt import StoredReceipt

OPENING_CREDIT_USD_PICOS: Final = 5 * 10**12
API_KEY_PREFIX: Final = "jc_LIVE_"
_API_KEY_BYTES: Final = 32
_ACCOUNT_NAME: Final[TypeAdapter[str]] = TypeAdapter(AccountName)
_KEY_NAME: Final[TypeAdapter[str]] = TypeAdapter(
    Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
)
_RECEIPT_ID: Final = re.compile(r"rcpt_[0-9a-f]{32}")


class Ledger:
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
        self._database = database
        self._wall_clock_ns = wall_clock_ns
        self._random_bytes = random_bytes
        self._key_id = key_id
        self._balances = KnownBalances()
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

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def create_key(self, account: str, name: str) -> str:
        """Make an API key; only its hash is kept, so this is the one time that it is seen.

        An account that does not exist is made, with the opening credit of $5.

        Raises:
            LedgerError: the account's or the key's name is not allowed.
        """
        try:
            _ACCOUNT_NAME.validate_python(account, strict=True)
        except ValidationError as error:
            raise LedgerError(
                f"an account's name is 1 to 128 letters, digits and . _ @ - and begins with none of these: {account!r}"
            ) from error
        try:
            _KEY_NAME.validate_python(name, strict=True)
        except ValidationError as error:
            raise LedgerError("a key's name is a line of at most 256 characters") from error
        secret = base64.urlsafe_b64encode(self._random_bytes(_API_KEY_BYTES)).rstrip(b"=").decode("ascii")
        key = API_KEY_PREFIX + secret
        now_ns = self._wall_clock_ns()
        credit: list[EntryRow] = []
        with self._transaction() as connection:
            if connection.scalar(select(accounts.c.account).where(accounts.c.account == account)) is None:
                credit = _open_account(connection, account, now_ns)
            row = {"sha256": _key_hash(key), "account": account, "name": name, "created_unix_ns": now_ns}
            connection.execute(insert(api_keys), row)
        self._balances.entered(credit)
        return key

    def account_of(self, api_key: str) -> str | None:
        """The account that the key opens; None when it opens none, or was revoked."""
        query = select(api_keys.c.account).where(
            api_keys.c.sha256 == _key_hash(api_key), api_keys.c.revoked_unix_ns.is_(None)
        )
        with self._transaction() as connection:
            account: str | None = connection.scalar(query)
        return account

    def has_keys(self) -> bool:
        """Whether any API key was ever made."""
        with self._transaction() as connection:
            return connection.scalar(select(api_keys.c.sha256).limit(1)) is not None

    def balance_usd_picos(self, account: str) -> int:
        """What the account has left, in pico-USD; negative when it owes. An unknown account has 0.

        It adds up all entries of the account: 0.2 s for a million receipts, in which nothing else is written. It
        is remembered until the database fails.
        """
        with self._transaction() as connection:
            left = balance(connection, customer_book(account), USD_PICOS)
        self._balances.set(account, left)
        return left

    def cached_balance_usd_picos(self, account: str) -> int | None:
        """The same without I/O, from any thread; None until it was read once, and again when the database failed."""
        return self._balances.of(account)

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
                {each.account for each in contexts},
                self._examined,
                now_ns=self._wall_clock_ns(),
                key_id=self._key_id,
            )
            outcomes = [commit.settle(*each) for each in zip(contexts, settlements, strict=True)]
            commit.write(connection)
        self._examined.committed(commit.heads)
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

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """When the database fails the balances are read anew: what was stored, and by whom, is not certain then."""
        try:
            with self._database.transaction() as connection:
                yield connection
        except BaseException as error:
            # Those are this program's own, and nothing was stored.
            if type(error) not in (SettlementRefused, DamagedReceipt, LedgerError):
                self._balances.forget()
            raise

    def _first(self, *conditions: ColumnElement[bool]) -> StoredReceipt | None:
        with self._transaction() as connection:
            row = connection.execute(select(*STORED).where(*conditions)).first()
        return None if row is None else stored_receipt(row)


def _open_account(connection: Connection, account: str, now_ns: int) -> list[EntryRow]:
    connection.execute(insert(accounts), {"account": account, "created_unix_ns": now_ns})
    credit = transfer(
        f"opening:{account}", USD_PICOS, OPENING_CREDITS, customer_book(account), OPENING_CREDIT_USD_PICOS, now_ns
    )
    connection.execute(insert(entries), credit)
    return credit


def _key_hash(api_key: str) -> bytes:
    """Plain SHA-256 is enough: the key has 256 random bits, there is nothing to guess."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).digest()
