"""Whether a ledger is sound: every chain, every column, every entry and every statement in it, in one pass each.

It reads one consistent snapshot beside the writer. Memory does not grow with the ledger.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select, text

from metering.statements import SignedStatement
from receipts.arithmetic import check_arithmetic, microjoules
from receipts.document import Receipt, receipt_from_signed_bytes
from receipts.ed25519 import verify_signature
from receipts.errors import InvalidDocument, LedgerUnusable
from receipts.ledger_books import METER, OPENING_CREDITS, OVERHEAD, REVENUE
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_rows import STORED, customer_book, stored_receipt
from receipts.ledger_schema import MICROJOULES, USD_PICOS, accounts, entries, failed_attempts, receipts, reversals
from receipts.statement_check import StatementCheck
from receipts.stored_receipt import StoredReceipt

MOST_FINDINGS: Final = 100
_AT_ONCE: Final = 500
_SHOWN: Final = 80
_OPENING: Final = "opening:"

Entry = tuple[str, str, int]
"""Unit, book account, amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What a ledger holds, and what is wrong with it: at most `MOST_FINDINGS`, and a line that says how many more.

    ``pending`` receipts wait for their signature; ``unstated`` are of a time when meters made no statements.
    """

    accounts: int
    receipts: int
    pending: int
    unstated: int
    failed_attempts: int
    transactions: int
    reversals: int
    meters: int
    statements: int
    findings: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.findings


def check_ledger(
    database: ReadingDatabase, public_key: bytes | None, *, progress: Callable[[int, int], None] | None = None
) -> LedgerReport:
    """Check everything that the ledger holds; ``public_key`` is the signer group's, None leaves signatures out.

    1. every account's chain: no gap, each ``prev_sha256`` the hash of the receipt before;
    2. every receipt: its hash, its columns, its arithmetic, its signature unless it is pending, its statement, and
       in the books exactly what it says; no request twice;
    3. every failed attempt and every reversal: in the books exactly what it says;
    4. every transaction: about something that is there, zero in each unit; and so are both books;
    5. every meter's statements, as `receipts.meter_audit` checks them.

    ``progress`` is told how many receipts have been looked at, of how many.

    Raises:
        LedgerUnavailable: it cannot be reached. What is damaged is a finding.
    """
    findings = _Findings()
    with closing(StatementCheck()) as statements:
        check = _Check(public_key=public_key, findings=findings, statements=statements, progress=progress)
        try:
            with database.snapshot() as connection:
                check.run(connection)
        except LedgerUnusable as error:
            findings.add(check.place, f"it could not be read any further: {error}")
        for meter, fault in statements.findings():
            findings.add(f"meter {meter[:16]}", fault)
        return LedgerReport(
            **check.counts, meters=statements.meters, statements=statements.statements, findings=findings.lines()
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
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("accounts", "receipts", "pending", "unstated", "failed_attempts", "transactions", "reversals"), 0
        )
    )

    def run(self, connection: Connection) -> None:
        self._check_file(connection)
        self.counts["accounts"] = _count(connection, accounts.c.account)
        self._check_receipts(connection)
        self._check_once(connection)
        self._check_failed_attempts(connection)
        self._check_reversals(connection)
        self._check_transactions(connection)

    def _check_file(self, connection: Connection) -> None:
        """SQLite's own check: pages, and indexes that agree with their tables."""
        if connection.dialect.name == "sqlite":
            for (said,) in connection.execute(text("PRAGMA integrity_check(20)")):
                if said != "ok":
                    self.findings.add("the database file", str(said))

    def _check_receipts(self, connection: Connection) -> None:
        self.place = "receipts"
        total = _count(connection, receipts.c.receipt_id)
        columns = (
            receipts.c.request_id,
            receipts.c.signed_sha256,
            receipts.c.end_unix_ns,
            receipts.c.model,
            receipts.c.region,
            receipts.c.customer_tag,
            accounts.c.account.label("known_account"),
        )
        query = (
            select(*STORED, *columns)
            .select_from(receipts.outerjoin(accounts, receipts.c.account == accounts.c.account))
            .order_by(receipts.c.account, receipts.c.seq)
        )
        chain = _Chain()
        for rows in _batches(connection, query):
            booked = _booked(connection, [row.receipt_id for row in rows])
            for row in rows:
                self.place = f"receipt {row.seq} of account {row.account} ({row.receipt_id})"
                self._check_receipt(row, chain, booked.get(row.receipt_id, frozenset()))
            self.counts["receipts"] += len(rows)
            if self.progress is not None:
                self.progress(self.counts["receipts"], total)

    def _check_receipt(self, row: "Row[Any]", chain: "_Chain", booked: Collection[Entry]) -> None:
        stored = stored_receipt(row)
        digest = hashlib.sha256(stored.signed_bytes).digest()
        document: Receipt | None = None
        try:
            document = receipt_from_signed_bytes(stored.signed_bytes)
            check_arithmetic(document)
        except InvalidDocument as error:
            self._found(str(error))
        if digest != row.signed_sha256:
            self._found("its bytes do not have the hash that was stored with them")
        prev_sha256 = None if document is None else document.chain.prev_sha256
        for fault in chain.faults(stored, prev_sha256, is_document=document is not None):
            self._found(fault)
        chain.go_on(stored, digest)
        self._check_signature(stored)
        if row.known_account is None:
            self._found("there is no such account")
        if document is not None:
            self._check_columns(row, document)
            self._check_booked(booked, _charged(document))
        self._check_statement(row, stored, document)

    def _check_signature(self, stored: StoredReceipt) -> None:
        if stored.signature is None:
            self.counts["pending"] += 1
        elif self.public_key is not None and not verify_signature(
            self.public_key, stored.signed_bytes, stored.signature
        ):
            self._found("its signature is not the group's")

    def _check_columns(self, row: "Row[Any]", document: Receipt) -> None:
        inside = {
            "receipt_id": document.receipt_id,
            "request_id": document.receipt_id.removeprefix("rcpt_"),
            "account": document.workload.account,
            "seq": document.chain.seq,
            "end_unix_ns": document.execution.end_unix_ns,
            "model": document.workload.model,
            "region": document.silicon.region,
            "customer_tag": document.workload.customer_tag,
        }
        for name, expected in inside.items():
            found = getattr(row, name)
            if found != expected:
                self._found(f"its column {name} has {_shown(found)}, its bytes have {_shown(expected)}")

    def _check_statement(self, row: "Row[Any]", stored: StoredReceipt, document: Receipt | None) -> None:
        if stored.statement is None:
            self.counts["unstated"] += 1
            return
        statement = self.statements.add(stored.statement)
        if statement is None:
            self._found("its meter's statement is not one")
            return
        if statement.request_id != row.request_id:
            self._found(f"its meter's statement is about request {statement.request_id}")
        if document is not None and statement.microjoules != _microjoules(document):
            self._found(f"its meter states {statement.microjoules} microjoules, and it bills {_microjoules(document)}")

    def _check_once(self, connection: Connection) -> None:
        """The database keeps each of these unique, by indexes that somebody may have dropped."""
        for columns in ((receipts.c.receipt_id,), (receipts.c.account, receipts.c.request_id)):
            query = select(*columns, func.count()).group_by(*columns).having(func.count() > 1)
            for row in connection.execute(query.execution_options(yield_per=_AT_ONCE)):
                self.findings.add(f"request {row[-2]}", f"it has {row[-1]} receipts")

    def _check_failed_attempts(self, connection: Connection) -> None:
        self.place = "failed attempts"
        query = select(failed_attempts).order_by(failed_attempts.c.settlement_sha256)
        for rows in _batches(connection, query):
            names = {bytes(row.settlement_sha256): f"failed:{bytes(row.settlement_sha256).hex()}" for row in rows}
            booked = _booked(connection, list(names.values()))
            for row in rows:
                name = names[bytes(row.settlement_sha256)]
                self.place = name
                wasted = _sides(MICROJOULES, METER, OVERHEAD, row.energy_microjoules or 0)
                self._check_booked(booked.get(name, frozenset()), wasted)
                if row.statement is not None:
                    self._check_failures_statement(row)
            self.counts["failed_attempts"] += len(rows)

    def _check_failures_statement(self, row: "Row[Any]") -> None:
        statement = self.statements.add(SignedStatement(statement=row.statement, signature=row.statement_signature))
        if statement is None:
            self._found("its meter's statement is not one")
        elif statement.request_id != row.request_id:
            self._found(f"its meter's statement is about request {statement.request_id}")

    def _check_reversals(self, connection: Connection) -> None:
        self.place = "reversals"
        for rows in _batches(connection, select(reversals).order_by(reversals.c.transaction_id)):
            booked = _booked(connection, [each for row in rows for each in (row.transaction_id, row.reverses)])
            for row in rows:
                self.place = f"transaction {row.transaction_id}"
                mirrored = {
                    (unit, book_account, -amount)
                    for unit, book_account, amount in booked.get(row.reverses, frozenset())
                }
                if not mirrored:
                    self._found(f"it reverses {row.reverses}, of which the books have nothing")
                elif booked.get(row.transaction_id, frozenset()) != mirrored:
                    self._found(f"it does not mirror {row.reverses}, which it reverses")
            self.counts["reversals"] += len(rows)

    def _check_transactions(self, connection: Connection) -> None:
        self.place = "entries"
        query = select(entries.c.transaction_id, entries.c.unit, entries.c.amount).order_by(
            entries.c.transaction_id, entries.c.unit, entries.c.book_account
        )
        rows = connection.execute(query.execution_options(yield_per=_AT_ONCE))
        totals: dict[str, int] = {}
        transactions: Iterator[Any] = groupby(rows, key=attrgetter("transaction_id"))
        while names := self._sum_up(islice(transactions, _AT_ONCE), totals):
            self._check_opening_credits(connection, names)
            for name in sorted(names - _known(connection, names)):
                self.findings.add(f"transaction {name}", "it is about nothing that the ledger has")
            self.counts["transactions"] += len(names)
        for unit, total in totals.items():
            if total:
                self.findings.add(f"the book in {unit}", f"it sums to {total}, not to zero")

    def _check_opening_credits(self, connection: Connection, names: Collection[str]) -> None:
        """How much it is has changed with the times; to whom and whence it goes has not."""
        opening = [name for name in names if name.startswith(_OPENING)]
        for name, its_entries in _booked(connection, opening).items():
            self.place = f"transaction {name}"
            credit = max(amount for _, _, amount in its_entries)
            payee = customer_book(name.removeprefix(_OPENING))
            self._check_booked(its_entries, _sides(USD_PICOS, OPENING_CREDITS, payee, credit))
        self.place = "entries"

    def _sum_up(self, transactions: Iterable[tuple[str, Iterable["Row[Any]"]]], totals: dict[str, int]) -> set[str]:
        """See that some transactions sum to zero in each unit, and add them to the books' totals; their names."""
        names = set()
        for name, its_entries in transactions:
            sums: dict[str, int] = {}
            for each in its_entries:
                sums[each.unit] = sums.get(each.unit, 0) + each.amount
            for unit, total in sums.items():
                totals[unit] = totals.get(unit, 0) + total
                if total:
                    self.findings.add(f"transaction {name}", f"its {unit} sum to {total}, not to zero")
            names.add(name)
        return names

    def _check_booked(self, booked: Collection[Entry], expected: Collection[Entry]) -> None:
        if booked != expected:
            shown = "; ".join(f"{amount} {unit} of {account}" for unit, account, amount in sorted(booked)) or "nothing"
            wanted = "; ".join(f"{amount} {unit} of {account}" for unit, account, amount in sorted(expected))
            self._found(f"the books have {shown}, and it says {wanted or 'nothing'}")

    def _found(self, fault: str) -> None:
        self.findings.add(self.place, fault)


