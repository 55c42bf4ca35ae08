"""The ledger: chains without gaps, books that balance, nothing twice, nothing half."""

import hashlib
import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from metering.settlement import Settlement
from metering.statements import MeterKey, SignedStatement, StatementChain
from receipts import ledger as ledger_module
from receipts.canonical import parse_strict
from receipts.document import document_from, receipt_from_signed_bytes
from receipts.errors import LedgerError, LedgerInUse, LedgerUnavailable, LedgerUnusable, SettlementRefused
from receipts.ledger import API_KEY_PREFIX, OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_schema import entries, failed_attempts, receipts
from receipts.stored_receipt import StoredReceipt
from receipts.verify import verify_paths

KEY_ID = "0123456789abcdef"
NOW_NS = 1_782_219_900_000_000_000
CHARGE_USD_PICOS = 43_056


def opened(path: Path | None = None, key_id: str = KEY_ID) -> Ledger:
    numbers = itertools.count(1)
    return Ledger.open(
        f"sqlite:///{path}" if path else "sqlite://",
        wall_clock_ns=lambda: NOW_NS,
        random_bytes=lambda size: hashlib.sha256(bytes([next(numbers)])).digest()[:size],
        key_id=key_id,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = opened(path)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


def rows(ledger: Ledger, *what) -> list[tuple]:
    with ledger._database.transaction() as connection:
        return [tuple(row) for row in connection.execute(select(*what))]


def imbalance(ledger: Ledger) -> list[tuple]:
    """Transactions that do not sum to zero."""
    sums = select(entries.c.transaction_id, entries.c.unit).group_by(entries.c.transaction_id, entries.c.unit)
    with ledger._database.transaction() as connection:
        return [tuple(row) for row in connection.execute(sums.having(func.sum(entries.c.amount) != 0))]


def book(ledger: Ledger, unit: str) -> dict[str, int]:
    """The balance of every account of one book."""
    balances: dict[str, int] = {}
    for account, its_unit, amount in rows(ledger, entries.c.book_account, entries.c.unit, entries.c.amount):
        if its_unit == unit:
            balances[account] = balances.get(account, 0) + amount
    return balances


def settle_many(ledger: Ledger, settlements: Iterable[Settlement]) -> None:
    """A commit each."""
    for each in settlements:
        ledger.settle([each])


def settle(ledger: Ledger, *settlements: Settlement) -> list[StoredReceipt]:
    stored = ledger.settle(settlements)
    assert all(isinstance(each, StoredReceipt) for each in stored)
    return [each for each in stored if each is not None]


class TestKeys:
    def test_a_key_opens_its_account(self, ledger: Ledger) -> None:
        key = ledger.create_key("acme", "second")
        assert key.startswith(API_KEY_PREFIX)
        assert len(key) == len(API_KEY_PREFIX) + 43
        assert ledger.account_of(key) == "acme"

    @pytest.mark.parametrize("key", ["", "jc_LIVE_", "jc_LIVE_" + "A" * 43, "\ud800", "x" * 100_000])
    def test_another_text_opens_none(self, ledger: Ledger, key: str) -> None:
        assert ledger.account_of(key) is None

    def test_only_the_hash_is_kept(self, path: Path, ledger: Ledger) -> None:
        key = ledger.create_key("acme", "secret one")
        ledger.close()
        assert key[len(API_KEY_PREFIX) :].encode() not in path.read_bytes()
        assert hashlib.sha256(key.encode()).digest() in path.read_bytes()

    def test_a_fresh_ledger_has_no_keys(self) -> None:
        ledger = opened()
        assert not ledger.has_keys()
        ledger.create_key("acme", "")
        assert ledger.has_keys()

    @pytest.mark.parametrize("account", ["", "-x", "a b", "a" * 129, "é", "a\n"])
    def test_an_account_needs_a_proper_name(self, ledger: Ledger, account: str) -> None:
        with pytest.raises(LedgerError, match="an account's name is"):
            ledger.create_key(account, "test")

    def test_an_account_begins_with_five_dollars_once(self, ledger: Ledger) -> None:
        ledger.create_key("acme", "again")
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS == 5 * 10**12
        assert ledger.balance_usd_picos("nobody") == 0


class TestSettle:
    def test_a_settlement_becomes_the_accounts_next_receipt(self, ledger: Ledger, make_settlement) -> None:
        first, second = settle(ledger, make_settlement(1), make_settlement(2))
        (third,) = settle(ledger, make_settlement(3))
        (elsewhere,) = settle(ledger, make_settlement(4, "other"))
        assert [each.seq for each in (first, second, third, elsewhere)] == [1, 2, 3, 1]
        assert first.receipt_id == f"rcpt_{1:032x}"
        previous = None
        for each in (first, second, third):
            receipt = receipt_from_signed_bytes(each.signed_bytes)
            assert receipt.chain.prev_sha256 == previous
            assert receipt.verification.key_id == KEY_ID
            previous = hashlib.sha256(each.signed_bytes).hexdigest()

    def test_results_are_in_the_order_asked(self, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(2))
        stored = settle(ledger, make_settlement(3), make_settlement(2), make_settlement(1), make_settlement(3))
        assert [int(each.receipt_id[5:], 16) for each in stored] == [3, 2, 1, 3]
        assert [each.seq for each in stored] == [2, 1, 3, 2]

    def test_a_redelivered_settlement_gets_the_same_receipt(self, ledger: Ledger, make_settlement) -> None:
        (first,) = settle(ledger, make_settlement(1))
        before = ledger.balance_usd_picos("acme")
        assert settle(ledger, make_settlement(1), make_settlement(1)) == [first, first]
        assert settle(ledger, make_settlement(1, duration_ns=1)) == [first]
        assert ledger.balance_usd_picos("acme") == before

    def test_the_charge_is_entered_twice(self, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(1), make_settlement(2), make_settlement(3, "other"))
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - 2 * CHARGE_USD_PICOS
        assert book(ledger, "microjoules") == {
            "meter": -930_000,
            "customer:acme": 620_000,
            "customer:other": 310_000,
        }
        assert book(ledger, "usd_picos") == {
            "customer:acme": OPENING_CREDIT_USD_PICOS - 2 * CHARGE_USD_PICOS,
            "customer:other": OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS,
            "opening-credits": -2 * OPENING_CREDIT_USD_PICOS,
            "revenue": 3 * CHARGE_USD_PICOS,
        }
        assert imbalance(ledger) == []

    def test_unknown_energy_is_on_no_book(self, ledger: Ledger, make_unavailable) -> None:
        before = rows(ledger, entries)
        (stored,) = settle(ledger, make_unavailable(1))
        assert receipt_from_signed_bytes(stored.signed_bytes).energy.total_joules is None
        assert rows(ledger, entries) == before

    def test_an_aborted_request_has_its_receipt(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1, outcome="aborted"))
        assert stored.seq == 1
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS

    def test_a_failed_attempt_is_the_meshs_cost_and_no_receipt(self, ledger: Ledger, make_settlement) -> None:
        failed = make_settlement(1, outcome="failed")
        assert ledger.settle([failed, failed]) == [None, None]
        assert ledger.settle([failed]) == [None]
        assert book(ledger, "microjoules") == {"meter": -310_000, "overhead": 310_000}
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS
        (stored,) = settle(ledger, make_settlement(1))
        assert stored.seq == 1
        late = make_settlement(1, outcome="failed", duration_ns=5)
        assert ledger.settle([failed, late]) == [stored, stored]
        assert book(ledger, "microjoules") == {"meter": -930_000, "overhead": 620_000, "customer:acme": 310_000}
        assert len(rows(ledger, failed_attempts)) == 2

    def test_a_failed_attempts_statement_is_kept(self, ledger: Ledger, make_settlement) -> None:
        failed = make_settlement(1, outcome="failed")
        ledger.settle([failed, make_settlement(1)])
        columns = failed_attempts.c.statement, failed_attempts.c.statement_signature
        assert rows(ledger, *columns) == [(failed.statement.statement, failed.statement.signature)]

    def test_without_a_statement_there_is_no_receipt(self, ledger: Ledger, make_settlement) -> None:
        """As the journal of a meter that didn't sign yet may still deliver it: an account must not wait for ever."""
        (stored,) = settle(ledger, make_settlement(1))
        for outcome in ("finished", "aborted"):
            with pytest.raises(SettlementRefused, match="without a statement of its meter") as refused:
                ledger.settle([make_settlement(2, statement=None, outcome=outcome)])
            assert refused.value.request_id == f"{2:032x}"
        assert ledger.receipt_at("acme", 2) is None
        assert ledger.settle([make_settlement(1, statement=None)]) == [stored], "what is settled stays settled"
        assert ledger.settle([make_settlement(3, statement=None, outcome="failed")]) == [None], "nothing waits for it"
        assert rows(ledger, failed_attempts.c.statement, failed_attempts.c.energy_microjoules) == [(None, 310_000)]

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"account": "nobody"}, "there is no account 'nobody'"),
            ({"context": b"{}"}, "not a request's context"),
            ({"start_unix_ns": 2**63}, "execution.start_unix_ns"),
            ({"receipt_id": f"rcpt_{9:032x}"}, "its context is that of rcpt_"),
        ],
    )
    def test_a_settlement_that_cannot_be_stored_is_named_and_stores_nothing(
        self, ledger: Ledger, make_settlement, wrong: dict, says: str
    ) -> None:
        before = rows(ledger, entries)
        with pytest.raises(SettlementRefused, match=says) as refused:
            ledger.settle([make_settlement(1), make_settlement(2, **wrong)])
        assert refused.value.request_id == f"{2:032x}"
        assert ledger.receipt(f"rcpt_{1:032x}", "acme") is None
        assert rows(ledger, entries) == before
        assert settle(ledger, make_settlement(1))[0].seq == 1

    def test_a_request_is_of_one_account(self, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(1))
        with pytest.raises(SettlementRefused, match="another account has a receipt of that id"):
            ledger.settle([make_settlement(1, "other")])

    def test_nothing_is_settled_by_nobody(self, ledger: Ledger) -> None:
        assert ledger.settle([]) == []


