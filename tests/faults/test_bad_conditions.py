"""A mesh under conditions that nobody wants: a clear error, and no receipt lost, doubled or wrong."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from chat_load import ChatClient, Customer, Exchange
from running_echo import EchoMesh, failed_start, running_echo_mesh
from soundness import LedgerAccess, Soundness
from victims import Victims

from mesh.app import OPERATOR_ACCOUNT
from receipts.key_generation import load_or_generate
from receipts.signer import Signer
from receipts.signer_policy import ReceiptRules
from receipts.signer_ports import LocalSigner
from receipts.verify import verify_paths

ACCOUNTS = ("anna", "bela", OPERATOR_ACCOUNT)
_RECOVERY_S = 60
_LOCKED_S = 7.0  # longer than the ledger itself waits for a lock
_KEEPERS = ("ledger", "meter", "signer")


class Asked:
    """A client of a running mesh, and all that it has seen."""

    def __init__(self, mesh: EchoMesh) -> None:
        self.mesh = mesh
        self.exchanges: list[Exchange] = []
        self._client = ChatClient(mesh.url)
        self._soundness = Soundness(mesh, LedgerAccess.of_folder(mesh.data_dir), records_nonces=False)

    def ask(self, kind: str, words: int, account: str = "anna") -> Exchange:
        customer = Customer(account=account, key=self.mesh.account_keys[account])
        exchange = self._client.ask(customer, kind, words)
        self.exchanges.append(exchange)
        return exchange

    def answers(self) -> bool:
        return self.ask("unary", 1).outcome == "answered"

    def assert_sound(self) -> None:
        verdict = self._soundness.judge(self.exchanges)
        assert verdict.is_clean, dict(verdict.findings)


@pytest.fixture(scope="module")
def first_life() -> Iterator[contextlib.ExitStack]:
    """What ends the first mesh, whose folder the later tests go on with."""
    with contextlib.ExitStack() as life:
        yield life


@pytest.fixture(scope="module")
def asked(first_life, tmp_path_factory) -> Asked:
    data_dir = tmp_path_factory.mktemp("conditions") / "data"
    return Asked(first_life.enter_context(running_echo_mesh(data_dir, accounts=ACCOUNTS)))


@contextmanager
def _no_space(mesh: EchoMesh) -> Iterator[None]:
    """What keeps receipts can write nothing more, as on a full disk: no file of its may be longer than a byte.

    Unlike a small disk of one's own, such a limit needs no privileges.
    """
    victims = Victims(mesh.process.pid)
    keepers = [process.pid for target in _KEEPERS for process in victims.living(target)]
    assert len(keepers) == 7
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in keepers}
    try:
        for pid in keepers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[pid][1]))
        yield
    finally:
        for pid in keepers:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before[pid])


def _is_a_clear_failure(exchange: Exchange) -> bool:
    return exchange.outcome in ("refused", "broken") and bool(exchange.detail)


def test_on_a_full_disk_nothing_is_acknowledged_and_nothing_is_lost(asked):
    assert asked.answers()
    with ThreadPoolExecutor(3) as threads:
        under_way = threads.submit(asked.ask, "stream", 400)
        time.sleep(0.5)
        with _no_space(asked.mesh):
            begun = [threads.submit(asked.ask, kind, 2) for kind in ("unary", "stream")]
            while_full = [each.result() for each in (*begun, under_way)]
    assert all(_is_a_clear_failure(each) for each in while_full), while_full
    assert asked.mesh.wait_until(asked.answers, _RECOVERY_S)
    asked.assert_sound()


def test_while_another_process_locks_the_ledger_answers_wait_or_fail_and_nothing_is_lost(asked):
    assert asked.answers()
    database = asked.mesh.data_dir / "ledger.sqlite3"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other, ThreadPoolExecutor(4) as threads:
        other.execute("BEGIN IMMEDIATE")
        while_locked = [threads.submit(asked.ask, kind, 2, "bela") for kind in ("unary", "stream") * 2]
        time.sleep(_LOCKED_S)
        other.execute("ROLLBACK")
        exchanges = [each.result() for each in while_locked]
    assert all(each.outcome == "answered" or _is_a_clear_failure(each) for each in exchanges), exchanges
    assert asked.mesh.wait_until(asked.answers, _RECOVERY_S)
    asked.assert_sound()


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What the mesh has told a customer in its first life, and with which headers it was asked."""

    group: dict
    receipt: dict
    headers: dict[str, str]


