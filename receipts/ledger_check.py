"""Whether a ledger is sound: every chain, every column, every entry and every statement in it, in one pass each.

It reads one consistent snapshot beside the writer. Memory does not grow with the ledger.

What the ledger has no second word for it can't see: receipts, or failed attempts, that are gone together with all
that is theirs, from a chain's end (a signed account head shows those); a moment, or a failed attempt's energy, that
was changed in the row and in its entries alike; a signature that was taken away, which is given again; statements
that are gone, which are counted; those that another key has signed, which is named; a correction like any other; and
what was done to API keys and to a correction's reason.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, Table, func, select, text

from metering.statements import MeterStatement, SignedStatement
from receipts.arithmetic import check_arithmetic
from receipts.checked_accounts import budget_faults, key_faults, paid, payment_faults, recharge_faults, refunded
from receipts.checked_books import (
    OPENING,
    Entry,
    billed_microjoules,
    booked,
    charged,
    difference,
    failures_name,
    known_transactions,
    transferred,
    undone,
)
from receipts.checked_rows import ColumnTypes, any_text, shown
from receipts.document import Receipt, receipt_from_signed_bytes
from receipts.ed25519 import verify_signature
from receipts.errors import InvalidDocument, LedgerUnusable
from receipts.ledger import OPENING_CREDIT_USD_PICOS
from receipts.ledger_books import METER, OPENING_CREDITS, OVERHEAD, reversal_id
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_rows import customer_book
from receipts.ledger_schema import (
    MICROJOULES,
    USD_PICOS,
    accounts,
    api_keys,
    budgets,
    entries,
    failed_attempts,
    payments,
    receipts,
    recharges,
    reversals,
)
from receipts.receipt_columns import receipt_columns
from receipts.statement_check import MeterTally, StatementCheck

MOST_FINDINGS: Final = 100
_AT_ONCE: Final = 500
_COUNTED: Final = (
    "accounts",
    "receipts",
    "pending",
    "unstated",
    "failed_attempts",
    "unstated_failures",
    "transactions",
    "reversals",
    "payments",
)
_ENTRY_TYPES: Final = ColumnTypes(*entries.c)
# The database keeps each of these unique, by indexes that somebody may have dropped; of several columns the last is
# named.
_ONCE: Final = (
    (receipts.c.receipt_id,),
    (receipts.c.account, receipts.c.request_id),
    (failed_attempts.c.settlement_sha256,),
    (reversals.c.reverses,),
    (accounts.c.account,),
    (api_keys.c.key_id,),
    (payments.c.payment_id,),
    (receipts.c.account, receipts.c.idempotency_sha256),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What a ledger holds, and what is wrong with it: at most `MOST_FINDINGS`, and a line that says how many more.

    ``pending`` receipts wait for their signature. ``unstated`` ones, and ``unstated_failures``, are of a time when
    meters made no statements, or somebody took these away. ``tallies`` are those of the first meters; the keys are
    those that the statements name.
    """

    accounts: int
    receipts: int
    pending: int
    unstated: int
    failed_attempts: int
    unstated_failures: int
    transactions: int
    reversals: int
    payments: int
    meters: int
    statements: int
    tallies: tuple[MeterTally, ...]
    findings: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.findings


