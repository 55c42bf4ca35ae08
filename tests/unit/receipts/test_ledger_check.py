# ruff: noqa: S608 - the statements are this file's own, and tampering is its purpose
"""A sound ledger has no finding; whatever is changed in it, past the program and its triggers, is one."""

import dataclasses
import hashlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from opened_ledger import opened
from past_the_ledger import tampering
from postgres import PostgresServer
from sqlalchemy import text

from metering.settlement import Settlement
from metering.statements import MeterKey, StatementChain
from receipts.errors import LedgerUnavailable, LedgerUnusable
from receipts.ledger import Ledger
from receipts.ledger_check import MOST_FINDINGS, LedgerReport, check_ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_schema import metadata


def ids(number: int) -> str:
    return f"rcpt_{number:032x}"


def fill(ledger: Ledger, group, make_settlement, make_unavailable) -> None:
    """Two accounts, four kinds of settlements, two meters, a correction and its correction; the last is not signed."""
    for account in ("acme", "other"):
        ledger.create_key(account, "")
    chains = itertools.cycle([StatementChain(MeterKey(bytes([n]) * 32), None) for n in (1, 2)])

    def stated(settlement: Settlement) -> Settlement:
        statement = next(chains).state(
            request_id=settlement.request_id,
            outcome=settlement.outcome,
            microjoules=settlement.energy.total_microjoules,
            counted_microjoules=10**9,
            open_ns=0,
        )
        return dataclasses.replace(settlement, statement=statement)

    for number in range(1, 9):
        account = "other" if number % 4 == 0 else "acme"
        ledger.settle([stated(make_settlement(number, account, customer_tag="büro" if number % 3 else None))])
    ledger.settle([stated(make_settlement(20, outcome="failed")), stated(make_unavailable(9))])
    ledger.settle([stated(make_settlement(10, outcome="aborted"))])
    signed = ledger.unsigned(100)
    ledger.attach_signatures({each.receipt_id: group.sign(each.signed_bytes) for each in signed})
    undone = ledger.reverse(ids(2), "tried out")
    ledger.reverse(undone, "was right")
    ledger.settle([stated(make_settlement(11))])
    ledger.close()


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory, group, make_settlement, make_unavailable) -> Path:
    path = tmp_path_factory.mktemp("sound") / "ledger.sqlite3"
    fill(opened(f"sqlite:///{path}", group.key_id), group, make_settlement, make_unavailable)
    return path


@pytest.fixture(scope="module")
def sound_database(postgres_server: PostgresServer, group, make_settlement, make_unavailable) -> Iterator[str]:
    """Its rows are kept aside in a schema of their own: bringing them back is much faster than another database."""
    name = postgres_server.new_database()
    fill(opened(postgres_server.url(name), group.key_id), group, make_settlement, make_unavailable)
    postgres_server.execute("CREATE SCHEMA kept", name)
    for table in metadata.sorted_tables:
        postgres_server.execute(f"CREATE TABLE kept.{table.name} AS TABLE public.{table.name}", name)
    yield name
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger that is sound, to be changed."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite3"
        shutil.copy(request.getfixturevalue("sound_file"), path)
        return f"sqlite:///{path}"
    server, name = request.getfixturevalue("postgres_server"), request.getfixturevalue("sound_database")
    with server.connect(name) as connection, connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(f"TRUNCATE {', '.join(each.name for each in metadata.sorted_tables)}")
        for table in metadata.sorted_tables:
            connection.execute(f"INSERT INTO public.{table.name} SELECT * FROM kept.{table.name}")
    return server.url(name)


def checked(url: str, public_key: bytes | None) -> LedgerReport:
    database = ReadingDatabase.open(url)
    try:
        return check_ledger(database, public_key)
    finally:
        database.close()


def test_a_sound_ledger_has_no_finding(url: str, group) -> None:
    told: list[tuple[int, int]] = []
    database = ReadingDatabase.open(url)
    report = check_ledger(database, group.public_key, progress=lambda done, total: told.append((done, total)))
    database.close()
    assert report == LedgerReport(
        accounts=2,
        receipts=11,
        pending=1,
        unstated=0,
        failed_attempts=1,
        transactions=2 + 10 + 1 + 2,  # opening credits, receipts that cost something, a failure, reversals
        reversals=2,
        meters=2,
        statements=12,
        findings=(),
    )
    assert report.is_sound
    assert told[-1] == (11, 11)


def test_an_empty_ledger_is_sound(ledger_url: str, group) -> None:
    opened(ledger_url).close()
    report = checked(ledger_url, group.public_key)
    assert (report.is_sound, report.receipts, report.transactions) == (True, 0, 0)


