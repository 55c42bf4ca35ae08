"""What is particular to a ledger in a file: the disk, the file itself, and who may read it."""

import re
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import opened_ledger
import pytest
from opened_ledger import imbalance, opened, rows, settle
from past_the_ledger import tampering
from sqlalchemy import text

from metering.settlement import Settlement
from metering.statements import MeterKey, SignedStatement, StatementChain
from receipts import ledger as ledger_module
from receipts.errors import DamagedReceipt, LedgerInUse, LedgerUnavailable, LedgerUnusable, SettlementRefused
from receipts.ledger import Ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_schema import metadata

ROOT = Path(opened_ledger.__file__).parents[2]
_FULL_DISK = f"""
import os, resource, signal, sys
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "engines"), str(Path(__file__).parent)]!r}
from conftest import settlement
from receipts.errors import LedgerUnavailable
from receipts.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger.open(sys.argv[1], wall_clock_ns=lambda: 0, random_bytes=os.urandom, key_id="0" * 16)
ledger.create_key("acme", "")
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
number = 0
try:
    while True:
        number += 1
        print(ledger.settle([settlement(number)])[0].receipt_id, flush=True)
except LedgerUnavailable as full:
    print(full, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(ledger.settle([settlement(number)])[0].receipt_id, flush=True)
ledger.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = opened(f"sqlite:///{path}")
    ledger.create_key("acme", "test")
    yield ledger
    ledger.close()


def settle_many(ledger: Ledger, settlements: Iterable[Settlement]) -> None:
    """A commit each."""
    for each in settlements:
        ledger.settle([each])


def test_commits_are_synced_to_disk(ledger: Ledger) -> None:
    with ledger._database.transaction() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_the_files_are_for_their_owner_only(path: Path, ledger: Ledger, make_settlement) -> None:
    settle(ledger, make_settlement(1))
    for each in path.parent.iterdir():
        assert each.stat().st_mode & 0o077 == 0, each.name


def test_a_ledger_may_be_in_memory() -> None:
    ledger = opened("sqlite://")
    assert not ledger.has_keys()
    ledger.close()


def test_a_full_database_is_said_to_be_so_and_loses_nothing(ledger: Ledger, make_settlement) -> None:
    (first,) = settle(ledger, make_settlement(1))
    with ledger._database.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerUnavailable, match="database or disk is full"):
        settle_many(ledger, map(make_settlement, range(2, 200)))
    stored = ledger.unsigned(1000)
    assert stored[0] == first
    assert imbalance(ledger) == []
    with ledger._database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert settle(ledger, make_settlement(1000))[0].seq == len(stored) + 1


def test_a_disk_that_takes_no_more_loses_nothing_and_the_ledger_goes_on_when_it_does(path: Path) -> None:
    """The write-ahead log may not grow: what a disk does in the midst of a write."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, f"sqlite:///{path}"], capture_output=True, text=True, check=True, timeout=60
    )
    *acknowledged, said, after = done.stdout.split("\n")[:-1]
    assert said.startswith("the ledger's database did not take it: "), said
    assert len(acknowledged) >= 5
    ledger = opened(f"sqlite:///{path}")
    stored = ledger.unsigned(10_000)
    assert [each.receipt_id for each in stored] == [*acknowledged, after], "the one that failed is stored once, later"
    assert [each.seq for each in stored] == list(range(1, len(stored) + 1))
    assert imbalance(ledger) == []
    ledger.close()