@pytest.fixture(scope="module")
def left(asked) -> Left:
    """After some answers to each account, all signed; the receipt is of the first start's own key."""
    for account in ("anna", "bela", "anna", "bela"):
        assert asked.ask("unary", 2, account).outcome == "answered"
    receipt_id = asked.mesh.chat("one two").headers["X-Receipt-Id"]
    asked.assert_sound()
    return Left(group=_group(asked.mesh), receipt=asked.mesh.receipt(receipt_id), headers=asked.mesh.headers)


@pytest.fixture(scope="module")
def stopped(asked, left, first_life) -> Path:
    """The data folder of the mesh, now that it has stopped."""
    first_life.close()
    return asked.mesh.data_dir


def test_another_share_secret_at_a_restart_is_said_and_changes_nothing(stopped, monkeypatch):
    before = _receipts(stopped)
    monkeypatch.setenv("JOULE_MESH_SHARE_SECRET", "f0" * 32)
    said = failed_start(stopped)
    assert "identity.sealed was sealed under another share secret than the one given; start with the one it was" in said
    assert "Traceback" not in said
    assert _receipts(stopped) == before


def test_shares_of_another_group_are_said_and_change_nothing(stopped, tmp_path):
    _make_group(tmp_path / "foreign", stopped / "development-share-secret")
    data_dir = tmp_path / "data"
    _copy(stopped, data_dir)
    for signer in ("1", "2", "3"):
        shutil.copy(tmp_path / "foreign" / signer / "share.sealed", data_dir / "signers" / signer / "share.sealed")
    before = _receipts(data_dir)
    said = failed_start(data_dir)
    assert re.search(r"signer [123]: the share file in .*/signers/[123] is of a group without this signer", said)
    assert "Traceback" not in said
    assert _receipts(data_dir) == before


@pytest.fixture(scope="module")
def revived(stopped) -> Iterator[Asked]:
    """The stopped mesh, started again."""
    with running_echo_mesh(stopped, accounts=ACCOUNTS) as mesh:
        yield Asked(mesh)


def test_a_second_life_keeps_the_key_the_receipts_and_the_chain(left, revived, tmp_path):
    url = revived.mesh.url
    assert _group(revived.mesh) == left.group
    again = requests.get(f"{url}/v1/receipts/{left.receipt['receipt_id']}", headers=left.headers, timeout=10)
    chat = {"model": "auto", "messages": [{"role": "user", "content": "three"}]}
    later = requests.post(f"{url}/v1/chat/completions", json=chat, headers=left.headers, timeout=60)
    following = requests.get(f"{url}/v1/receipts/{later.headers['X-Receipt-Id']}", headers=left.headers, timeout=10)
    assert again.json() == left.receipt
    assert following.json()["chain"]["seq"] == left.receipt["chain"]["seq"] + 1
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_bytes(again.content)
    files[1].write_bytes(following.content)
    report = verify_paths(files, bytes.fromhex(left.group["public_key"]))
    assert list(report) == []
    assert report.passed == 2


def test_a_second_mesh_on_the_same_folder_is_refused(revived):
    said = failed_start(revived.mesh.data_dir)
    assert f"a mesh already runs on {revived.mesh.data_dir}" in said
    assert revived.answers()


def test_a_mesh_on_a_copy_of_the_folder_is_refused_while_the_original_runs(revived, tmp_path):
    copy = tmp_path / "copy"
    _copy(revived.mesh.data_dir, copy)
    said = failed_start(copy)
    assert "one of the two folders is a copy" in said
    assert "Traceback" not in said
    assert revived.answers()


