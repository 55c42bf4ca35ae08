# ruff: noqa: S608 - the statements are this file's own, and tampering is its purpose
"""A sound ledger has no finding; what is changed in it, past the program and its triggers, is one.

What can be changed without a finding is here as well, each with what is told about it, if anything is.
"""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from opened_ledger import opened
from past_the_ledger import tampering
from postgres import PostgresServer
from sqlalchemy import Connection, text

from metering.settlement import Settlement
from metering.statements import MeterKey, StatementChain
from receipts.errors import LedgerUnavailable, LedgerUnusable
from receipts.ledger import Ledger
from receipts.ledger_books import reversal_id
from receipts.ledger_check import MOST_FINDINGS, LedgerReport, check_ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_schema import metadata
from receipts.statement_check import MeterTally

METERS = [MeterKey(bytes([n]) * 32).public_key.hex() for n in (1, 2)]


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
            microjoules=None if settlement.outcome == "failed" else settlement.energy.total_microjoules,
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
        for table in metadata.sorted_tables:  # of few rows: deleting them takes less than TRUNCATE's new files
            connection.execute(f"DELETE FROM public.{table.name}")
            connection.execute(f"INSERT INTO public.{table.name} SELECT * FROM kept.{table.name}")
    return server.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def loose_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A ledger that is sound, for those who change its tables too."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite3"
        shutil.copy(request.getfixturevalue("sound_file"), path)
        yield f"sqlite:///{path}"
        return
    server = request.getfixturevalue("postgres_server")
    name = server.new_database(copy_of=request.getfixturevalue("sound_database"))
    yield server.url(name)
    server.drop_database(name)


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
        unstated_failures=0,
        transactions=2 + 10 + 1 + 2,  # opening credits, receipts that cost something, a failure, reversals
        reversals=2,
        payments=0,
        meters=2,
        statements=12,
        tallies=tuple(MeterTally(meter=each, statements=6, missing=0) for each in sorted(METERS)),
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
EARLIER = "created_unix_ns = created_unix_ns - 63072000000000000"
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
    "the key": (of(3, "api_key_id = 'key_x'"), "its column api_key_id has 'key_x', its bytes have None"),
    "the workload": (of(3, "workload_name = 'x'"), "its column workload_name has 'x', its bytes have None"),
    "the tokens in": (of(3, "input_tokens = 1"), "its column input_tokens has 1, its bytes have 34"),
    "the tokens out": (of(3, "output_tokens = NULL"), "its column output_tokens has None, its bytes have 128"),
    "the energy": (of(3, "energy_microjoules = 1"), "its column energy_microjoules has 1, its bytes have 310000"),
    "the carbon": (of(3, "carbon_picograms = 1"), "its column carbon_picograms has 1, its bytes have"),
    "the charge": (of(3, "usd_picos = 1"), "its column usd_picos has 1, its bytes have 43056"),
    "a key's id": (
        "UPDATE api_keys SET key_id = 'key_x' WHERE account = 'acme'",
        "its id is 'key_x', its hash makes it",
    ),
    "a key's hash": ("UPDATE api_keys SET sha256 = :hash WHERE account = 'acme'", "its hash makes it key_"),
    "a key's scopes": ("UPDATE api_keys SET scopes = 'root'", "its scopes are 'root'"),
    "a budget": ("INSERT INTO budgets VALUES (1, 'acme', 'key', 'x', 'day', -1, 7)", "it is of -1 microjoules"),
    "a recharge": ("INSERT INTO recharges VALUES (1, 'acme', 5, NULL, NULL, NULL, 7)", "a part of it is missing"),
    "a payment": (
        "INSERT INTO payments VALUES ('topup_x', 'acme', 'top-up', 5, 'stripe', 'x', NULL, NULL, 7)",
        "payment topup_x: the books have nothing, and it says",
    ),
    "a gift that is called a payment": (
        f"INSERT INTO entries VALUES {GIFT}".replace("gift", "topup_x"),
        f"transaction topup_x: {NOTHING}",
    ),
    "the statement's text": (of(3, "statement = '{}'"), "its meter's statement is not one"),
    "another's statement": (
        of(3, f"statement = (SELECT statement FROM receipts r WHERE r.receipt_id = '{ids(4)}')"),
        f"its meter's statement is about request {ids(4)[5:]}",
    ),
    "the statement's joules": (
        of(3, "statement = replace(statement, 'microjoules\"\\:310000,', 'microjoules\"\\:310001,')"),
        "its meter states 310001 microjoules, and it bills 310000",
    ),
    "the statement's outcome": (
        of(3, "statement = replace(statement, 'finished', 'failed')"),
        "its meter states that the attempt failed",
    ),
    "the statement's signature": (of(3, "statement_signature = repeat_00"), "it is not signed by the meter"),
    "no statement": (of(5, "statement = NULL, statement_signature = NULL"), "it has no statement of its meter, and"),
    "an account's statements": (
        "UPDATE receipts SET statement = NULL, statement_signature = NULL WHERE account = 'other'",
        f"receipt 1 of account other ({ids(4)}): it has no statement of its meter, and",
    ),
    "the position": (of(3, "position = 1000"), "is not after 1000, that of the receipt before"),
    "when it was stored": (of(3, "created_unix_ns = 7"), "ns, and it is of 7 ns"),
    "when it was charged": (of(3, EARLIER, "entries"), f"({ids(3)}): the books have it at 1719147900000000000 ns"),
    "when it failed": (
        f"UPDATE entries SET {EARLIER} WHERE transaction_id LIKE 'failed:%'",
        "the books have it at 1719147900000000000 ns",
    ),
    "when it was reversed": (f"UPDATE reversals SET {EARLIER}", "or not at its own time"),
    "when an account was opened": (
        "UPDATE accounts SET created_unix_ns = 7",
        "transaction opening:acme: the books have it",
    ),
    "a failed attempt's account": ("UPDATE failed_attempts SET account = 'gone'", "there is no such account"),
    "a failed attempt's outcome": (
        "UPDATE failed_attempts SET statement = replace(statement, '\"failed\"', '\"aborted\"')",
        "its meter says that it aborted, and no other attempt at the request is charged",
    ),
    "a failed attempt that is billed": (
        "UPDATE failed_attempts SET statement = replace(statement, 'microjoules\"\\:null', 'microjoules\"\\:5')",
        "its meter bills 5 microjoules for an attempt that failed",
    ),
    "a failed attempt's name": (
        (
            "UPDATE failed_attempts SET energy_microjoules = NULL; UPDATE entries SET transaction_id = "
            "replace(upper(transaction_id), 'FAILED:', 'failed:') WHERE transaction_id LIKE 'failed:%'"
        ),
        NOTHING,
    ),
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
    "no opening credit": (
        "DELETE FROM entries WHERE transaction_id = 'opening:acme'",
        "transaction opening:acme: the books have nothing, and it says 5000000000000 usd_picos of customer:acme",
    ),
    "how much opening credit": (
        "UPDATE entries SET amount = amount / 5 WHERE transaction_id = 'opening:acme'",
        "transaction opening:acme: the books have 1000000000000 usd_picos of customer:acme",
    ),
    "an account": ("INSERT INTO accounts VALUES ('new', 7)", "transaction opening:new: the books have nothing"),
    "entries of nothing": (f"INSERT INTO entries VALUES {GIFT}", f"transaction gift: {NOTHING}"),
    "a reversal": (f"DELETE FROM reversals WHERE {OF_TWO}", NOTHING),
    "a reversal's id": (
        (
            f"UPDATE entries SET transaction_id = 'reversal:x' WHERE transaction_id IN ({REVERSAL}); "
            f"UPDATE reversals SET transaction_id = 'reversal:x' WHERE {OF_TWO}"
        ),
        f"transaction reversal:x: it is not the one reversal of {ids(2)}",
    ),
    "what is reversed": (f"UPDATE reversals SET reverses = '{ids(4)}' WHERE {OF_TWO}", "it does not mirror"),
    "a reversal of nothing": (f"UPDATE reversals SET reverses = 'x' WHERE {OF_TWO}", "of which the books have nothing"),
    "a reversal's entries": (
        f"UPDATE entries SET amount = -amount WHERE transaction_id IN ({REVERSAL})",
        "it does not mirror",
    ),
}