def check_ledger(
    database: ReadingDatabase, public_key: bytes | None, *, progress: Callable[[int, int], None] | None = None
) -> LedgerReport:
    """Check everything that the ledger holds; ``public_key`` is the signer group's, None leaves signatures out.

    1. every account: its opening credit in the books;
    2. every account's chain, as far as it goes: no gap, each ``prev_sha256`` the hash of the receipt before. Receipts
       that were cut off at its end together with their entries leave nothing here to be seen;
    3. every receipt: its hash, its columns, its arithmetic, its signature unless it is pending, its statement, and
       in the books exactly what it says, at its time; no request twice;
    4. every failed attempt and every reversal: in the books exactly what it says, at its time;
    5. every payment: in the books exactly what it says; a refund, of a top-up; every key's id and scopes, every
       budget and recharge;
    6. every transaction: about something that is there, zero in each unit; and so are both books;
    7. every meter's statements, as `receipts.meter_audit` checks them, under the key that they name.

    ``progress`` is told how many receipts have been looked at, of how many.

    Raises:
        LedgerUnavailable: it cannot be reached. What is damaged is a finding.
    """
    findings = _Findings()
    with closing(StatementCheck()) as statements:
        check = _Check(public_key=public_key, findings=findings, statements=statements, progress=progress)
        try:
            with database.snapshot() as connection, any_text(connection):
                check.run(connection)
        except LedgerUnusable as error:
            findings.add(check.place, f"it could not be read any further: {error}")
        for meter, fault in statements.findings():
            findings.add(f"meter {meter[:16]}", fault)
        return LedgerReport(
            **check.counts,
            meters=statements.meters,
            statements=statements.statements,
            tallies=tuple(statements.tallies),
            findings=findings.lines(),
        )


class _Findings:
    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def add(self, place: str, fault: str) -> None:
        if len(self._lines) == MOST_FINDINGS:
            self._more += 1
            return
        # What is wrong may be quoted from the database, and must not command the terminal that shows it.
        line = f"{place}: {fault}"
        self._lines.append("".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line))

    def lines(self) -> tuple[str, ...]:
        return (*self._lines, f"and {self._more} more findings") if self._more else tuple(self._lines)