@dataclass(slots=True)
class _Chain:
    """The place in the account under way; accounts come one after the other, each in order of ``seq``."""

    account: str | None = None
    seq: int = 0
    sha256: str | None = None
    is_stated: bool = False

    def faults(self, stored: StoredReceipt, prev_sha256: str | None, *, is_document: bool) -> Iterator[str]:
        """What does not fit to the receipts before."""
        if stored.account != self.account:
            self.account, self.seq, self.sha256, self.is_stated = stored.account, 0, None, False
        if stored.seq != self.seq + 1:
            yield f"the chain has a gap: {stored.seq} comes after {self.seq}"
        elif is_document and prev_sha256 != self.sha256:
            yield "its prev_sha256 is not the hash of the receipt before"
        # Meters that made no statements came before those that do.
        if self.is_stated and stored.statement is None:
            yield "it has no statement of its meter, and receipts before it have"

    def go_on(self, stored: StoredReceipt, digest: bytes) -> None:
        """That receipt is the last one now."""
        self.seq, self.sha256 = stored.seq, digest.hex()
        self.is_stated = self.is_stated or stored.statement is not None


def _batches(connection: Connection, query: "Select[Any]") -> Iterator[Sequence["Row[Any]"]]:
    yield from connection.execute(query.execution_options(yield_per=_AT_ONCE)).partitions()


