"""Reading the ledger beside its writer: receipts by pages, the ends of an account's chain, an account's entries."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, or_, select

from receipts.document import with_signature
from receipts.errors import DamagedReceipt, InvalidDocument, LedgerUnavailable
from receipts.ledger_books import exact_sum
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_payments import payment_kind
from receipts.ledger_rows import STORED, customer_book, stored_receipt
from receipts.ledger_schema import MICROJOULES, USD_PICOS, entries, receipts, reversals
from receipts.ledger_usage import usage
from receipts.line_service import LineService
from receipts.members import MAX_INTEGER
from receipts.receipt_query import ReceiptQuery, ReceiptsPage
from receipts.stored_receipt import StoredReceipt
from receipts.usage import Usage, UsageBy

_OPENING: Final = "opening:"
_LINE: Final = (receipts.c.seq, receipts.c.signed_bytes, receipts.c.signature)
MOST_LOOKED_AT: Final = 10_000
"""Receipts that one page looks at for a model or a region, which no index finds: some ten milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPosition:
    """How far an account's entries have been read, in order of time, and with which balance.

    A reading covers the entries from ``since_unix_ns`` on up to ``last_unix_ns``, which its first page sets to that
    of the newest entry then: what is entered while one reads is not in it.
    """

    since_unix_ns: int = 0
    last_unix_ns: int | None = None
    created_unix_ns: int = -1
    transaction_id: str = ""
    balance_usd_picos: int = 0
    entries_read: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """What one transaction did to an account, and the balance after it.

    ``kind`` is ``receipt``, ``reversal``, ``opening-credit``, a payment's (``top-up``, ``refund``, ``sla-credit``,
    ``goodwill-credit``) or ``other``. The receipt is the one that was charged or
    reversed; None with what is on it where there is none, ``service`` included.
    """

    created_unix_ns: int
    transaction_id: str
    kind: str
    receipt_id: str | None
    model: str | None
    region: str | None
    customer_tag: str | None
    microjoules: int
    usd_picos: int
    balance_usd_picos: int
    service: LineService | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerPage:
    """Transactions in order of time, and the position after them; None when there are no more."""

    lines: tuple[LedgerLine, ...]
    next: LedgerPosition | None