@given(
    batches=st.lists(
        st.lists(
            st.tuples(st.integers(1, 12), st.sampled_from(["finished", "aborted", "failed"])), min_size=1, max_size=6
        ),
        max_size=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_whatever_comes_how_often_it_may_the_books_balance_and_chains_have_no_gap(
    make_settlement, batches: list[list[tuple[int, str]]]
) -> None:
    ledger = opened()
    for account in ("a", "b"):
        ledger.create_key(account, "")
    served: dict[int, StoredReceipt] = {}
    for batch in batches:
        offered = [make_settlement(number, "ab"[number % 2], outcome=outcome) for number, outcome in batch]
        for (number, outcome), stored in zip(batch, ledger.settle(offered), strict=True):
            assert stored is None or served.setdefault(number, stored) == stored
            assert (stored is None) <= (outcome == "failed")
    assert imbalance(ledger) == []
    for account in ("a", "b"):
        chain = [each for number, each in served.items() if "ab"[number % 2] == account]
        assert sorted(each.seq for each in chain) == list(range(1, len(chain) + 1))
        assert ledger.balance_usd_picos(account) == OPENING_CREDIT_USD_PICOS - len(chain) * CHARGE_USD_PICOS
        hashes = {each.seq: hashlib.sha256(each.signed_bytes).hexdigest() for each in chain}
        for each in chain:
            assert receipt_from_signed_bytes(each.signed_bytes).chain.prev_sha256 == hashes.get(each.seq - 1)
    failures = {number for batch in batches for number, outcome in batch if outcome == "failed"}
    assert len(rows(ledger, failed_attempts)) == len(failures)
    ledger.close()


class TestSignatures:
    def test_receipts_wait_for_their_signature_in_order(self, ledger: Ledger, make_settlement) -> None:
        stored = settle(ledger, *(make_settlement(n, "acme" if n % 3 else "other") for n in range(1, 8)))
        assert ledger.unsigned(100) == stored
        assert ledger.unsigned(3) == stored[:3]
        assert ledger.unsigned(100, excluding=["other"]) == [each for each in stored if each.account == "acme"]
        assert ledger.unsigned_count() == 7
        ledger.attach_signatures({stored[1].receipt_id: bytes(64), stored[4].receipt_id: bytes(64)})
        assert ledger.unsigned(100) == [stored[n] for n in (0, 2, 3, 5, 6)]
        assert ledger.unsigned_count() == 5

    def test_the_first_signature_stays(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1))
        ledger.attach_signatures({stored.receipt_id: b"\x01" * 64})
        ledger.attach_signatures({stored.receipt_id: b"\x02" * 64, "rcpt_unknown": b"\x03" * 64})
        ledger.attach_signatures({})
        found = ledger.receipt(stored.receipt_id, "acme")
        assert found is not None
        assert found.signature == b"\x01" * 64

    def test_a_receipt_is_read_by_its_account_only(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1))
        assert ledger.receipt(stored.receipt_id, "acme") == stored
        assert ledger.receipt(stored.receipt_id, "other") is None
        assert ledger.receipt("rcpt_none", "acme") is None
        assert ledger.receipt_at("acme", 1) == stored
        assert ledger.receipt_at("acme", 2) is None

    def test_what_is_served_verifies(self, group, path: Path, make_settlement, tmp_path: Path) -> None:
        ledger = opened(path, group.key_id)
        ledger.create_key("acme", "")
        stored = settle(ledger, *(make_settlement(n) for n in range(1, 5)))
        pending = document_from(parse_strict(stored[0].document_bytes()))
        assert pending.verification.signature is None
        ledger.attach_signatures({each.receipt_id: group.sign(each.signed_bytes) for each in stored})
        served = [ledger.receipt(each.receipt_id, "acme") for each in stored]
        export = tmp_path / "r.ndjson"
        export.write_bytes(b"".join(each.document_bytes() + b"\n" for each in served if each is not None))
        report = verify_paths([export], group.public_key)
        assert list(report) == []
        assert report.passed == 4
        ledger.close()