def test_it_is_checked_beside_a_writer(url: str, group, make_settlement) -> None:
    ledger = opened(url, group.key_id)
    assert checked(url, group.public_key).receipts == 11
    ledger.close()


def test_another_groups_key_fits_no_signature_and_without_a_key_none_is_looked_at(url: str, stranger) -> None:
    wrong = checked(url, stranger.public_key)
    assert [each.partition(": ")[2] for each in wrong.findings] == ["its signature is not the group's"] * 10
    assert checked(url, None).is_sound


def of(number: int, change: str, table: str = "receipts") -> str:
    """A change to one receipt's row, or to its entries."""
    which = "receipt_id" if table == "receipts" else "transaction_id"
    return f"UPDATE {table} SET {change} WHERE {which} = '{ids(number)}'"


GIFT = "('gift', 'usd_picos', 'customer:acme', 5, 0), ('gift', 'usd_picos', 'revenue', -5, 0)"
OF_THREE = f"transaction_id = '{ids(3)}'"
OF_TWO = f"reverses = '{ids(2)}'"
REVERSAL = f"SELECT transaction_id FROM reversals WHERE {OF_TWO}"
NOTHING = "it is about nothing that the ledger has"
TAMPERS: dict[str, tuple[str, str]] = {
    "a receipt inside": ("DELETE FROM receipts WHERE seq = 2 AND account = 'acme'", "a gap: 3 comes after 1"),
    "the first receipt": ("DELETE FROM receipts WHERE seq = 1 AND account = 'acme'", "a gap: 2 comes after 0"),
    "the last receipt": (f"DELETE FROM receipts WHERE receipt_id = '{ids(11)}'", f"transaction {ids(11)}: {NOTHING}"),
    "a byte": (of(3, "signed_bytes = :flipped"), "its bytes do not have the hash that was stored with them"),
    "a byte and the hash": (of(3, "signed_bytes = :flipped, signed_sha256 = :hash"), "its prev_sha256 is not"),
    "a byte of the last": (of(11, "signed_bytes = :flipped"), "its bytes do not have the hash"),
    "bytes that are none": (of(3, "signed_bytes = :junk"), f"receipt 3 of account acme ({ids(3)}): "),
    "the hash": (of(3, "signed_sha256 = :hash"), "its bytes do not have the hash"),
    "the signature": (of(3, "signature = :signature"), "its signature is not the group's"),
    "the account": (of(11, "account = 'other', seq = 3"), "its column account has 'other', its bytes have 'acme'"),
    "an account that is not": (of(11, "account = 'gone'"), "there is no such account"),
    "the place": (of(11, "seq = 10"), "its column seq has 10, its bytes have 9"),
    "the request": (of(3, "request_id = 'other'"), "its column request_id has 'other'"),
    "the receipt's id": (of(3, "receipt_id = 'rcpt_x'"), "its column receipt_id has 'rcpt_x'"),
    "the time": (of(3, "end_unix_ns = 7"), "its column end_unix_ns has 7"),
    "no time": (of(3, "end_unix_ns = NULL"), "its column end_unix_ns has None"),
    "the model": (of(3, "model = 'x'"), "its column model has 'x'"),
    "the region": (of(3, "region = 'x'"), "its column region has 'x'"),
    "the tag": (of(3, "customer_tag = 'x'"), "its column customer_tag has 'x', its bytes have None"),
    "the statement's text": (of(3, "statement = '{}'"), "its meter's statement is not one"),
    "another's statement": (
        of(3, f"statement = (SELECT statement FROM receipts r WHERE r.receipt_id = '{ids(4)}')"),
        f"its meter's statement is about request {ids(4)[5:]}",
    ),
    "the statement's joules": (
        of(3, "statement = replace(statement, 'microjoules\"\\:310000,', 'microjoules\"\\:310001,')"),
        "its meter states 310001 microjoules, and it bills 310000",
    ),
    "the statement's signature": (of(3, "statement_signature = repeat_00"), "it is not signed by the meter"),
    "no statement": (of(5, "statement = NULL, statement_signature = NULL"), "it has no statement of its meter, and"),
    "a failed attempt's statement": ("UPDATE failed_attempts SET statement = 'x'", "its meter's statement is not one"),
    "a failed attempt": ("DELETE FROM failed_attempts", NOTHING),
    "a failed attempt's joules": (
        "UPDATE failed_attempts SET energy_microjoules = 1",
        "it says -1 microjoules of meter",
    ),
    "an amount": (f"UPDATE entries SET amount = amount + 1 WHERE {OF_THREE} AND amount < 0", "not to zero"),
    "amounts that agree": (of(3, "amount = amount * 2", "entries"), "the books have"),
    "whose entry": (
        f"UPDATE entries SET book_account = 'customer:x' WHERE {OF_THREE} AND book_account = 'customer:acme'",
        "310000 microjoules of customer:x",
    ),
    "an entry": (f"DELETE FROM entries WHERE {OF_THREE} AND amount > 0 AND unit = 'microjoules'", "not to zero"),
    "the books' sum": (
        f"DELETE FROM entries WHERE {OF_THREE} AND amount = 310000",
        "the book in microjoules: it sums to",
    ),
    "all entries of a receipt": (f"DELETE FROM entries WHERE {OF_THREE}", "the books have nothing, and it says"),
    "an opening credit": (
        "UPDATE entries SET amount = 0 - amount WHERE transaction_id = 'opening:acme'",
        "the books have",
    ),
    "entries of nothing": (f"INSERT INTO entries VALUES {GIFT}", f"transaction gift: {NOTHING}"),
    "a reversal": (f"DELETE FROM reversals WHERE {OF_TWO}", NOTHING),
    "what is reversed": (f"UPDATE reversals SET reverses = '{ids(4)}' WHERE {OF_TWO}", "it does not mirror"),
    "a reversal of nothing": (f"UPDATE reversals SET reverses = 'x' WHERE {OF_TWO}", "of which the books have nothing"),
    "a reversal's entries": (
        f"UPDATE entries SET amount = -amount WHERE transaction_id IN ({REVERSAL})",
        "it does not mirror",
    ),
}


