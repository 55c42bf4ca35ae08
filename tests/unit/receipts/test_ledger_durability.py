"""What was acknowledged is there, one writer at a time, and trouble is said and loses nothing. On both databases."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import opened_ledger
import pytest
from opened_ledger import CHARGE_USD_PICOS, imbalance, opened, rows, settle
from past_the_ledger import direct, tampering
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from receipts.document import receipt_from_signed_bytes
from receipts.errors import LedgerInUse, LedgerUnavailable, LedgerUnusable, SettlementRefused
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_chains import heads_statement
from receipts.ledger_schema import metadata, receipts

YEAR_NS = 365 * 86_400 * 10**9
ROOT = Path(opened_ledger.__file__).parents[2]
_PATHS = [str(ROOT), str(ROOT / "tests" / "engines"), str(Path(__file__).parent)]
_CHILD = f"""
import os, sys
sys.path[:0] = {_PATHS!r}
from conftest import settlement
from receipts.ledger import Ledger
ledger = Ledger.open(sys.argv[1], wall_clock_ns=lambda: 0, random_bytes=os.urandom, key_id="0" * 16)
ledger.create_key("acme", "")
for number in range(1, 100_000):
    for stored in ledger.settle([settlement(number), settlement(number + 1)]):
        print(stored.receipt_id, flush=True)
"""
_SECOND_WRITER = f"""
import os, sys
sys.path[:0] = {_PATHS!r}
from receipts.ledger import Ledger
from receipts.errors import LedgerInUse
try:
    Ledger.open(sys.argv[1], wall_clock_ns=lambda: 0, random_bytes=os.urandom, key_id="")
except LedgerInUse as refused:
    print(refused)
"""


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = opened(ledger_url)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


def check_all_there(ledger: Ledger, acknowledged: set[str]) -> int:
    """Every acknowledged receipt once, chains without gaps, books that balance; gives acme's length."""
    stored = [each for each in ledger.unsigned(100_000) if each.account == "acme"]
    assert {each.receipt_id for each in stored} >= acknowledged
    assert [each.seq for each in stored] == list(range(1, len(stored) + 1))
    previous = None
    for each in stored:
        assert receipt_from_signed_bytes(each.signed_bytes).chain.prev_sha256 == previous
        previous = hashlib.sha256(each.signed_bytes).hexdigest()
    assert imbalance(ledger) == []
    assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - len(stored) * CHARGE_USD_PICOS
    return len(stored)


@contextmanager
def held_by_another(url: str) -> Iterator[None]:
    """As by a backup, a shell or a maintenance job."""
    with direct(url) as other:
        if other.dialect.name == "sqlite":
            other.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            other.execute(text("LOCK TABLE receipts, entries IN EXCLUSIVE MODE"))
        yield