@dataclass(slots=True, kw_only=True)
class _Check:
    public_key: bytes | None
    findings: _Findings
    statements: StatementCheck
    progress: Callable[[int, int], None] | None
    place: str = "the database"
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))

    def run(self, connection: Connection) -> None:
        self._check_file(connection)
        self._check_accounts(connection)
        self._check_receipts(connection)
        self._check_once(connection)
        self._check_failed_attempts(connection)
        self._check_reversals(connection)
        self._check_payments(connection)
        self._check_rows(connection, api_keys, api_keys.c.key_id, key_faults)
        self._check_rows(connection, budgets, budgets.c.position, budget_faults)
        self._check_rows(connection, recharges, recharges.c.position, recharge_faults)
        self._check_transactions(connection)

    def _check_file(self, connection: Connection) -> None:
        """SQLite's own check: pages, and indexes that agree with their tables."""
        if connection.dialect.name == "sqlite":
            for (said,) in connection.execute(text("PRAGMA integrity_check(20)")):
                if said != "ok":
                    self.findings.add("the database file", str(said))

    def _check_accounts(self, connection: Connection) -> None:
        self.place = "accounts"
        query = select(accounts).order_by(accounts.c.account)
        for rows in self._batches(connection, query, ColumnTypes(*accounts.c), _opening_name):
            in_books = booked(connection, [_opening_name(row) for row in rows])
            for row in rows:
                name = _opening_name(row)
                self.place = f"transaction {name}"
                payee, credit = customer_book(row.account), OPENING_CREDIT_USD_PICOS
                opened = transferred(USD_PICOS, OPENING_CREDITS, payee, credit, row.created_unix_ns)
                self._check_booked(in_books.get(name, ()), opened)
            self.counts["accounts"] += len(rows)

    def _check_receipts(self, connection: Connection) -> None:
        self.place = "receipts"
        total = _count(connection, receipts.c.receipt_id)
        is_stated = receipts.c.statement.is_not(None)
        chain = _Chain(first_stated=connection.scalar(select(func.min(receipts.c.position)).where(is_stated)))
        query = (
            select(receipts, accounts.c.account.label("known_account"))
            .select_from(receipts.outerjoin(accounts, receipts.c.account == accounts.c.account))
            .order_by(receipts.c.account, receipts.c.seq)
        )
        for rows in self._batches(connection, query, ColumnTypes(*receipts.c), _receipts_place):
            in_books = booked(connection, [row.receipt_id for row in rows])
            for row in rows:
                self.place = _receipts_place(row)
                self._check_receipt(row, chain, in_books.get(row.receipt_id, ()))
            self.counts["receipts"] += len(rows)
            if self.progress is not None:
                self.progress(self.counts["receipts"], total)

    def _check_receipt(self, row: Any, chain: "_Chain", in_books: Sequence[Entry]) -> None:  # noqa: ANN401 - checked
        digest = hashlib.sha256(row.signed_bytes).digest()
        document: Receipt | None = None
        try:
            document = receipt_from_signed_bytes(row.signed_bytes)
            check_arithmetic(document)
        except InvalidDocument as error:
            self._found(str(error))
        if digest != row.signed_sha256:
            self._found("its bytes do not have the hash that was stored with them")
        prev_sha256 = None if document is None else document.chain.prev_sha256
        for fault in chain.faults(row, prev_sha256, is_document=document is not None):
            self._found(fault)
        chain.go_on(row, digest)
        self._check_signature(row)
        if row.known_account is None:
            self._found("there is no such account")
        if document is not None:
            self._check_columns(row, document)
            self._check_booked(in_books, charged(document, row.created_unix_ns))
        self._check_statement(row, document)

    def _check_signature(self, row: Any) -> None:  # noqa: ANN401 - checked
        if row.signature is None:
            self.counts["pending"] += 1
        elif self.public_key is not None and not verify_signature(self.public_key, row.signed_bytes, row.signature):
            self._found("its signature is not the group's")

    def _check_columns(self, row: Any, document: Receipt) -> None:  # noqa: ANN401 - checked
        for name, expected in receipt_columns(document, billed_microjoules(document)).items():
            found = getattr(row, name)
            if found != expected:
                self._found(f"its column {name} has {shown(found)}, its bytes have {shown(expected)}")

    def _check_statement(self, row: Any, document: Receipt | None) -> None:  # noqa: ANN401 - checked
        if row.statement is None:
            self.counts["unstated"] += 1
            return
        statement = self._stated(row)
        if statement is None:
            return
        if statement.outcome == "failed":
            self._found("its meter states that the attempt failed")
        if document is not None and statement.microjoules != billed_microjoules(document):
            billed = billed_microjoules(document)
            self._found(f"its meter states {statement.microjoules} microjoules, and it bills {billed}")

    def _stated(self, row: Any) -> MeterStatement | None:  # noqa: ANN401 - checked
        """What a meter says of the row's request."""
        statement = self.statements.add(SignedStatement(statement=row.statement, signature=row.statement_signature))
        if statement is None:
            self._found("its meter's statement is not one")
        elif statement.request_id != row.request_id:
            self._found(f"its meter's statement is about request {statement.request_id}")
        return statement

    def _check_once(self, connection: Connection) -> None:
        for columns in _ONCE:
            query = select(*columns, func.count()).group_by(*columns).having(func.count(columns[-1]) > 1)
            for row in connection.execute(query.execution_options(yield_per=_AT_ONCE)):
                name = columns[-1].name
                self.findings.add(columns[-1].table.name, f"{row[-1]} have the {name} {shown(row[-2])}")

    def _check_failed_attempts(self, connection: Connection) -> None:
        self.place = "failed attempts"
        charged = (
            select(receipts.c.statement)
            .where(
                receipts.c.account == failed_attempts.c.account, receipts.c.request_id == failed_attempts.c.request_id
            )
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(failed_attempts, accounts.c.account.label("known_account"), charged.label("charged_statement"))
            .select_from(failed_attempts.outerjoin(accounts, failed_attempts.c.account == accounts.c.account))
            .order_by(failed_attempts.c.settlement_sha256)
        )
        for rows in self._batches(connection, query, ColumnTypes(*failed_attempts.c), _failures_name):
            in_books = booked(connection, [_failures_name(row) for row in rows])
            for row in rows:
                name = self.place = _failures_name(row)
                if row.known_account is None:
                    self._found("there is no such account")
                wasted = row.energy_microjoules or 0
                self._check_booked(
                    in_books.get(name, ()), transferred(MICROJOULES, METER, OVERHEAD, wasted, row.created_unix_ns)
                )
                self._check_failures_statement(row)
            self.counts["failed_attempts"] += len(rows)

    def _check_failures_statement(self, row: Any) -> None:  # noqa: ANN401 - checked
        if row.statement is None:
            self.counts["unstated_failures"] += 1
            return
        statement = self._stated(row)
        if statement is None:
            return
        if statement.outcome == "failed":
            if statement.microjoules is not None:
                self._found(f"its meter bills {statement.microjoules} microjoules for an attempt that failed")
        elif row.charged_statement in (None, row.statement):
            self._found(f"its meter says that it {statement.outcome}, and no other attempt at the request is charged")
        elif statement.microjoules != row.energy_microjoules:
            self._found(f"its energy is {row.energy_microjoules}, its meter states {statement.microjoules}")

    def _check_reversals(self, connection: Connection) -> None:
        self.place = "reversals"
        query = select(reversals).order_by(reversals.c.transaction_id)
        for rows in self._batches(connection, query, ColumnTypes(*reversals.c), _reversals_place):
            in_books = booked(connection, [each for row in rows for each in (row.transaction_id, row.reverses)])
            for row in rows:
                self.place = _reversals_place(row)
                if row.transaction_id != reversal_id(row.reverses):
                    self._found(f"it is not the one reversal of {row.reverses}, which has another id")
                mirrored = undone(in_books.get(row.reverses, ()), row.created_unix_ns)
                if not mirrored:
                    self._found(f"it reverses {row.reverses}, of which the books have nothing")
                elif in_books.get(row.transaction_id, []) != mirrored:
                    self._found(f"it does not mirror {row.reverses}, which it reverses, or not at its own time")
            self.counts["reversals"] += len(rows)

    def _check_payments(self, connection: Connection) -> None:
        self.place = "payments"
        query = select(payments).order_by(payments.c.payment_id)
        for rows in self._batches(connection, query, ColumnTypes(*payments.c), _payments_place):
            in_books = booked(connection, [row.payment_id for row in rows])
            back = refunded(connection, rows)
            for row in rows:
                self.place = _payments_place(row)
                self._check_booked(in_books.get(row.payment_id, ()), paid(row))
                for fault in payment_faults(row, back.get(row.refunds)):
                    self._found(fault)
            self.counts["payments"] += len(rows)

    def _check_rows(
        self, connection: Connection, table: Table, order: Column[Any], faults: Callable[[Any], Iterator[str]]
    ) -> None:
        """Rows that no book knows of."""

        def place(row: Any) -> str:  # noqa: ANN401 - a row's columns are known to nobody
            return f"{table.name} {getattr(row, order.name)} of account {row.account}"

        for rows in self._batches(connection, select(table).order_by(order), ColumnTypes(*table.c), place):
            for row in rows:
                self.place = place(row)
                for fault in faults(row):
                    self._found(fault)

    def _check_transactions(self, connection: Connection) -> None:
        self.place = "entries"
        query = select(entries).order_by(entries.c.transaction_id, entries.c.unit, entries.c.book_account)
        rows = connection.execute(query.execution_options(yield_per=_AT_ONCE))
        totals = dict.fromkeys((MICROJOULES, USD_PICOS), 0)
        transactions: Iterator[Any] = groupby(rows, key=attrgetter("transaction_id"))
        while names := self._sum_up(islice(transactions, _AT_ONCE), totals):
            texts = {name for name in names if isinstance(name, str)}
            for name in sorted(texts - known_transactions(connection, texts)):
                self.findings.add(f"transaction {name}", "it is about nothing that the ledger has")
            self.counts["transactions"] += len(names)
        for unit, total in totals.items():
            if total:
                self.findings.add(f"the book in {unit}", f"it sums to {total}, not to zero")

    def _sum_up(self, transactions: Iterable[tuple[object, Iterable["Row[Any]"]]], totals: dict[str, int]) -> set[Any]:
        """See that some transactions sum to zero in each unit, and add them to the books' totals; their names."""
        names = set()
        for name, its_entries in transactions:
            self.place = f"transaction {name}"
            sums = dict.fromkeys(totals, 0)
            for row in its_entries:
                each, faults = _ENTRY_TYPES.checked(row)
                if each.unit in sums:
                    sums[each.unit] += each.amount
                else:
                    faults.append(f"an entry has the unit {shown(each.unit)}")
                for fault in faults:
                    self._found(fault)
            for unit, total in sums.items():
                totals[unit] += total
                if total:
                    self._found(f"its {unit} sum to {total}, not to zero")
            names.add(name)
        return names

    def _check_booked(self, in_books: Sequence[Entry], expected: Sequence[Entry]) -> None:
        fault = difference(in_books, expected)
        if fault is not None:
            self._found(fault)

    def _batches(
        self, connection: Connection, query: "Select[Any]", types: ColumnTypes, place: Callable[[Any], str]
    ) -> Iterator[Sequence[Any]]:
        """The rows, some at a time, each of its columns of its type."""
        for rows in connection.execute(query.execution_options(yield_per=_AT_ONCE)).partitions():
            checked = [types.checked(row) for row in rows]
            for row, faults in checked:
                for fault in faults:
                    self.findings.add(place(row), fault)
            yield [row for row, _ in checked]

    def _found(self, fault: str) -> None:
        self.findings.add(self.place, fault)