class LedgerReader:
    """Reads beside the writer, without holding it up. Any thread may use it, several at once.

    Each method reads one consistent state, in one short transaction. Each may raise `LedgerUnavailable` and
    `LedgerUnusable`.
    """

    def __init__(self, database: ReadingDatabase, *, most_looked_at: int = MOST_LOOKED_AT) -> None:
        self._database = database
        self._most_looked_at = most_looked_at

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the ledger at an SQLAlchemy URL, which has to be one already."""
        return cls(ReadingDatabase.open(url))

    def close(self) -> None:
        """Close its connections."""
        self._database.close()

    def page_lines(
        self, query: ReceiptQuery, *, after_seq: int, limit: int, newest_first: bool = False
    ) -> ReceiptsPage:
        """At most ``limit`` of the receipts, in order of ``seq``, those after ``after_seq`` in that order.

        ``after_seq`` 0 begins at the order's beginning, which for ``newest_first`` is the chain's end. There may be
        fewer than ``limit``, and none, with more to come: a page looks only so far for a model or a region.
        """
        with self._database.snapshot() as connection:
            query = query if after_seq else _placed(connection, query)
            window, looked_to_seq = query, None
            if query.model is not None or query.region is not None:
                newest_seq = connection.scalar(newest_statement(query.account)) or 0
                window, looked_to_seq = _window(
                    query, after_seq, newest_seq, self._most_looked_at, newest_first=newest_first
                )
            statement = page_statement(window, after_seq=after_seq, limit=limit + 1, newest_first=newest_first)
            # Of the stored columns only these: what is not fetched takes no processor from the commits.
            found = connection.execute(statement.with_only_columns(*_LINE)).all()
        shown = found[:limit]
        return ReceiptsPage(
            lines=b"".join(with_signature(signed, signature) + b"\n" for _, signed, signature in shown),
            next_after_seq=shown[-1][0] if len(found) > limit else looked_to_seq,
            first_seq=query.first_seq,
            last_seq=query.last_seq,
        )

    def first_seq_since(self, account: str, since_unix_ns: int) -> int | None:
        """The smallest ``seq`` of a receipt that ended at ``since_unix_ns`` or after it, signed or not."""
        with self._database.snapshot() as connection:
            seq: int | None = connection.scalar(place_statement(account, since_unix_ns=since_unix_ns))
        return seq

    def bounds(self, account: str, first_seq: int) -> tuple[StoredReceipt, StoredReceipt] | None:
        """The receipt ``first_seq``, and the last one of the signed prefix, which ends before the first unsigned one.

        None when nothing lies between the two. However long the chain is, this takes no longer.
        """
        begin = ReceiptQuery(account=account, first_seq=first_seq)
        with self._database.snapshot() as connection:
            first = connection.execute(page_statement(begin, after_seq=0, limit=1)).first()
            last = connection.execute(last_signed_statement(account)).first()
        if first is None or last is None or first.seq > last.seq:
            return None
        return stored_receipt(first), stored_receipt(last)

    def entries_page(self, account: str, after: LedgerPosition, limit: int) -> LedgerPage:
        """At most ``limit`` transactions of the account, those after a position.

        Raises:
            LedgerUnavailable: the machine's clock went back while this was being read, and an entry made meanwhile
                would be missing. Read from the beginning.
            DamagedReceipt: one that it is about cannot be read.
        """
        with self._database.snapshot() as connection:
            position = after if after.last_unix_ns is not None else _beginning(connection, account, after.since_unix_ns)
            rows = connection.execute(entries_statement(account, position, limit)).all()
            lines = []
            for row in rows:
                balance = position.balance_usd_picos + int(row.usd_picos)
                lines.append(_line(row, balance))
                position = replace(
                    position,
                    created_unix_ns=row.created_unix_ns,
                    transaction_id=row.transaction_id,
                    balance_usd_picos=balance,
                    entries_read=position.entries_read + row.entry_count,
                )
            if len(rows) == limit:
                return LedgerPage(lines=tuple(lines), next=position)
            _check_whole(connection, account, position)
        return LedgerPage(lines=tuple(lines), next=None)

    def usage(
        self, account: str, since_unix_ns: int, until_unix_ns: int, by: UsageBy, workload: str | None = None
    ) -> Usage:
        """What the account used, by group, of requests that ended from ``since_unix_ns`` on and before the other.

        Of one workload, where it is named. A reversed charge stays in it: this is what was used, not what was paid.
        1 to 2 s for a million receipts; longer by region, for which the receipts themselves are read.
        """
        with self._database.snapshot() as connection:
            return usage(connection, account, since_unix_ns, until_unix_ns, by, workload)


def page_statement(query: ReceiptQuery, *, after_seq: int, limit: int, newest_first: bool = False) -> Select[Any]:
    """The query of `LedgerReader.page_lines`: a walk along the account's chain, or along a tag's receipts in it."""
    seq = receipts.c.seq
    wanted = [receipts.c.account == query.account, *_conditions(query)]
    if after_seq:
        wanted.append(seq < after_seq if newest_first else seq > after_seq)
    return select(*STORED).where(*wanted).order_by(seq.desc() if newest_first else seq).limit(limit)


def place_statement(account: str, *, since_unix_ns: int | None = None, until_unix_ns: int | None = None) -> Select[Any]:
    """Where the first receipt that ended since then, or the last one that ended before, stands in the chain.

    Ends ascend with ``seq``, but not strictly, since a settlement may come late: all that ended so are looked at, in
    the index of ends. For the least of the column itself PostgreSQL would go along the chain from its beginning.
    """
    of_account, seq = receipts.c.account == account, receipts.c.seq + 0
    if since_unix_ns is not None:
        return select(func.min(seq)).where(of_account, receipts.c.end_unix_ns >= since_unix_ns)
    return select(func.max(seq)).where(of_account, receipts.c.end_unix_ns < until_unix_ns)


def _placed(connection: Connection, query: ReceiptQuery) -> ReceiptQuery:
    """The query with its bounds in time as bounds in the chain too, so that no walk is longer than it has to be.

    They stay as conditions: between the two places there may be receipts that ended outside.
    """
    first_seq, last_seq = query.first_seq, query.last_seq
    if query.since_unix_ns is not None:
        place = connection.scalar(place_statement(query.account, since_unix_ns=query.since_unix_ns))
        first_seq = max(first_seq or 0, MAX_INTEGER if place is None else place)
    if query.until_unix_ns is not None:
        place = connection.scalar(place_statement(query.account, until_unix_ns=query.until_unix_ns))
        last_seq = min(MAX_INTEGER if last_seq is None else last_seq, place or 0)
    return replace(query, first_seq=first_seq, last_seq=last_seq)


def _conditions(query: ReceiptQuery) -> Iterator[ColumnElement[bool]]:
    """What a receipt must be like, the account apart."""
    if query.model is not None:
        yield receipts.c.model == query.model
    if query.region is not None:
        yield receipts.c.region == query.region
    if query.customer_tag is not None:
        yield receipts.c.customer_tag == query.customer_tag
    if query.since_unix_ns is not None:
        yield receipts.c.end_unix_ns >= query.since_unix_ns
    if query.until_unix_ns is not None:
        yield receipts.c.end_unix_ns < query.until_unix_ns
    if query.first_seq is not None:
        yield receipts.c.seq >= query.first_seq
    if query.last_seq is not None:
        yield receipts.c.seq <= query.last_seq


def newest_statement(account: str) -> Select[Any]:
    """The greatest ``seq`` of the account."""
    return select(func.max(receipts.c.seq)).where(receipts.c.account == account)


def _window(
    query: ReceiptQuery, after_seq: int, newest_seq: int, most: int, *, newest_first: bool
) -> tuple[ReceiptQuery, int | None]:
    """The part of the chain, ``most`` receipts long, that a page after ``after_seq`` looks at.

    With it comes where it ends, for the next page to begin after; None when it reaches the end of what is wanted.
    """
    first_seq = max(query.first_seq or 1, 1)
    last_seq = newest_seq if query.last_seq is None else min(query.last_seq, newest_seq)
    if newest_first:
        begin = min(last_seq, after_seq - 1) if after_seq else last_seq
        end = max(begin - most + 1, first_seq)
        return replace(query, first_seq=end, last_seq=begin), end if end > first_seq else None
    begin = max(first_seq, after_seq + 1)
    end = min(begin + most - 1, last_seq)
    return replace(query, first_seq=begin, last_seq=end), end if end < last_seq else None


def last_signed_statement(account: str) -> Select[Any]:
    """The last receipt before the account's first unsigned one."""
    unsigned = (
        select(receipts.c.seq)
        # Not the column itself, or SQLite looks through all of the account's receipts for one, by some index that has
        # it, instead of through the unsigned ones, which have an index of their own.
        .where(receipts.c.account.concat("") == account, receipts.c.signature.is_(None))
        .order_by(receipts.c.position)
        .limit(1)
        .correlate(None)
        .scalar_subquery()
    )
    is_prefix = receipts.c.seq < func.coalesce(unsigned, MAX_INTEGER)
    return select(*STORED).where(receipts.c.account == account, is_prefix).order_by(receipts.c.seq.desc()).limit(1)