def test_no_statement_or_value_is_in_an_error(ledger: Ledger, make_settlement) -> None:
    with ledger._database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(LedgerUnavailable) as raised:
        settle_many(ledger, map(make_settlement, range(1, 200)))
    assert "INSERT" not in str(raised.value)
    assert "acme" not in f"{raised.value}{raised.value.__cause__}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"this is no database, whatever its name says. " * 100, "file is not a database"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "damaged or not a ledger"),
    ],
)
def test_a_file_that_is_no_database_is_left_alone(path: Path, content: bytes, says: str) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerUnusable, match=says):
        opened(f"sqlite:///{path}")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        # Each in the way of a row by another of its unique columns; what is not named here is that row's own.
        "INSERT OR REPLACE INTO accounts SELECT account, 1 FROM accounts",
        "INSERT OR REPLACE INTO accounts (rowid, account, created_unix_ns) SELECT rowid, 'mine', 1 FROM accounts",
        (
            "INSERT OR REPLACE INTO api_keys SELECT sha256, account, 'mine', 1, NULL, 'key_1', scopes, NULL "
            "FROM api_keys"
        ),
        "INSERT OR REPLACE INTO api_keys SELECT x'00', account, 'mine', 1, NULL, key_id, scopes, NULL FROM api_keys",
        (
            "INSERT OR REPLACE INTO api_keys (rowid, sha256, account, name, created_unix_ns) "
            "SELECT rowid, x'00', account, 'mine', 1 FROM api_keys"
        ),
        "INSERT OR REPLACE INTO receipts {columns} SELECT position, 'x', 'acme', 'x', 90, {rest}",
        "INSERT OR REPLACE INTO receipts {columns} SELECT 90, receipt_id, 'acme', 'x', 90, {rest}",
        "INSERT OR REPLACE INTO receipts {columns} SELECT 90, 'x', account, request_id, 90, {rest}",
        "INSERT OR REPLACE INTO receipts {columns} SELECT 90, 'x', account, 'x', seq, {rest}",
        (
            "INSERT OR REPLACE INTO failed_attempts SELECT settlement_sha256, account, request_id, 0, 1, NULL, NULL "
            "FROM failed_attempts"
        ),
        (
            "INSERT OR REPLACE INTO failed_attempts (rowid, settlement_sha256, account, request_id, created_unix_ns) "
            "SELECT rowid, x'00', account, request_id, 1 FROM failed_attempts"
        ),
        "INSERT OR REPLACE INTO entries SELECT transaction_id, unit, book_account, amount * 9, 1 FROM entries",
        (
            "REPLACE INTO entries (rowid, transaction_id, unit, book_account, amount, created_unix_ns) "
            "SELECT rowid, 'mine', unit, book_account, amount, 1 FROM entries"
        ),
        "INSERT OR REPLACE INTO reversals SELECT transaction_id, 'x', 'mine', 1 FROM reversals",
        "INSERT OR REPLACE INTO reversals SELECT 'x', reverses, 'mine', 1 FROM reversals",
        (
            "INSERT OR REPLACE INTO reversals (rowid, transaction_id, reverses, reason, created_unix_ns) "
            "SELECT rowid, 'x', 'x', 'mine', 1 FROM reversals"
        ),
        "UPDATE OR REPLACE accounts SET account = 'acme' WHERE account = 'other'",
        "UPDATE OR REPLACE api_keys SET rowid = 1 WHERE rowid = 2",
        "UPDATE OR REPLACE api_keys SET rowid = 1, revoked_unix_ns = 9 WHERE rowid = 2",
        "UPDATE OR REPLACE receipts SET position = 1 WHERE position = 2",
        "UPDATE OR REPLACE receipts SET receipt_id = (SELECT receipt_id FROM receipts WHERE seq = 1) WHERE seq = 2",
        "UPDATE OR REPLACE failed_attempts SET rowid = 1 WHERE rowid = 2",
        "UPDATE OR REPLACE entries SET rowid = 1 WHERE rowid = 2",
        "UPDATE OR REPLACE reversals SET rowid = 1 WHERE rowid = 2",
    ],
)
def test_no_row_is_replaced_past_the_triggers_either(
    path: Path, ledger: Ledger, make_settlement, statement: str
) -> None:
    """REPLACE deletes the row that is in its way, and fires no trigger on DELETE."""
    ledger.create_key("other", "test")
    stored = settle(ledger, make_settlement(1), make_settlement(2))
    for number in (3, 4):
        ledger.settle([make_settlement(number, outcome="failed")])
    for each in stored:
        ledger.reverse(each.receipt_id, "tried out")
    before = [rows(ledger, table) for table in metadata.sorted_tables]
    columns = "(position, receipt_id, account, request_id, seq, signed_bytes, signed_sha256, created_unix_ns)"
    rest = "signed_bytes, signed_sha256, 1 FROM receipts WHERE seq = 1"
    with sqlite3.connect(path) as other:
        with pytest.raises(sqlite3.IntegrityError, match=r"append-only|its signature once|is revoked once"):
            other.execute(statement.format(columns=columns, rest=rest))
        other.rollback()
    other.close()
    assert [rows(ledger, table) for table in metadata.sorted_tables] == before