@dataclass(slots=True, kw_only=True)
class _Chain:
    """The place in the account under way; accounts come one after the other, each in order of ``seq``.

    ``first_stated`` is the position of the first receipt with a meter's statement: those without came before it.
    """

    first_stated: int | None
    account: str | None = None
    seq: int = 0
    position: int | None = None
    sha256: str | None = None

    def faults(self, row: Any, prev_sha256: str | None, *, is_document: bool) -> Iterator[str]:  # noqa: ANN401
        """What does not fit to the receipts before."""
        if row.account != self.account:
            self.account, self.seq, self.position, self.sha256 = row.account, 0, None, None
        if row.seq != self.seq + 1:
            yield f"the chain has a gap: {row.seq} comes after {self.seq}"
        elif is_document and prev_sha256 != self.sha256:
            yield "its prev_sha256 is not the hash of the receipt before"
        if self.position is not None and row.position <= self.position:
            yield f"its position {row.position} is not after {self.position}, that of the receipt before"
        if row.statement is None and self.first_stated is not None and row.position > self.first_stated:
            yield "it has no statement of its meter, and receipts before it have"

    def go_on(self, row: Any, digest: bytes) -> None:  # noqa: ANN401 - checked
        """That receipt is the last one now."""
        self.seq, self.position, self.sha256 = row.seq, row.position, digest.hex()


def _count(connection: Connection, column: ColumnElement[Any]) -> int:
    return connection.scalar(select(func.count(column))) or 0


def _opening_name(row: Any) -> str:  # noqa: ANN401 - a row's columns are known to nobody
    return f"{OPENING}{row.account}"


def _receipts_place(row: Any) -> str:  # noqa: ANN401
    return f"receipt {row.seq} of account {row.account} ({row.receipt_id})"


def _failures_name(row: Any) -> str:  # noqa: ANN401
    return failures_name(row.settlement_sha256)


def _payments_place(row: Any) -> str:  # noqa: ANN401
    return f"payment {row.payment_id}"


def _reversals_place(row: Any) -> str:  # noqa: ANN401
    return f"transaction {row.transaction_id}"
