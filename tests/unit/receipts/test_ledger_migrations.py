"""Ledgers of earlier schemas: they open, keep what they hold, and end as a fresh one begins."""

import io
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from metering.statements import MeterKey, StatementChain
from receipts.errors import LedgerUnavailable, LedgerUnusable
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_migrations import upgrade
from receipts.ledger_migrations.versions import v0001_first_schema, v0002_meter_statement
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
        (f"UPDATE receipts SET {column} = 'x' WHERE seq = 3", "its signature once"),  # noqa: S608 - literals of this test
        (f"UPDATE failed_attempts SET {column} = 'x'", "append-only"),  # noqa: S608
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


def test_the_revisions_are_sql_for_postgresql_too() -> None:
    """Written out only: there is no server here. SQLite's triggers are left out."""
    written = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written})
    with Operations.context(context):
        for revision in (v0001_first_schema, v0002_meter_statement):
            revision.upgrade()
    assert "position BIGSERIAL NOT NULL" in written.getvalue()
    for table in ("receipts", "failed_attempts"):
        assert f"ALTER TABLE {table} ADD COLUMN statement TEXT" in written.getvalue()
    assert "TRIGGER" not in written.getvalue()


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