class TestDurability:
    def test_all_is_there_after_reopening(self, path: Path, ledger: Ledger, make_settlement) -> None:
        key = ledger.create_key("acme", "")
        (first,) = settle(ledger, make_settlement(1))
        ledger.close()
        again = opened(path)
        assert again.account_of(key) == "acme"
        assert again.receipt(first.receipt_id, "acme") == first
        assert settle(again, make_settlement(2))[0].seq == 2
        again.close()

    def test_commits_are_synced_to_disk(self, ledger: Ledger) -> None:
        with ledger._database.transaction() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    def test_a_killed_writer_leaves_whole_receipts_and_no_lock(self, path: Path, tmp_path: Path) -> None:
        """The child settles until it is killed; each receipt that it acknowledged is there, each chain is whole."""
        script = tmp_path / "child.py"
        script.write_text(_CHILD)
        folder = str(Path(__file__).parent)
        child = subprocess.Popen([sys.executable, str(script), str(path), folder], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(60)]
        child.kill()
        acknowledged += [line.strip() for line in child.stdout if line.endswith("\n")]
        child.wait()
        child.stdout.close()
        ledger = opened(path)
        stored = ledger.unsigned(10_000)
        assert {each.receipt_id for each in stored} >= set(acknowledged)
        assert [each.seq for each in stored] == list(range(1, len(stored) + 1))
        assert imbalance(ledger) == []
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - len(stored) * CHARGE_USD_PICOS
        ledger.close()

    def test_a_second_writer_is_refused(self, path: Path, ledger: Ledger) -> None:
        opening = (
            "import sys; from receipts.ledger import Ledger\n"
            "from receipts.errors import LedgerInUse\n"
            "try: Ledger.open(sys.argv[1], wall_clock_ns=lambda: 0, random_bytes=bytes, key_id='')\n"
            "except LedgerInUse as refused: print(refused)"
        )
        said = subprocess.run(
            [sys.executable, "-c", opening, f"sqlite:///{path}"], capture_output=True, text=True, check=True
        ).stdout
        assert said == f"the ledger {path} is in use by process {os.getpid()}; it takes one writer\n"
        with pytest.raises(LedgerInUse):
            opened(path)
        ledger.close()
        opened(path).close()

    def test_the_files_are_for_their_owner_only(self, path: Path, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(1))
        for each in path.parent.iterdir():
            assert each.stat().st_mode & 0o077 == 0, each.name


