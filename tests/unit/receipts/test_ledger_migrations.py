# ruff: noqa: S608 - the statements are this file's own
"""Ledgers of earlier schemas: they open, keep what they hold, and end as a fresh one begins."""

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from past_the_ledger import direct
from postgres import PostgresServer
from sqlalchemy import Connection, create_engine, inspect, make_url, text

from metering.statements import MeterKey, StatementChain
from receipts.api_keys import SCOPES, key_hash, key_id_of_hash
from receipts.document import signed_bytes
from receipts.draft import RequestContext, draft_receipt
from receipts.errors import LedgerUnavailable, LedgerUnusable
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_check import check_ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_migrations import upgrade
from receipts.ledger_reader import LedgerReader
from receipts.ledger_schema import FIRST_REVISION, NEWEST_REVISION, metadata

FIRST_LEDGER = Path(__file__).parent / "data" / "ledger-v1.sql"
"""Dumped from a ledger that the program wrote before it had revisions: receipts 1 (signed) and 2, and one failure."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def waiting_ledger(path: Path) -> Path:
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_LEDGER.read_text())
    old.close()
    return path


@pytest.fixture
def first_ledger(waiting_ledger: Path, group) -> Path:
    """With all that it holds signed, as the program of that time leaves it when it is given the time."""
    with sqlite3.connect(waiting_ledger) as old:
        (pending,) = old.execute("SELECT signed_bytes FROM receipts WHERE signature IS NULL").fetchone()
        old.execute("UPDATE receipts SET signature = ? WHERE signature IS NULL", (group.sign(pending),))
    old.close()
    return waiting_ledger


def opened(path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{path}", wall_clock_ns=lambda: 7, random_bytes=os.urandom, key_id="0" * 16)


def made_by_revisions(path: Path, revision: str) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        upgrade(connection, FIRST_REVISION, to=revision)
    engine.dispose()


def shape(path: Path) -> dict[str, object]:
    """Columns, indexes and triggers, however the statements that made them were laid out."""
    with sqlite3.connect(path) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found: dict[str, object] = {
            table: (
                sorted(database.execute(f"PRAGMA table_xinfo({table})")),
                sorted(database.execute(f"PRAGMA foreign_key_list({table})")),
                sorted(
                    (unique, partial, *(column for _, _, column in database.execute(f"PRAGMA index_info({index})")))
                    for _, index, unique, _, partial in database.execute(f"PRAGMA index_list({table})")
                ),
            )
            for table in tables
            if table != "alembic_version"
        }
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' OR name = 'receipts_unsigned'"
        found |= {name: " ".join(sql.split()) for name, sql in database.execute(query)}
    database.close()
    return found


def revision_of(path: Path) -> str:
    with sqlite3.connect(path) as database:
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    database.close()
    return str(revision)


def test_a_ledger_of_the_first_schema_opens_and_goes_on(first_ledger: Path, group, make_settlement) -> None:
    ledger = opened(first_ledger)
    for seq in (1, 2):
        stored = ledger.receipt_at("acme", seq)
        assert stored.signature == group.sign(stored.signed_bytes)
        assert stored.statement is None
    assert ledger.unsigned(10) == []
    with ledger._database.transaction() as connection:
        found_by = connection.execute(text("SELECT end_unix_ns, model, region, customer_tag FROM receipts")).all()
    assert [(row[0] > 1.7e18, row[1], row[2]) for row in found_by] == [(True, "SmolLM2-135M-Instruct", "local")] * 2
    assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - 2 * 43_056
    chain = StatementChain(MeterKey(bytes(32)), None)
    statement = chain.state(
        request_id=f"{9:032x}", outcome="finished", microjoules=310_000, counted_microjoules=1, open_ns=0
    )
    (third,) = ledger.settle([make_settlement(9, statement=statement)])
    assert (third.seq, third.statement) == (3, statement)
    ledger.close()
    again = opened(first_ledger)
    assert again.receipt_at("acme", 3) == third
    again.close()
    assert revision_of(first_ledger) == NEWEST_REVISION


def test_what_the_first_ledger_booked_as_failed_stays_without_a_statement(first_ledger: Path) -> None:
    opened(first_ledger).close()
    with sqlite3.connect(first_ledger) as direct:
        rows = direct.execute("SELECT statement, statement_signature FROM failed_attempts").fetchall()
    direct.close()
    assert rows == [(None, None)]


def test_one_with_receipts_that_could_never_be_signed_is_refused_and_left_as_it_is(
    waiting_ledger: Path,
) -> None:
    before = shape(waiting_ledger)
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match=r"signature \(1\).* Run the earlier version .* or .* new data folder"):
            opened(waiting_ledger)
    assert shape(waiting_ledger) == before
    with sqlite3.connect(waiting_ledger) as old:
        assert old.execute("SELECT count(*) FROM receipts WHERE signature IS NULL").fetchone() == (1,)
    old.close()


def test_receipts_may_wait_in_a_ledger_whose_settlements_are_stated(first_ledger: Path, make_settlement) -> None:
    ledger = opened(first_ledger)
    (waiting,) = ledger.settle([make_settlement(9)])
    ledger.close()
    again = opened(first_ledger)
    assert again.unsigned(10) == [waiting]
    again.close()


@pytest.mark.parametrize("column", ["statement", "statement_signature"])
def test_a_stored_statement_cannot_be_changed(first_ledger: Path, make_settlement, column: str) -> None:
    ledger = opened(first_ledger)
    ledger.settle([make_settlement(9), make_settlement(10, outcome="failed")])
    ledger.close()
    for change, says in (
        (f"UPDATE receipts SET {column} = 'x' WHERE seq = 3", "its signature once"),
        (f"UPDATE failed_attempts SET {column} = 'x'", "append-only"),
    ):
        with sqlite3.connect(first_ledger) as direct, pytest.raises(sqlite3.IntegrityError, match=says):
            direct.execute(change)
        direct.close()


def test_the_first_revision_makes_what_the_program_then_made(tmp_path: Path, first_ledger: Path) -> None:
    made_by_revisions(tmp_path / "made", FIRST_REVISION)
    assert shape(tmp_path / "made") == shape(first_ledger)


def test_every_way_leads_to_the_same_schema(tmp_path: Path, first_ledger: Path) -> None:
    made_by_revisions(tmp_path / "made", NEWEST_REVISION)
    opened(tmp_path / "fresh").close()
    opened(first_ledger).close()
    made_by_revisions(tmp_path / "half-way", FIRST_REVISION)
    opened(tmp_path / "half-way").close()
    ways = [shape(each) for each in (tmp_path / "fresh", tmp_path / "made", tmp_path / "half-way", first_ledger)]
    assert ways == [ways[0]] * 4
    assert {revision_of(tmp_path / each) for each in ("fresh", "made", "half-way")} == {NEWEST_REVISION}


@pytest.fixture
def connection(first_ledger: Path) -> Iterator[Connection]:
    opened(first_ledger).close()
    engine = create_engine(f"sqlite:///{first_ledger}")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_alembic_finds_no_difference_to_the_tables_in_the_code(connection: Connection) -> None:
    assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_named_revisions_are_the_first_and_the_last() -> None:
    config = Config()
    config.set_main_option("script_location", "receipts:ledger_migrations")
    scripts = ScriptDirectory.from_config(config)
    assert (scripts.get_base(), scripts.get_heads()) == (FIRST_REVISION, [NEWEST_REVISION])


def test_a_migration_that_fails_changes_nothing(first_ledger: Path) -> None:
    """Its last step fails here: the trigger that it replaces is not there."""
    with sqlite3.connect(first_ledger) as direct:
        direct.execute("DROP TRIGGER receipts_update")
    direct.close()
    before = shape(first_ledger)
    with pytest.raises(LedgerUnavailable, match="no such trigger"):
        opened(first_ledger)
    assert shape(first_ledger) == before


def second_ledger(url: str, receipts: int, make_settlement) -> list[tuple[object, ...]]:
    """A ledger as revision 0002 left it, with so many receipts; gives what they are to be found by."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    found_by = []
    with engine.begin() as connection:
        upgrade(connection, FIRST_REVISION, to="0002")
        connection.execute(text("INSERT INTO accounts VALUES ('acme', 0)"))
        previous = None
        for seq in range(1, receipts + 1):
            tag = "büro" if seq % 2 else None
            settlement = make_settlement(seq, customer_tag=tag)
            context = RequestContext.from_json(settlement.context)
            receipt = draft_receipt(context, settlement, key_id="0" * 16, seq=seq, prev_sha256=previous)
            signed = signed_bytes(receipt)
            previous = hashlib.sha256(signed).hexdigest()
            row = {
                "receipt_id": receipt.receipt_id,
                "request_id": settlement.request_id,
                "seq": seq,
                "signed_bytes": signed,
                "signed_sha256": bytes.fromhex(previous),
                "statement": settlement.statement.statement,
                "statement_signature": settlement.statement.signature,
            }
            values = ", ".join(f":{name}" for name in row)
            connection.execute(
                text(f"INSERT INTO receipts ({', '.join(row)}, account, created_unix_ns) VALUES ({values}, 'acme', 0)"),
                row,
            )
            found_by.append((receipt.execution.end_unix_ns, "SmolLM2-135M-Instruct", "local", tag))
    engine.dispose()
    return found_by