def _count(connection: Connection, column: ColumnElement[Any]) -> int:
    return connection.scalar(select(func.count(column))) or 0


def _booked(connection: Connection, names: Collection[str]) -> Mapping[str, frozenset[Entry]]:
    """What the books have of each of these transactions."""
    found: dict[str, set[Entry]] = {}
    query = select(entries.c.transaction_id, entries.c.unit, entries.c.book_account, entries.c.amount)
    for name, unit, book_account, amount in connection.execute(query.where(entries.c.transaction_id.in_(names))):
        found.setdefault(name, set()).add((unit, book_account, amount))
    return {name: frozenset(its_entries) for name, its_entries in found.items()}


def _known(connection: Connection, names: Collection[str]) -> set[str]:
    """Those of the transactions that are about something in the ledger, by what each kind's name says."""
    known: set[str] = set()
    for prefix, column, key in (
        ("rcpt_", receipts.c.receipt_id, lambda name: name),
        (_OPENING, accounts.c.account, lambda name: name.removeprefix(_OPENING)),
        ("reversal:", reversals.c.transaction_id, lambda name: name),
        ("failed:", failed_attempts.c.settlement_sha256, _failures_hash),
    ):
        keys = {key(name): name for name in names if name.startswith(prefix)}
        if keys:
            found = connection.scalars(select(column).where(column.in_(list(keys))))
            known |= {keys[each] for each in found}
    return known


def _failures_hash(name: str) -> bytes:
    try:
        return bytes.fromhex(name.removeprefix("failed:"))
    except ValueError:
        return b""


def _charged(document: Receipt) -> frozenset[Entry]:
    payer = customer_book(document.workload.account)
    energy = _sides(MICROJOULES, METER, payer, _microjoules(document) or 0)
    return energy | _sides(USD_PICOS, payer, REVENUE, document.price.usd_picos)


def _sides(unit: str, giver: str, taker: str, amount: int) -> frozenset[Entry]:
    return frozenset({(unit, giver, -amount), (unit, taker, amount)} if amount else ())


def _microjoules(document: Receipt) -> int | None:
    """None too for a figure that is no whole number of them, which is a finding of its own."""
    total = document.energy.total_joules
    try:
        return None if total is None else microjoules(total, "energy.total_joules")
    except InvalidDocument:
        return None


def _shown(value: object) -> str:
    written = repr(value)
    return written if len(written) <= _SHOWN else f"{written[:_SHOWN]}…"