class TestTrouble:
    def test_a_locked_database_is_said_to_be_so_and_loses_nothing(
        self, path: Path, ledger: Ledger, make_settlement
    ) -> None:
        with ledger._database.transaction() as connection:
            pass
        connection.connection.driver_connection.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="did not take it: database is locked"):
            ledger.settle([make_settlement(1)])
        assert ledger.has_keys(), "reading goes on"
        other.execute("ROLLBACK")
        other.close()
        assert settle(ledger, make_settlement(1))[0].seq == 1

    def test_a_full_disk_is_said_to_be_so_and_loses_nothing(self, ledger: Ledger, make_settlement) -> None:
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

    def test_no_statement_or_value_is_in_an_error(self, ledger: Ledger, make_settlement) -> None:
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
    def test_a_file_that_is_no_database_is_left_alone(self, path: Path, content: bytes, says: str) -> None:
        path.write_bytes(content)
        with pytest.raises(LedgerUnusable, match=says):
            opened(path)
        assert path.read_bytes() == content

    def test_another_programs_database_is_left_alone(self, path: Path) -> None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE theirs (x)")
        other.close()
        with pytest.raises(LedgerUnusable, match=r"has tables \(theirs …\) but is not a ledger"):
            opened(path)

    def test_a_later_versions_ledger_is_left_alone(self, path: Path, ledger: Ledger) -> None:
        ledger.close()
        with sqlite3.connect(path) as later:
            later.execute("UPDATE alembic_version SET version_num = '9999'")
        later.close()
        with pytest.raises(LedgerUnusable, match="schema revision '9999'; this program knows them up to '0002'"):
            opened(path)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerUnavailable, match=f"{tmp_path}/none/l.db cannot be opened: No such file"):
            opened(tmp_path / "none" / "l.db")

    @pytest.mark.parametrize("url", ["nonsense", "", "sqlite"])
    def test_a_url_that_is_none_is_named(self, url: str) -> None:
        with pytest.raises(LedgerUnusable, match="not a database URL"):
            Ledger.open(url, wall_clock_ns=lambda: 0, random_bytes=bytes, key_id=KEY_ID)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries",
        "UPDATE entries SET amount = 1",
        "DELETE FROM receipts",
        "UPDATE receipts SET signed_bytes = x'00'",
        "UPDATE receipts SET seq = seq + 100",
        "UPDATE receipts SET account = 'other'",
        "UPDATE receipts SET signature = NULL WHERE signature IS NOT NULL",
        "UPDATE receipts SET signature = x'02' WHERE signature IS NOT NULL",
        "DELETE FROM accounts",
        "DELETE FROM api_keys",
        "UPDATE receipts SET statement = '{}'",
    ],
)
def test_history_cannot_be_changed_even_past_this_program(
    path: Path, ledger: Ledger, make_settlement: Callable[..., Settlement], statement: str
) -> None:
    stored = settle(ledger, make_settlement(1))[0]
    ledger.attach_signatures({stored.receipt_id: b"\x01" * 64})
    before = rows(ledger, receipts), rows(ledger, entries)
    with (
        sqlite3.connect(path) as direct,
        pytest.raises(sqlite3.IntegrityError, match=r"append-only|its signature once"),
    ):
        direct.execute(statement)
    direct.close()
    assert (rows(ledger, receipts), rows(ledger, entries)) == before