def entries_statement(account: str, position: LedgerPosition, limit: int) -> Select[Any]:
    """The query of `LedgerReader.entries_page`: a transaction a row, with the receipt that it is about."""
    # Of those made at the position's own moment, the ones after it; earlier ones are out of bounds.
    is_after = or_(
        entries.c.created_unix_ns > position.created_unix_ns, entries.c.transaction_id > position.transaction_id
    )
    booked = (
        select(
            entries.c.created_unix_ns,
            entries.c.transaction_id,
            func.count().label("entry_count"),
            _sum_of(MICROJOULES).label("microjoules"),
            _sum_of(USD_PICOS).label("usd_picos"),
        )
        .where(*_within(account, position, max(position.since_unix_ns, position.created_unix_ns)), is_after)
        .group_by(entries.c.created_unix_ns, entries.c.transaction_id)
        .order_by(entries.c.created_unix_ns, entries.c.transaction_id)
        .limit(limit)
        .subquery()
    )
    about = func.coalesce(reversals.c.reverses, booked.c.transaction_id)
    return (
        select(
            *booked.c,
            reversals.c.reverses,
            receipts.c.receipt_id,
            receipts.c.model,
            receipts.c.region,
            receipts.c.customer_tag,
            receipts.c.account,
            receipts.c.seq,
            receipts.c.signed_bytes,
        )
        .select_from(booked)
        .outerjoin(reversals, reversals.c.transaction_id == booked.c.transaction_id)
        .outerjoin(receipts, receipts.c.receipt_id == about)
        .order_by(booked.c.created_unix_ns, booked.c.transaction_id)
    )