def test_a_corrupt_row_is_named_and_holds_up_its_own_account_only(revived):
    """Damaged before it was signed, it is not signed, nor is what follows it in its chain, until it is mended."""
    assert revived.ask("unary", 1, "anna").outcome == "answered"
    revived.assert_sound()
    database = revived.mesh.data_dir / "ledger.sqlite3"
    seq, whole, signature = _last_receipt(database, "anna")
    damaged = whole.replace(b'"output":1', b'"output":7')
    assert damaged != whole
    _overwrite(database, "anna", seq, damaged, None)
    later = revived.ask("unary", 1, "anna")
    other = revived.ask("unary", 1, "bela")
    assert (later.outcome, other.outcome) == ("answered", "answered")
    assert revived.mesh.wait_until(lambda: _is_signed(database, other), _RECOVERY_S)
    checked = _jc("ledger", "check", "--data-dir", str(revived.mesh.data_dir))
    assert checked.returncode == 1
    assert "anna" in checked.stdout
    assert str(seq) in checked.stdout
    assert not _is_signed(database, later)
    _overwrite(database, "anna", seq, whole, signature)
    assert revived.mesh.wait_until(lambda: _is_signed(database, later), _RECOVERY_S)
    revived.assert_sound()
    assert _jc("ledger", "check", "--data-dir", str(revived.mesh.data_dir)).returncode == 0


def _group(mesh: EchoMesh) -> dict:
    return requests.get(f"{mesh.url}/v1/keys/group", timeout=10).json()


def _copy(data_dir: Path, to: Path) -> None:
    """As `cp -r` does; a socket cannot be copied."""
    shutil.copytree(data_dir, to, ignore=shutil.ignore_patterns("*.sock"))


def _receipts(data_dir: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{data_dir / 'ledger.sqlite3'}?mode=ro", uri=True)) as ledger:
        query = "SELECT receipt_id, account, seq, signed_bytes, signature FROM receipts ORDER BY receipt_id"
        return ledger.execute(query).fetchall()


def _last_receipt(database: Path, account: str) -> tuple[int, bytes, bytes]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as ledger:
        query = "SELECT seq, signed_bytes, signature FROM receipts WHERE account = ? ORDER BY seq DESC LIMIT 1"
        return ledger.execute(query, (account,)).fetchone()


def _is_signed(database: Path, exchange: Exchange) -> bool:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as ledger:
        query = "SELECT signature IS NOT NULL FROM receipts WHERE receipt_id = ?"
        return bool(ledger.execute(query, (exchange.receipt_id,)).fetchone()[0])


def _overwrite(database: Path, account: str, seq: int, signed_bytes: bytes, signature: bytes | None) -> None:
    """As a fault of the disk does, past the triggers."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'receipts'"
        triggers = ledger.execute(query).fetchall()
        for name, _ in triggers:
            ledger.execute(f"DROP TRIGGER {name}")
        ledger.execute(
            "UPDATE receipts SET signed_bytes = ?, signature = ? WHERE account = ? AND seq = ?",
            (signed_bytes, signature, account, seq),
        )
        for _, sql in triggers:
            ledger.execute(sql)
        ledger.execute("COMMIT")


def _make_group(folder: Path, share_secret: Path) -> None:
    """Five signers with a key of their own, under a mesh's share secret."""
    secret = bytes.fromhex(share_secret.read_text())

    async def make() -> None:
        ports = {each: LocalSigner(_signer(folder / str(each), each, secret)) for each in range(1, 6)}
        record = await load_or_generate(ports, folder / "group.json", threshold=3, random_bytes=os.urandom)
        for port in ports.values():
            await port.activate(record)

    asyncio.run(make())


def _signer(folder: Path, identifier: int, share_secret: bytes) -> Signer:
    return Signer(
        identifier=identifier,
        folder=folder,
        share_secret=share_secret,
        policy=ReceiptRules(wall_clock_ns=time.time_ns),
        random_bytes=os.urandom,
    )


def _jc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mesh.command", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
