"""The ledger: receipts in their accounts' chains, and the two books (energy and money) that they are entered in.

No Ray, no asyncio; one thread calls it. `receipts.ledger_writer` gathers concurrent settlements into its commits.
"""

import base64
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, insert, select, update

from metering.settlement import Settlement
from metering.statements import SignedStatement
from receipts.document import AccountName, signed_bytes
from receipts.draft import RequestContext, draft_receipt
from receipts.errors import InvalidDocument, LedgerError, SettlementRefused
from receipts.ledger_database import LedgerDatabase
from receipts.ledger_schema import (
    MICROJOULES,
    USD_PICOS,
    accounts,
    api_keys,
    entries,
    failed_attempts,
    receipts,
)
from receipts.stored_receipt import StoredReceipt

OPENING_CREDIT_USD_PICOS: Final = 5 * 10**12
API_KEY_PREFIX: Final = "jc_LIVE_"
_API_KEY_BYTES: Final = 32
_ACCOUNT_NAME: Final[TypeAdapter[str]] = TypeAdapter(AccountName)
# Sums of int64 amounts can pass 2^63, where SQLite raises and others round: the halves of each amount are summed.
_HALF: Final = 10**9

_METER: Final = "meter"
_OVERHEAD: Final = "overhead"
_REVENUE: Final = "revenue"
_OPENING_CREDITS: Final = "opening-credits"

_STORED: Final = (
    receipts.c.receipt_id,
    receipts.c.account,
    receipts.c.seq,
    receipts.c.signed_bytes,
    receipts.c.signature,
    receipts.c.statement,
    receipts.c.statement_signature,
)