def test_receipts_of_the_second_schema_are_found_by_what_their_bytes_say(empty_url: str, make_settlement) -> None:
    """More of them than are read at once, and on either database."""
    expected = second_ledger(empty_url, 2100, make_settlement)
    ledger = opened_at(empty_url)
    with ledger._database.transaction() as connection:
        found = connection.execute(
            text("SELECT end_unix_ns, model, region, customer_tag FROM receipts ORDER BY seq")
        ).all()
    assert [tuple(row) for row in found] == expected
    assert len(ledger.waiting()) == 2100
    (stored,) = ledger.settle([make_settlement(3000)])
    assert stored.seq == 2101
    ledger.close()


def test_a_damaged_receipt_is_named_and_nothing_is_changed(empty_url: str, make_settlement) -> None:
    second_ledger(empty_url, 3, make_settlement)
    with direct(empty_url) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER receipts_update"))
        connection.execute(text("UPDATE receipts SET signed_bytes = :half WHERE seq = 2"), {"half": b'{"typ":'})
        if connection.dialect.name == "sqlite":
            connection.execute(text("CREATE TRIGGER receipts_update BEFORE UPDATE ON receipts BEGIN SELECT 1; END"))
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="receipt 2 of account acme is damaged: its bytes are no receipt"):
            opened_at(empty_url)
    with direct(empty_url) as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0002"
        assert "model" not in {each["name"] for each in inspect(connection).get_columns("receipts")}