@pytest.mark.parametrize("what", TAMPERS)
def test_what_is_changed_is_found(url: str, group, what: str) -> None:
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
        for each in statement.split("; "):
            connection.execute(text(each), {name: values[name] for name in values if f":{name}" in each})
    report = checked(url, group.public_key)
    assert not report.is_sound
    assert says in "\n".join(report.findings)


FAILED = "transaction_id LIKE 'failed:%'"
OTHERS = f"IN ('opening:other', '{ids(4)}', '{ids(8)}')"
OF_FIVE = reversal_id(ids(5))
UNSEEN: dict[str, tuple[str, dict[str, object]]] = {
    "a chain's end": (
        f"DELETE FROM entries WHERE transaction_id = '{ids(11)}'; DELETE FROM receipts WHERE receipt_id = '{ids(11)}'",
        {"receipts": 10, "pending": 0, "statements": 11},
    ),
    "a whole account": (
        (
            "DELETE FROM api_keys WHERE account = 'other'; DELETE FROM receipts WHERE account = 'other'; "
            f"DELETE FROM entries WHERE transaction_id {OTHERS}; DELETE FROM accounts WHERE account = 'other'"
        ),
        {"accounts": 1, "receipts": 9, "statements": 10},
    ),
    "a failed attempt": (
        f"DELETE FROM entries WHERE {FAILED}; DELETE FROM failed_attempts",
        {"failed_attempts": 0, "missing": 1},
    ),
    "a failed attempt's joules": (
        (
            f"UPDATE entries SET amount = amount * 7 WHERE {FAILED}; "
            "UPDATE failed_attempts SET energy_microjoules = energy_microjoules * 7"
        ),
        {},
    ),
    "whose failed attempt": ("UPDATE failed_attempts SET account = 'other'", {}),
    "a moment": (f"{of(3, EARLIER)}; {of(3, EARLIER, 'entries')}", {}),
    "the last place in the order of storing": (of(11, "position = 1000"), {}),
    "a signature": (of(3, "signature = NULL"), {"pending": 2}),
    "all statements": (
        (
            "UPDATE receipts SET statement = NULL, statement_signature = NULL; "
            "UPDATE failed_attempts SET statement = NULL, statement_signature = NULL"
        ),
        {"unstated": 11, "unstated_failures": 1, "statements": 0},
    ),
    "a failed attempt's statement": (
        "UPDATE failed_attempts SET statement = NULL, statement_signature = NULL",
        {"unstated_failures": 1, "missing": 1},
    ),
    "a correction": (
        (
            f"INSERT INTO entries SELECT '{OF_FIVE}', unit, book_account, 0 - amount, 7 FROM entries "
            f"WHERE transaction_id = '{ids(5)}'; INSERT INTO reversals VALUES ('{OF_FIVE}', '{ids(5)}', 'x', 7)"
        ),
        {"reversals": 3},
    ),
    "a correction's reason": ("UPDATE reversals SET reason = 'x'", {}),
    "whose API key": ("UPDATE api_keys SET account = 'other'", {}),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_nothing_else_in_the_ledger_contradicts_is_not_found(url: str, group, what: str) -> None:
    """It is said so in `receipts.ledger_check` and in README.md; the figures that tell of it are told."""
    statements, told = UNSEEN[what]
    with tampering(url) as connection:
        for each in statements.split("; "):
            connection.execute(text(each))
    report = checked(url, group.public_key)
    assert report.findings == ()
    figures = {**dataclasses.asdict(report), "missing": sum(each.missing for each in report.tallies)}
    assert {name: figures[name] for name in told} == told


def test_statements_of_an_invented_meter_are_not_found_and_its_key_is_told(url: str, group) -> None:
    invented = StatementChain(MeterKey(b"\x77" * 32), None)
    with tampering(url) as connection:
        for table in ("receipts", "failed_attempts"):
            for request_id, old in connection.execute(text(f"SELECT request_id, statement FROM {table}")).all():
                said = json.loads(old)
                new = invented.state(
                    request_id=request_id,
                    outcome=said["outcome"],
                    microjoules=said["microjoules"],
                    counted_microjoules=10**9,
                    open_ns=0,
                )
                change = f"UPDATE {table} SET statement = :new, statement_signature = :by WHERE request_id = :id"
                connection.execute(text(change), {"new": new.statement, "by": new.signature, "id": request_id})
    report = checked(url, group.public_key)
    assert report.findings == ()
    key = MeterKey(b"\x77" * 32).public_key.hex()
    assert report.tallies == (MeterTally(meter=key, statements=12, missing=0),)


COPIED = "receipt_id, account, request_id, signed_bytes, signed_sha256, created_unix_ns"
TWICE: dict[str, tuple[str, str, str]] = {
    "a charge": (
        "entries",
        f"SELECT * FROM entries WHERE {OF_THREE}",
        "the books have 310000 microjoules of customer:acme; 310000 microjoules of customer:acme; ",
    ),
    "an opening credit": (
        "entries",
        "SELECT * FROM entries WHERE transaction_id = 'opening:acme'",
        "the books have 5000000000000 usd_picos of customer:acme; 5000000000000 usd_picos of customer:acme; ",
    ),
    "a charge very often": (
        "entries",
        f"SELECT entries.* FROM entries, receipts WHERE {OF_THREE}",
        "the books have 310000 microjoules of customer:acme",
    ),
    "a reversal": ("reversals", f"SELECT * FROM reversals WHERE {OF_TWO}", f"2 have the reverses '{ids(2)}'"),
    "a reversal by another": (
        "reversals",
        f"SELECT '{ids(3)}', '{ids(2)}', 'x', 7",
        f"transaction {ids(3)}: it is not the one reversal of {ids(2)}",
    ),
    "a failed attempt": ("failed_attempts", "SELECT * FROM failed_attempts", "2 have the settlement_sha256 b'"),
    "an account": ("accounts", "SELECT * FROM accounts", "accounts: 2 have the account 'acme'"),
}


def loosen(connection: Connection, table: str) -> None:
    """Make the table anew, without anything that keeps its rows apart."""
    connection.execute(text(f"CREATE TABLE loose AS SELECT * FROM {table}"))
    cascade = "CASCADE" if connection.dialect.name == "postgresql" else ""
    connection.execute(text(f"DROP TABLE {table} {cascade}"))
    connection.execute(text(f"ALTER TABLE loose RENAME TO {table}"))


@pytest.mark.parametrize("what", TWICE)
def test_what_is_there_twice_is_found(loose_url: str, group, what: str) -> None:
    table, rows, says = TWICE[what]
    with tampering(loose_url) as connection:
        loosen(connection, table)
        connection.execute(text(f"INSERT INTO {table} {rows}"))
    assert says in "\n".join(checked(loose_url, group.public_key).findings)


def test_a_request_that_is_there_twice_is_found(loose_url: str, group) -> None:
    with tampering(loose_url) as connection:
        loosen(connection, "receipts")
        connection.execute(
            text(
                f"INSERT INTO receipts (position, seq, {COPIED}) SELECT 100, 100, {COPIED} FROM receipts "
                "WHERE receipt_id = :id"
            ),
            {"id": ids(3)},
        )
    found = checked(loose_url, group.public_key).findings
    assert f"receipts: 2 have the receipt_id '{ids(3)}'" in found
    assert f"receipts: 2 have the request_id '{ids(3)[5:]}'" in found


NO_UTF8 = "CAST(x'61ff' AS TEXT)"
OTHER_TYPES: dict[str, tuple[str, str]] = {
    "bytes as text": (of(3, "signed_bytes = CAST(signed_bytes AS TEXT)"), "its column signed_bytes has '{"),
    "bytes as a number": (of(3, "signed_bytes = 7"), "its column signed_bytes has 7, of another type"),
    "a signature as text": (of(3, "signature = 'x'"), "its column signature has 'x', of another"),
    "a hash as text": (of(3, "signed_sha256 = 'x'"), "its column signed_sha256 has 'x', of another"),
    "a number as text": (of(3, "created_unix_ns = 'x'"), "its column created_unix_ns has 'x', of another"),
    "a place as text": (of(3, "seq = 'x'"), "its column seq has 'x', of another"),
    "a statement as bytes": (of(3, "statement = x'00ff'"), "its column statement has b'\\x00\\xff', of another"),
    "a statement's signature as bytes": (of(3, "statement_signature = x'00'"), "its column statement_signature has b'"),
    "an id as bytes": (of(3, "receipt_id = x'00'"), "its column receipt_id has b'"),
    "an account as bytes": (of(3, "account = x'00'"), "its column account has b'"),
    "no UTF-8 in a tag": (of(3, f"customer_tag = {NO_UTF8}"), "its column customer_tag has b'a\\xff', of another"),
    "no UTF-8 in a statement": (of(3, f"statement = {NO_UTF8}"), "its column statement has b'a\\xff', of another"),
    "an amount as text": (
        f"UPDATE entries SET amount = 'x' WHERE {OF_THREE} AND amount > 0",
        f"transaction {ids(3)}: its column amount has 'x', of another",
    ),
    "half an amount": (
        f"UPDATE entries SET amount = amount + 0.5 WHERE {OF_THREE}",
        f"transaction {ids(3)}: its column amount has 310000.5, of another",
    ),
    "no UTF-8 in a transaction": (
        f"UPDATE entries SET transaction_id = {NO_UTF8} WHERE {OF_THREE}",
        "transaction b'a\\xff': its column transaction_id has b'a\\xff', of another",
    ),
    "a book account as bytes": (
        f"UPDATE entries SET book_account = x'00' WHERE {OF_THREE} AND book_account = 'revenue'",
        f"transaction {ids(3)}: its column book_account has b'",
    ),
    "a failure's joules as text": (
        "UPDATE failed_attempts SET energy_microjoules = 'x'",
        "its column energy_microjoules has 'x', of another",
    ),
    "a failure's hash as text": (
        "UPDATE failed_attempts SET settlement_sha256 = 'x'",
        "failed:: its column settlement_sha256 has 'x', of another",
    ),
    "a failure's statement as bytes": ("UPDATE failed_attempts SET statement = x'00'", "its column statement has b'"),
    "what is reversed as bytes": (f"UPDATE reversals SET reverses = x'00' WHERE {OF_TWO}", "its column reverses has"),
    "no UTF-8 in a reason": (f"UPDATE reversals SET reason = {NO_UTF8}", "its column reason has b'a\\xff', of another"),
    "no UTF-8 in an account": (
        f"UPDATE accounts SET account = {NO_UTF8} WHERE account = 'acme'",
        "its column account has b'a\\xff', of another",
    ),
}


@pytest.mark.parametrize("what", OTHER_TYPES)
def test_what_is_of_another_type_is_found_and_the_check_goes_on(
    what: str, sound_file: Path, tmp_path: Path, group
) -> None:
    """SQLite takes any type in any column."""
    statement, says = OTHER_TYPES[what]
    path = tmp_path / "ledger.sqlite3"
    shutil.copy(sound_file, path)
    with tampering(f"sqlite:///{path}") as connection:
        connection.execute(text(statement))
    report = checked(f"sqlite:///{path}", group.public_key)
    assert says in "\n".join(report.findings)
    assert (report.receipts, report.failed_attempts, report.reversals, report.transactions) == (11, 1, 2, 15)


def test_a_unit_that_is_none_is_found(loose_url: str, group) -> None:
    with tampering(loose_url) as connection:
        loosen(connection, "entries")
        connection.execute(text(f"UPDATE entries SET unit = 'joules' WHERE {OF_THREE} AND unit = 'microjoules'"))
    found = checked(loose_url, group.public_key).findings
    assert f"transaction {ids(3)}: an entry has the unit 'joules'" in found


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


def test_two_attempts_at_a_request_of_which_one_is_charged(tmp_path: Path, group, make_settlement) -> None:
    """Both meters stated theirs; the one that isn't charged is checked against its own statement."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    chain = StatementChain(MeterKey(bytes(range(32))), None)
    ledger = opened(url, group.key_id)
    ledger.create_key("acme", "test")
    for _ in range(2):
        settlement = make_settlement(1)
        statement = chain.state(
            request_id=settlement.request_id,
            outcome="finished",
            microjoules=settlement.energy.total_microjoules,
            counted_microjoules=10**9,
            open_ns=0,
        )
        ledger.settle([dataclasses.replace(settlement, statement=statement)])
    ledger.close()
    assert checked(url, group.public_key).findings == ()
    with tampering(url) as connection:
        connection.execute(text("UPDATE failed_attempts SET energy_microjoules = 5"))
        connection.execute(text("UPDATE entries SET amount = 5 * sign(amount) WHERE transaction_id LIKE 'failed:%'"))
    (found,) = checked(url, group.public_key).findings
    assert "its energy is 5, its meter states 310000" in found