def test_a_balance_past_64_bits_is_exact(ledger: Ledger) -> None:
    """SQLite's own SUM raises there, and others go on in floating point."""
    amounts = [2**62 + 7, 2**62 + 7, 2**62 + 7, -(2**62) + 1, -3]
    with ledger._database.transaction() as connection:
        for number, amount in enumerate(amounts):
            connection.execute(
                entries.insert().values(
                    transaction_id=f"t{number}",
                    unit="usd_picos",
                    book_account="customer:whale",
                    amount=amount,
                    created_unix_ns=0,
                )
            )
    assert ledger.balance_usd_picos("whale") == sum(amounts) > 2**63


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
        ledger = opened(folder / "ledger.sqlite3")
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


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import settlement
from receipts.ledger import Ledger
ledger = Ledger.open(f"sqlite:///{sys.argv[1]}", wall_clock_ns=lambda: 0, random_bytes=bytes, key_id="0" * 16)
ledger.create_key("acme", "")
for number in range(1, 100_000):
    for stored in ledger.settle([settlement(number), settlement(number + 1)]):
        print(stored.receipt_id, flush=True)
"""


def test_a_stored_receipt_is_its_document(ledger: Ledger, make_settlement) -> None:
    (stored,) = settle(ledger, make_settlement(1))
    document = json.loads(stored.document_bytes())
    assert document["verification"]["signature"] is None
    signed = StoredReceipt(
        **{name: getattr(stored, name) for name in ("receipt_id", "account", "seq", "signed_bytes")},
        signature=b"\xab" * 64,
        statement=None,
    )
    assert json.loads(signed.document_bytes())["verification"]["signature"] == "ab" * 64