def opened_at(url: str) -> Ledger:
    return Ledger.open(url, wall_clock_ns=lambda: 7, random_bytes=os.urandom, key_id="0" * 16)


def postgres_shape(url: str) -> dict[str, object]:
    """Columns, constraints, indexes and triggers of all tables."""
    with direct(url) as connection:
        queries = {
            "columns": "SELECT table_name, column_name, data_type, is_nullable, character_maximum_length "
            "FROM information_schema.columns WHERE table_schema = 'public'",
            "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
            "constraints": "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace",
            "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
            "function": "SELECT regexp_replace(prosrc, '\\s+', ' ', 'g') FROM pg_proc WHERE proname = 'ledger_forbid'",
        }
        return {
            name: sorted(" ".join(str(tuple(row)).split()) for row in connection.exec_driver_sql(query))
            for name, query in queries.items()
        }


def test_on_postgresql_too_every_way_leads_to_the_same_schema(postgres_server: PostgresServer, make_settlement) -> None:
    fresh, made = (postgres_server.url(postgres_server.new_database()) for _ in range(2))
    opened_at(fresh).close()
    second_ledger(made, 1, make_settlement)
    opened_at(made).close()
    assert postgres_shape(made) == postgres_shape(fresh)
    assert len(postgres_shape(fresh)["triggers"]) == 9 + 9 + 9
    engine = create_engine(made.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
    for url in (fresh, made):
        postgres_server.drop_database(make_url(url).database)


def test_a_current_ledger_opens_without_alembic(path: Path) -> None:
    opened(path).close()
    script = """
import os, sys
from receipts.ledger import Ledger
Ledger.open(f"sqlite:///{sys.argv[1]}", wall_clock_ns=lambda: 0, random_bytes=os.urandom, key_id="0" * 16).close()
print([name for name in sys.modules if name.startswith("alembic")])
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_a_third_ledgers_keys_have_all_scopes_and_its_receipts_are_summed_up(empty_url: str, make_settlement) -> None:
    """Made as revision 0003 left it, with a key that is live and one that is revoked."""
    second_ledger(empty_url, 3, make_settlement)
    engine = create_engine(empty_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        upgrade(connection, "0002", to="0003")
        for name, revoked in (("live", None), ("gone", 5)):
            connection.execute(
                text("INSERT INTO api_keys VALUES (:sha256, 'acme', :name, 3, :revoked)"),
                {"sha256": key_hash(name), "name": name, "revoked": revoked},
            )
    engine.dispose()
    ledger = opened_at(empty_url)
    key = ledger.key_of("live")
    assert key is not None
    assert (key.account, key.scopes, key.created_unix_ns, key.expires_unix_ns) == ("acme", SCOPES, 3, None)
    assert key.key_id == key_id_of_hash(key_hash("live"))
    assert ledger.key_of("gone") is None
    assert {each.name: each.revoked_unix_ns for each in ledger.list_keys("acme")} == {"live": None, "gone": 5}
    assert ledger.revoke_key("acme", key.key_id)
    ledger.settle([make_settlement(4, api_key_id=key.key_id)])
    ledger.close()
    reader = LedgerReader.open(empty_url)
    usage = reader.usage("acme", 0, 2**62, "key")
    reader.close()
    assert [row.group for row in usage.rows] == [None, key.key_id]
    old, new = usage.rows
    names = ("input_tokens", "output_tokens", "microjoules", "carbon_picograms", "usd_picos")
    for name in names:
        assert getattr(old, name) == 3 * getattr(new, name) > 0
    database = ReadingDatabase.open(empty_url)
    findings = check_ledger(database, None).findings
    database.close()
    assert not [each for each in findings if "column" in each or "api_keys" in each], findings


def test_a_ledger_from_before_placement_keeps_its_bytes_through_every_revision(first_ledger: Path) -> None:
    with sqlite3.connect(first_ledger) as old:
        before = old.execute("SELECT signed_bytes, signature FROM receipts ORDER BY seq").fetchall()
    old.close()
    ledger = opened(first_ledger)
    found = [ledger.receipt_at("acme", seq) for seq in (1, 2)]
    ledger.close()
    assert [(each.signed_bytes, each.signature) for each in found] == before