class Ledger:
    """The accounts, their keys, their receipts and what they were charged.

    Every method is one transaction, durable when it returns. Each may raise `LedgerUnavailable` (nothing was
    stored, call again) and `LedgerUnusable`.
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
            LedgerInUse: another process has this SQLite file open as its writer.
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
            LedgerError: the account's name is not allowed.
        """
        try:
            _ACCOUNT_NAME.validate_python(account, strict=True)
        except ValidationError as error:
            raise LedgerError(
                f"an account's name is 1 to 128 letters, digits and . _ @ - and begins with none of these: {account!r}"
            ) from error
        secret = base64.urlsafe_b64encode(self._random_bytes(_API_KEY_BYTES)).rstrip(b"=").decode("ascii")
        key = API_KEY_PREFIX + secret
        now_ns = self._wall_clock_ns()
        with self._database.transaction() as connection:
            if connection.scalar(select(accounts.c.account).where(accounts.c.account == account)) is None:
                _open_account(connection, account, now_ns)
            row = {"sha256": _key_hash(key), "account": account, "name": name, "created_unix_ns": now_ns}
            connection.execute(insert(api_keys), row)
        return key

    def account_of(self, api_key: str) -> str | None:
        """The account that the key opens; None when it opens none, or was revoked."""
        query = select(api_keys.c.account).where(
            api_keys.c.sha256 == _key_hash(api_key), api_keys.c.revoked_unix_ns.is_(None)
        )
        with self._database.transaction() as connection:
            account: str | None = connection.scalar(query)
        return account

    def has_keys(self) -> bool:
        """Whether any API key was ever made."""
        with self._database.transaction() as connection:
            return connection.scalar(select(api_keys.c.sha256).limit(1)) is not None

    def balance_usd_picos(self, account: str) -> int:
        """What the account has left, in pico-USD; negative when it owes. An unknown account has 0."""
        mine = and_(entries.c.book_account == _customer(account), entries.c.unit == USD_PICOS)
        with self._database.transaction() as connection:
            return _exact_sum(connection, mine)

    def settle(self, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        """Store the receipts of these settlements and enter their charges, all in one commit; in their order.

        A request that has its receipt gets the same one again, whatever the settlement says now. A failed attempt
        makes none: its energy is entered as the mesh's overhead, once, and the request may be settled later.

        Without its meter's statement (from the journal of a meter that didn't sign yet) no receipt is made: it could
        never be signed, and its account would wait for ever.

        Raises:
            SettlementRefused: names one settlement that cannot be stored; nothing was.
        """
        contexts = [_context_of(each) for each in settlements]
        with self._database.transaction() as connection:
            commit = _Commit.prepare(
                connection, contexts, settlements, now_ns=self._wall_clock_ns(), key_id=self._key_id
            )
            outcomes = [commit.settle(*each) for each in zip(contexts, settlements, strict=True)]
            commit.write(connection)
        return outcomes

    def receipt(self, receipt_id: str, account: str) -> StoredReceipt | None:
        """A receipt of this account; None also when it is another's."""
        return self._first(receipts.c.receipt_id == receipt_id, receipts.c.account == account)

    def receipt_at(self, account: str, seq: int) -> StoredReceipt | None:
        """The receipt at a place in the account's chain."""
        return self._first(receipts.c.account == account, receipts.c.seq == seq)

    def unsigned(self, limit: int, *, excluding: Collection[str] = ()) -> list[StoredReceipt]:
        """Receipts without a signature, in the order of storing, which in each account is that of ``seq``.

        Those of the accounts in ``excluding`` are left out.
        """
        query = (
            select(*_STORED)
            .where(receipts.c.signature.is_(None), receipts.c.account.not_in(excluding))
            .order_by(receipts.c.position)
            .limit(limit)
        )
        with self._database.transaction() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def unsigned_count(self) -> int:
        """How many receipts wait for their signature."""
        query = select(func.count()).select_from(receipts).where(receipts.c.signature.is_(None))
        with self._database.transaction() as connection:
            return int(connection.scalar(query) or 0)

    def attach_signatures(self, signatures: Mapping[str, bytes]) -> None:
        """Store signatures (64 bytes, already verified) by receipt id; a receipt that has one keeps it."""
        statement = (
            update(receipts)
            .where(receipts.c.receipt_id == bindparam("of_receipt"), receipts.c.signature.is_(None))
            .values(signature=bindparam("new_signature"))
        )
        rows = [{"of_receipt": each, "new_signature": signatures[each]} for each in signatures]
        if rows:
            with self._database.transaction() as connection:
                connection.execute(statement, rows)

    def _first(self, *conditions: ColumnElement[bool]) -> StoredReceipt | None:
        with self._database.transaction() as connection:
            row = connection.execute(select(*_STORED).where(*conditions)).first()
        return None if row is None else _stored(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The end of an account's chain; a new account has seq 0 and no hash."""

    seq: int
    sha256: bytes | None


class _Commit:
    """What one transaction stores: gathered per settlement, written table by table."""

    def __init__(
        self,
        *,
        now_ns: int,
        key_id: str,
        heads: dict[str, _Head],
        stored: dict[str, StoredReceipt],
        failures: set[bytes],
    ) -> None:
        self._now_ns = now_ns
        self._key_id = key_id
        self._heads = heads
        self._stored = stored
        self._failures = failures
        self._receipt_rows: list[dict[str, object]] = []
        self._failure_rows: list[dict[str, object]] = []
        self._entry_rows: list[dict[str, object]] = []

    @classmethod
    def prepare(
        cls,
        connection: Connection,
        contexts: Sequence[RequestContext],
        settlements: Sequence[Settlement],
        *,
        now_ns: int,
        key_id: str,
    ) -> Self:
        """Read what is already there for these settlements: a query per table, not per settlement."""
        ids = [_receipt_id(each) for each in settlements]
        found = connection.execute(select(*_STORED).where(receipts.c.receipt_id.in_(ids)))
        failed = [_settlement_hash(each) for each in settlements if each.outcome == "failed"]
        booked = failed_attempts.c.settlement_sha256
        return cls(
            now_ns=now_ns,
            key_id=key_id,
            heads=_heads(connection, {each.account for each in contexts}),
            stored={row.receipt_id: _stored(row) for row in found},
            failures=set(connection.scalars(select(booked).where(booked.in_(failed)))) if failed else set(),
        )

    def settle(self, context: RequestContext, settlement: Settlement) -> StoredReceipt | None:
        """Take one settlement in."""
        if context.account not in self._heads:
            raise SettlementRefused(settlement.request_id, f"there is no account {context.account!r}")
        stored = self._stored.get(_receipt_id(settlement))
        if stored is not None and stored.account != context.account:
            raise SettlementRefused(settlement.request_id, "another account has a receipt of that id")
        if settlement.outcome == "failed":
            self._add_failure(context, settlement)
            return stored
        return stored or self._add_receipt(context, settlement)

    def write(self, connection: Connection) -> None:
        """Insert all that was taken in."""
        for table, rows in (
            (receipts, self._receipt_rows),
            (failed_attempts, self._failure_rows),
            (entries, self._entry_rows),
        ):
            if rows:
                connection.execute(insert(table), rows)

    def _add_receipt(self, context: RequestContext, settlement: Settlement) -> StoredReceipt:
        statement = settlement.statement
        if statement is None:
            raise SettlementRefused(
                settlement.request_id, "it comes without a statement of its meter, and its receipt could not be signed"
            )
        head = self._heads[context.account]
        receipt = draft_receipt(
            context,
            settlement,
            key_id=self._key_id,
            seq=head.seq + 1,
            prev_sha256=None if head.sha256 is None else head.sha256.hex(),
        )
        signed = signed_bytes(receipt)
        digest = hashlib.sha256(signed).digest()
        stored = StoredReceipt(
            receipt_id=context.receipt_id,
            account=context.account,
            seq=head.seq + 1,
            signed_bytes=signed,
            signature=None,
            statement=statement,
        )
        self._stored[stored.receipt_id] = stored
        self._heads[stored.account] = _Head(seq=stored.seq, sha256=digest)
        self._receipt_rows.append(
            {
                "receipt_id": stored.receipt_id,
                "account": stored.account,
                "request_id": settlement.request_id,
                "seq": stored.seq,
                "signed_bytes": signed,
                "signed_sha256": digest,
                "created_unix_ns": self._now_ns,
                "statement": statement.statement,
                "statement_signature": statement.signature,
            }
        )
        customer = _customer(stored.account)
        self._enter(stored.receipt_id, MICROJOULES, _METER, customer, settlement.energy.total_microjoules or 0)
        self._enter(stored.receipt_id, USD_PICOS, customer, _REVENUE, receipt.price.usd_picos)
        return stored

    def _add_failure(self, context: RequestContext, settlement: Settlement) -> None:
        digest = _settlement_hash(settlement)
        if digest in self._failures:
            return
        self._failures.add(digest)
        energy_microjoules = settlement.energy.total_microjoules
        statement = settlement.statement
        self._failure_rows.append(
            {
                "settlement_sha256": digest,
                "account": context.account,
                "request_id": settlement.request_id,
                "energy_microjoules": energy_microjoules,
                "created_unix_ns": self._now_ns,
                "statement": statement and statement.statement,
                "statement_signature": statement and statement.signature,
            }
        )
        self._enter(f"failed:{digest.hex()}", MICROJOULES, _METER, _OVERHEAD, energy_microjoules or 0)

    def _enter(self, transaction_id: str, unit: str, giver: str, taker: str, amount: int) -> None:
        self._entry_rows.extend(_transfer(transaction_id, unit, giver, taker, amount, self._now_ns))


def _open_account(connection: Connection, account: str, now_ns: int) -> None:
    connection.execute(insert(accounts), {"account": account, "created_unix_ns": now_ns})
    credit = _transfer(
        f"opening:{account}", USD_PICOS, _OPENING_CREDITS, _customer(account), OPENING_CREDIT_USD_PICOS, now_ns
    )
    connection.execute(insert(entries), credit)


def _transfer(
    transaction_id: str, unit: str, giver: str, taker: str, amount: int, now_ns: int
) -> list[dict[str, object]]:
    """The two entries of a transfer, which sum to zero; of nothing there are none."""
    sides = ((giver, -amount), (taker, amount)) if amount else ()
    return [
        {
            "transaction_id": transaction_id,
            "unit": unit,
            "book_account": book_account,
            "amount": signed_amount,
            "created_unix_ns": now_ns,
        }
        for book_account, signed_amount in sides
    ]


def _context_of(settlement: Settlement) -> RequestContext:
    try:
        return RequestContext.from_json(settlement.context)
    except InvalidDocument as error:
        raise SettlementRefused(settlement.request_id, str(error)) from error


def _heads(connection: Connection, names: Iterable[str]) -> dict[str, _Head]:
    """The heads of those of the accounts that exist."""
    later = receipts.alias()
    # As a subquery per account, the largest seq is one look into the index; grouped, it would be a scan of the chain.
    last_seq = select(func.max(later.c.seq)).where(later.c.account == accounts.c.account).scalar_subquery()
    last = and_(receipts.c.account == accounts.c.account, receipts.c.seq == last_seq)
    query = (
        select(accounts.c.account, receipts.c.seq, receipts.c.signed_sha256)
        .select_from(accounts.outerjoin(receipts, last))
        .where(accounts.c.account.in_(names))
    )
    return {row.account: _Head(seq=row.seq or 0, sha256=row.signed_sha256) for row in connection.execute(query)}


def _exact_sum(connection: Connection, condition: ColumnElement[bool]) -> int:
    high = func.sum(entries.c.amount // _HALF)
    low = func.sum(entries.c.amount % _HALF)
    row = connection.execute(select(high, low).where(condition)).one()
    return int(row[0] or 0) * _HALF + int(row[1] or 0)


def _customer(account: str) -> str:
    return f"customer:{account}"


def _key_hash(api_key: str) -> bytes:
    """Plain SHA-256 is enough: the key has 256 random bits, there is nothing to guess."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).digest()


def _receipt_id(settlement: Settlement) -> str:
    return f"rcpt_{settlement.request_id}"


def _settlement_hash(settlement: Settlement) -> bytes:
    return hashlib.sha256(settlement.to_json()).digest()


def _stored(row: "Row[*tuple[Any, ...]]") -> StoredReceipt:
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