@pytest.mark.parametrize("what", TAMPERS)
def test_whatever_is_changed_is_found(url: str, group, what: str) -> None:
    statement, says = TAMPERS[what]
    statement = statement.replace("repeat_00", f"'{'00' * 64}'")
    with tampering(url) as connection:
        read = text("SELECT signed_bytes FROM receipts WHERE receipt_id = :id")
        flipped = bytearray(bytes(connection.scalar(read, {"id": ids(11 if ids(11) in statement else 3)})))
        flipped[600] ^= 1
        values = {
            "flipped": bytes(flipped),
            "hash": hashlib.sha256(flipped).digest() if ":flipped" in statement else bytes(32),
            "junk": b"\xff\x00",
            "signature": bytes(64),
        }
        connection.execute(text(statement), {name: values[name] for name in values if f":{name}" in statement})
    report = checked(url, group.public_key)
    assert not report.is_sound
    assert says in "\n".join(report.findings)


def test_a_request_that_is_there_twice_is_found(postgres_server: PostgresServer, sound_database: str, group) -> None:
    """On PostgreSQL, where what keeps it from being so can be dropped."""
    name = postgres_server.new_database(copy_of=sound_database)
    copied = "receipt_id, account, request_id, signed_bytes, signed_sha256, created_unix_ns"
    with tampering(postgres_server.url(name)) as connection:
        for constraint in ("receipts_receipt_id_key", "receipts_account_request_id_key"):
            connection.execute(text(f"ALTER TABLE receipts DROP CONSTRAINT {constraint}"))
        connection.execute(
            text(f"INSERT INTO receipts (seq, {copied}) SELECT 100, {copied} FROM receipts WHERE receipt_id = :id"),
            {"id": ids(3)},
        )
    found = checked(postgres_server.url(name), group.public_key).findings
    assert sum("it has 2 receipts" in each for each in found) == 2
    postgres_server.drop_database(name)


def test_findings_are_bounded_and_say_how_many_more(url: str, group) -> None:
    with tampering(url) as connection:
        for number in range(150):
            row = {"name": f"gift {number}\x1b[31m"}
            connection.execute(text("INSERT INTO entries VALUES (:name, 'usd_picos', 'revenue', 1, 0)"), row)
    found = checked(url, group.public_key).findings
    assert len(found) == MOST_FINDINGS + 1
    assert found[-1] == "and 201 more findings", "two of each, and the book's own"
    assert "\x1b" not in "".join(found)


def test_flipped_bytes_on_the_disk_are_findings_and_not_the_end(sound_file: Path, tmp_path: Path, group) -> None:
    """Wherever they are: in a page's head, in a row, in an index. Where the schema is, nothing can be read at all."""
    content = sound_file.read_bytes()
    path = tmp_path / "ledger.sqlite3"
    found = 0
    for place in range(4096 + 8, len(content), 4096):
        flipped = bytes(each ^ 0xFF for each in content[place : place + 64])
        path.write_bytes(content[:place] + flipped + content[place + 64 :])
        try:
            found += not checked(f"sqlite:///{path}", group.public_key).is_sound
        except LedgerUnusable as damaged:
            found += "damaged or not a ledger" in str(damaged)
    assert found > len(content) / 4096 / 2


def test_a_file_that_is_not_there_is_not_sound(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=r"there is no ledger .*/none\.sqlite3; a mesh makes one"):
        checked(f"sqlite:///{tmp_path}/none.sqlite3", None)