def _sum_of(unit: str) -> ColumnElement[int]:
    # One entry per transaction, unit and book account, by the primary key: nothing is added up, nothing overflows.
    return func.sum(case((entries.c.unit == unit, entries.c.amount), else_=0))


def _within(account: str, position: LedgerPosition, from_unix_ns: int) -> tuple[ColumnElement[bool], ...]:
    created = entries.c.created_unix_ns
    return (
        entries.c.book_account == customer_book(account),
        created >= from_unix_ns,
        created <= position.last_unix_ns,
    )


def _beginning(connection: Connection, account: str, since_unix_ns: int) -> LedgerPosition:
    mine = entries.c.book_account == customer_book(account)
    last_unix_ns = connection.scalar(select(func.max(entries.c.created_unix_ns)).where(mine))
    before = and_(mine, entries.c.unit == USD_PICOS, entries.c.created_unix_ns < since_unix_ns)
    brought = exact_sum(connection, before)
    return LedgerPosition(since_unix_ns=since_unix_ns, last_unix_ns=last_unix_ns or 0, balance_usd_picos=brought)


def _check_whole(connection: Connection, account: str, position: LedgerPosition) -> None:
    """Entries come in order of time as long as the clock does not go back; else one may have come in behind us."""
    there = connection.scalar(
        select(func.count()).select_from(entries).where(*_within(account, position, position.since_unix_ns))
    )
    if there != position.entries_read:
        raise LedgerUnavailable(
            "the machine's clock went back while the entries were being read, and one came in between; read them anew"
        )


def _line(row: "Row[*tuple[Any, ...]]", balance_usd_picos: int) -> LedgerLine:
    return LedgerLine(
        created_unix_ns=row.created_unix_ns,
        transaction_id=row.transaction_id,
        kind=_kind(row),
        receipt_id=row.receipt_id,
        model=row.model,
        region=row.region,
        customer_tag=row.customer_tag,
        microjoules=int(row.microjoules),
        usd_picos=int(row.usd_picos),
        balance_usd_picos=balance_usd_picos,
        service=_service(row),
    )


def _service(row: "Row[*tuple[Any, ...]]") -> LineService | None:
    if row.receipt_id is None:
        return None
    try:
        return LineService.of_signed_bytes(row.signed_bytes)
    except InvalidDocument as error:
        raise DamagedReceipt(str(row.account), row.seq) from error


def _kind(row: "Row[*tuple[Any, ...]]") -> str:
    if row.reverses is not None:
        return "reversal"
    if row.receipt_id is not None:
        return "receipt"
    if row.transaction_id.startswith(_OPENING):
        return "opening-credit"
    return payment_kind(row.transaction_id) or "other"