# What a file can come to hold, whatever its columns are called.
DAMAGES = [
    "statement = CAST(x'ff00' AS TEXT)",
    "statement_signature = x'ff00'",
    "signed_bytes = 'text'",
    "signed_bytes = 7",
    "receipt_id = CAST(x'ff' AS TEXT)",
    "account = CAST(x'61ff' AS TEXT)",
    "seq = 'x'",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_named_and_the_other_accounts_receipts_can_be_read(
    path: Path, ledger: Ledger, make_settlement, damage: str
) -> None:
    ledger.create_key("other", "test")
    settle(ledger, make_settlement(1))
    (theirs,) = settle(ledger, make_settlement(2, "other"))
    left = ledger.balance_usd_picos("other")
    with tampering(f"sqlite:///{path}") as connection:
        connection.execute(text(f"UPDATE receipts SET {damage} WHERE account = 'acme'"))  # noqa: S608 - the test's own
    with pytest.raises(
        LedgerUnusable, match=r"receipt (1|x) of account a\S+ is damaged: its row cannot be read"
    ) as raised:
        ledger.unsigned(100)
    assert isinstance(raised.value, DamagedReceipt)
    assert ledger.unsigned(100, excluding=[raised.value.account]) == [theirs]
    assert ledger.cached_balance_usd_picos("other") == left, "nothing was written"


@pytest.mark.parametrize("damage", DAMAGES[:4])
def test_nothing_is_built_on_a_damaged_row_and_other_accounts_go_on(
    path: Path, ledger: Ledger, make_settlement, damage: str
) -> None:
    ledger.create_key("other", "test")
    settle(ledger, make_settlement(1))
    ledger.close()
    with tampering(f"sqlite:///{path}") as connection:
        connection.execute(text(f"UPDATE receipts SET {damage}"))  # noqa: S608 - the test's own
    again = opened(f"sqlite:///{path}")
    with pytest.raises(SettlementRefused, match=r"receipt 1 of account acme, .* is damaged: its row cannot be read"):
        again.settle([make_settlement(2, "other"), make_settlement(3)])
    with pytest.raises(SettlementRefused, match="receipt 1 of account acme is damaged") as refused:
        again.settle([make_settlement(2, "other"), make_settlement(1)])
    assert refused.value.request_id == make_settlement(1).request_id, "offered again, it leaves the batch alone"
    assert settle(again, make_settlement(2, "other"))[0].seq == 1
    again.close()


def test_a_reader_is_told_of_a_damaged_text_and_not_to_try_again(path: Path, ledger: Ledger, make_settlement) -> None:
    settle(ledger, make_settlement(1))
    with tampering(f"sqlite:///{path}") as connection:
        connection.execute(text("UPDATE receipts SET model = CAST('geheim' || x'ff' AS TEXT)"))
    reading = ReadingDatabase.open(f"sqlite:///{path}")
    says = "a text in the ledger's database is damaged.*; `jc ledger check` says where"
    with pytest.raises(LedgerUnusable, match=says) as raised, reading.snapshot() as connection:
        connection.scalar(text("SELECT model FROM receipts"))
    assert "geheim" not in f"{raised.value!r}{raised.value.__cause__!r}"
    reading.close()


def test_a_link_to_the_file_is_no_way_to_a_second_writer(path: Path, ledger: Ledger) -> None:
    (path.parent / "elsewhere").mkdir()
    link = path.parent / "elsewhere" / "link.sqlite3"
    link.symlink_to(path)
    with pytest.raises(LedgerInUse, match="is in use by process"):
        opened(f"sqlite:///{link}")
    ledger.close()
    opened(f"sqlite:///{link}").close()


def test_a_damaged_page_is_said_to_be_so_and_nothing_is_stored(path: Path, ledger: Ledger, make_settlement) -> None:
    settle(ledger, *(make_settlement(number) for number in range(1, 60)))
    with ledger._database.transaction() as connection:
        page_bytes = connection.exec_driver_sql("PRAGMA page_size").scalar()
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_receipts_2'"
        page = connection.exec_driver_sql(query).scalar()
    ledger.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * page_bytes : (page - 1) * page_bytes + 64] = bytes(range(64))
    path.write_bytes(content)
    damaged = opened(f"sqlite:///{path}")
    with pytest.raises(LedgerUnusable, match="damaged or not a ledger: database disk image is malformed"):
        damaged.settle([make_settlement(100)])
    damaged.close()
    assert path.read_bytes()[(page - 1) * page_bytes :] == content[(page - 1) * page_bytes :]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match=f"{tmp_path}/none/l.db cannot be opened: No such file"):
        opened(f"sqlite:///{tmp_path}/none/l.db")


def test_the_auditors_page_checks_the_meters_statements_in_a_ledger(tmp_path: Path, make_settlement) -> None:
    page = Path(ledger_module.__file__).with_name("README.md").read_text()
    _of_a_receipt, signatures, chains = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    chain = StatementChain(MeterKey(bytes(32)), None)
    failed, honest = (
        chain.state(request_id="1", outcome=outcome, microjoules=billed, counted_microjoules=1, open_ns=0)
        for outcome, billed in (("failed", None), ("finished", 1))
    )
    forged = SignedStatement(statement=failed.statement.replace(":1,", ":2,"), signature=failed.signature)
    for name, of_failed, passes in (("a", failed, True), ("b", forged, False)):
        folder = tmp_path / name
        folder.mkdir()
        ledger = opened(f"sqlite:///{folder}/ledger.sqlite3")
        ledger.create_key("acme", "test")
        ledger.settle([make_settlement(1, statement=honest)])
        ledger.settle([make_settlement(1, statement=of_failed, outcome="failed")])
        ledger.close()
        done = subprocess.run(
            [sys.executable, "-c", signatures], cwd=folder, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == passes, done.stderr
        assert ("BadSignatureError" in done.stderr) != passes
        path = [str(Path(ledger_module.__file__).parents[1])]
        script = f"import sys; sys.path[:0] = {path!r}\n{chains}"
        done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
        assert (done.stdout == "") == passes, done.stdout
        assert ("not signed by the meter" in done.stdout) != passes