def wait_for_locks(connection: Connection, milliseconds: int) -> None:
    """How long the ledger's own connection does."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}")
    else:
        connection.execute(text(f"SET lock_timeout = {milliseconds}"))


class TestDurability:
    def test_all_is_there_after_reopening(self, ledger_url: str, ledger: Ledger, make_settlement) -> None:
        key = ledger.create_key("acme", "").secret
        (first,) = settle(ledger, make_settlement(1))
        ledger.close()
        ledger.close()
        with pytest.raises(LedgerUnusable, match="the ledger is closed"):
            ledger.has_keys()
        again = opened(ledger_url)
        assert again.key_of(key).account == "acme"
        assert again.receipt(first.receipt_id, "acme") == first
        assert settle(again, make_settlement(2))[0].seq == 2
        again.close()

    def test_a_killed_writer_leaves_whole_receipts_and_no_lock(self, ledger_url: str) -> None:
        """The child settles until it is killed; each receipt that it acknowledged is there, each chain is whole."""
        child = subprocess.Popen([sys.executable, "-c", _CHILD, ledger_url], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(60)]
        child.kill()
        acknowledged += [line.strip() for line in child.stdout if line.endswith("\n")]
        child.wait()
        child.stdout.close()
        ledger = opened_when_free(ledger_url)
        assert check_all_there(ledger, set(acknowledged)) >= 60 / 2
        ledger.close()

    def test_a_second_writer_is_refused_and_told_who_the_first_is(self, ledger_url: str, ledger: Ledger) -> None:
        command = [sys.executable, "-c", _SECOND_WRITER, ledger_url]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert f"process {os.getpid()}" in said
        assert said.endswith("it takes one writer\n")
        with pytest.raises(LedgerInUse, match=r"is in use by .* it takes one writer"):
            opened(ledger_url)
        ledger.close()
        opened(ledger_url).close()


def opened_when_free(url: str) -> Ledger:
    """A server needs a moment to see that a killed process is gone; the ledger actor tries again too."""
    for _ in range(1000):
        try:
            return opened(url)
        except LedgerInUse:
            continue
    return opened(url)


class TestTrouble:
    def test_a_locked_database_is_said_to_be_so_and_loses_nothing(
        self, ledger_url: str, ledger: Ledger, make_settlement
    ) -> None:
        with ledger._database.transaction() as connection:
            wait_for_locks(connection, 10)
        with held_by_another(ledger_url):
            with pytest.raises(LedgerUnavailable, match=r"did not take it: .*(database is locked|lock timeout)"):
                ledger.settle([make_settlement(1)])
            assert ledger.has_keys(), "reading goes on"
        assert settle(ledger, make_settlement(1))[0].seq == 1

    def test_another_programs_database_is_left_alone(self, empty_url: str) -> None:
        with direct(empty_url) as other:
            other.execute(text("CREATE TABLE theirs (x int)"))
        with pytest.raises(LedgerUnusable, match=r"has tables \(theirs …\) but is not a ledger"):
            opened(empty_url)
        with direct(empty_url) as other:
            assert other.execute(text("SELECT * FROM theirs")).all() == []

    def test_a_later_versions_ledger_is_left_alone(self, ledger_url: str, ledger: Ledger) -> None:
        ledger.close()
        with direct(ledger_url) as later:
            later.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(LedgerUnusable, match="schema revision '9999'; this program knows them up to '0004'"):
            opened(ledger_url)

    def test_a_clock_that_jumps_by_years_leaves_chain_and_books_whole(self, ledger_url: str, make_settlement) -> None:
        now = 1_782_219_900_000_000_000
        moments = iter([now, now, now + 30 * YEAR_NS, 0, now - 40 * YEAR_NS, now + 1])
        ledger = opened(ledger_url, wall_clock_ns=lambda: next(moments))
        ledger.create_key("acme", "")
        started = (now, now + 30 * YEAR_NS, 1, now - 40 * YEAR_NS, now + 2)
        stored = [
            settle(ledger, make_settlement(number, start_unix_ns=start_unix_ns))[0]
            for number, start_unix_ns in enumerate(started, start=1)
        ]
        assert [each.seq for each in stored] == [1, 2, 3, 4, 5]
        assert check_all_there(ledger, {each.receipt_id for each in stored}) == 5
        created = [row[0] for row in rows(ledger, receipts.c.created_unix_ns)]
        assert created == [now, now + 30 * YEAR_NS, 0, now - 40 * YEAR_NS, now + 1], "as the clock said"
        assert ledger.unsigned(10) == stored, "in the order of storing, whatever the clock said"
        ledger.close()

    @pytest.mark.parametrize(
        "url", ["nonsense", "", "sqlite", "postgresql//me:geheim@h/d", "postgresql://me:geheim@h:x/d"]
    )
    def test_a_url_that_is_none_is_said_to_be_so_and_not_repeated(self, url: str) -> None:
        with pytest.raises(LedgerUnusable, match="not a database URL; it looks like") as raised:
            opened(url)
        assert "geheim" not in f"{raised.value!r}{raised.value.__cause__!r}"

    def test_another_kind_of_database_is_named(self) -> None:
        with pytest.raises(LedgerUnusable, match="on SQLite or PostgreSQL, not on mysql"):
            opened("mysql://me:geheim@h/d")


FLIPS = {
    "a byte of the signed bytes": "UPDATE receipts SET signed_bytes = :flipped WHERE seq = 2 AND account = 'acme'",
    "the stored hash": "UPDATE receipts SET signed_sha256 = :hash WHERE seq = 2 AND account = 'acme'",
    "its place in the chain": "UPDATE receipts SET seq = 7 WHERE seq = 2 AND account = 'acme'",
    "whose it is": "UPDATE receipts SET account = 'acme' WHERE account = 'third'",
    "no receipt at all": "UPDATE receipts SET signed_bytes = :other, signed_sha256 = :its_hash "
    "WHERE seq = 2 AND account = 'acme'",
}


@pytest.mark.parametrize("flip", FLIPS)
def test_nothing_is_built_on_a_damaged_head_and_other_accounts_go_on(
    ledger_url: str, ledger: Ledger, make_settlement, flip: str
) -> None:
    ledger.create_key("third", "")
    settle(ledger, make_settlement(1), make_settlement(2), make_settlement(3, "other"))
    settle(ledger, *(make_settlement(number, "third") for number in (11, 12, 13)))
    ledger.close()
    with tampering(ledger_url) as connection:
        if flip == "whose it is":  # its first two stay, so that its third lands behind acme's
            connection.execute(text("UPDATE receipts SET account = 'gone' WHERE account = 'third' AND seq < 3"))
        before = connection.execute(
            text("SELECT signed_bytes FROM receipts WHERE seq = 2 AND account = 'acme'")
        ).scalar()
        flipped = bytearray(before)
        flipped[500] ^= 1
        values = {
            "flipped": bytes(flipped),
            "hash": bytes(32),
            "other": b"{}",
            "its_hash": hashlib.sha256(b"{}").digest(),
        }
        statement = text(FLIPS[flip])
        connection.execute(statement, {name: values[name] for name in values if f":{name}" in FLIPS[flip]})
    again = opened(ledger_url)
    head = {"its place in the chain": 7, "whose it is": 3}.get(flip, 2)
    with pytest.raises(
        SettlementRefused, match=f"receipt {head} of account acme, the last of its chain, is damaged"
    ) as no:
        again.settle([make_settlement(4, "other"), make_settlement(5)])
    assert no.value.request_id == f"{5:032x}"
    assert "jc ledger check" in str(no.value)
    assert settle(again, make_settlement(4, "other"))[0].seq == 2
    with tampering(ledger_url) as connection:
        if flip not in ("its place in the chain", "whose it is"):
            connection.execute(
                text("UPDATE receipts SET signed_bytes = :b, signed_sha256 = :h WHERE seq = 2 AND account = 'acme'"),
                {"b": before, "h": hashlib.sha256(before).digest()},
            )
        else:
            connection.execute(text("UPDATE receipts SET seq = 2 WHERE seq = 7"))
            connection.execute(text("UPDATE receipts SET account = 'third' WHERE seq = 3 AND account = 'acme'"))
    assert settle(again, make_settlement(5))[0].seq == 3, "once it is mended, what was refused is stored"
    again.close()


def test_a_head_is_examined_once_and_not_at_every_commit(ledger_url: str, ledger: Ledger, make_settlement) -> None:
    """What this writer stored itself it trusts for as long as the hash is the one it wrote."""
    settle(ledger, make_settlement(1))
    with tampering(ledger_url) as connection:
        connection.execute(text("UPDATE receipts SET signed_bytes = :nothing"), {"nothing": b""})
    assert settle(ledger, make_settlement(2))[0].seq == 2
    ledger.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries",
        "UPDATE entries SET amount = 1",
        "DELETE FROM receipts",
        "UPDATE receipts SET signed_bytes = :bytes",
        "UPDATE receipts SET seq = seq + 100",
        "UPDATE receipts SET account = 'other'",
        "UPDATE receipts SET signature = NULL WHERE signature IS NOT NULL",
        "UPDATE receipts SET signature = :bytes WHERE signature IS NOT NULL",
        "DELETE FROM accounts",
        "DELETE FROM api_keys",
        "UPDATE receipts SET statement = '{}'",
        "UPDATE receipts SET statement_signature = 'ab'",
        "UPDATE receipts SET end_unix_ns = 1",
        "UPDATE receipts SET customer_tag = 'mine'",
        "UPDATE receipts SET model = NULL",
        "UPDATE receipts SET region = 'eu', signature = :bytes",
        "DELETE FROM failed_attempts",
        "UPDATE failed_attempts SET energy_microjoules = 0",
        "DELETE FROM reversals",
        "UPDATE reversals SET reason = 'another'",
        "UPDATE receipts SET created_unix_ns = 1 WHERE signature IS NULL",
        "UPDATE receipts SET signature = :bytes WHERE signature IS NULL",
        "UPDATE accounts SET account = 'mine' WHERE account = 'unused'",
        "UPDATE accounts SET created_unix_ns = 1",
        "UPDATE api_keys SET account = 'other'",
        "UPDATE api_keys SET sha256 = :bytes WHERE name = 'revoked'",
        "UPDATE api_keys SET revoked_unix_ns = 9, name = 'mine'",
        "UPDATE api_keys SET revoked_unix_ns = NULL WHERE name = 'revoked'",
        "UPDATE api_keys SET revoked_unix_ns = 9 WHERE name = 'revoked'",
    ],
)
def test_history_cannot_be_changed_even_past_this_program(
    ledger_url: str, ledger: Ledger, make_settlement, statement: str
) -> None:
    stored = settle(ledger, make_settlement(1))[0]
    ledger.settle([make_settlement(2, outcome="failed")])
    ledger.reverse(stored.receipt_id, "tried out")
    ledger.attach_signatures({stored.receipt_id: b"\x01" * 64})
    settle(ledger, make_settlement(3))
    ledger.create_key("acme", "revoked")
    with direct(ledger_url) as other:
        other.execute(text("INSERT INTO accounts VALUES ('unused', 0)"))
        other.execute(text("UPDATE api_keys SET revoked_unix_ns = 7 WHERE name = 'revoked'"))
    before = [rows(ledger, table) for table in metadata.sorted_tables]
    values = {"bytes": b"\x00"} if ":bytes" in statement else {}
    with (
        pytest.raises(IntegrityError, match=r"append-only|its signature once|is revoked once"),
        direct(ledger_url) as other,
    ):
        other.execute(text(statement), values)
    assert [rows(ledger, table) for table in metadata.sorted_tables] == before


def test_a_long_chain_is_not_walked_for_its_end(ledger_url: str, ledger: Ledger, make_settlement) -> None:
    for first in range(1, 2001, 250):
        settle(ledger, *(make_settlement(number) for number in range(first, first + 250)))
    with ledger._database.transaction() as connection:
        statement = str(heads_statement(["acme", "other"]).compile(connection, compile_kwargs={"literal_binds": True}))
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        looked_at = [str(tuple(row)) for row in connection.exec_driver_sql(explain + statement.replace("%", "%%"))]
    plan = "\n".join(looked_at)
    assert "SCAN receipts" not in plan
    assert "Seq Scan on receipts" not in plan
    assert "Sort" not in plan.replace("Sort Key", "")
    assert "TEMP B-TREE" not in plan
    assert plan.count("receipts") >= 2, plan
