"""A signer notices when its marks are gone or are not the ones that it wrote last."""

import os
import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import receipts
from receipts.marks_epoch import _sealed_epochs, open_marks
from receipts.signer_store import _FIRST_SCHEMA, _SINCE_STATEMENTS, ChainClaim, MarkStore
from receipts.signer_vault import Vault
from receipts.signing_errors import ShareUnusable, SigningError

KEY = bytes(range(32))
CLAIM = ChainClaim(account="acme", seq=1, prev_sha256=None, sha256=bytes(32))


class PowerCut(Exception):
    """The process ends here."""


class FailingVault(Vault):
    """Its write fails, or ends the process when the write is done: ``at`` counts writes."""

    at = 0
    writes = 0

    def write(self, name: str, content: bytes) -> None:
        super().write(name, content)
        self.writes += 1
        if self.writes == self.at:
            raise PowerCut


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks = path / "marks.sqlite3"

    def vault(self, kind: type[Vault] = Vault) -> Vault:
        return kind(folder=self.path, identifier=3, share_secret=bytes(range(32)), random_bytes=os.urandom)

    def open(self, *, is_first_use: bool = False, has_epochs: bool = True, vault: Vault | None = None) -> MarkStore:
        return open_marks(
            self.marks,
            vault=vault or self.vault(),
            identifier=3,
            public_key=KEY,
            random_bytes=os.urandom,
            is_first_use=is_first_use,
            has_epochs=has_epochs and not is_first_use,
        )

    def copy(self, to: Path) -> None:
        """A copy of the marks alone, as a backup of the database would be."""
        with sqlite3.connect(self.marks) as source, sqlite3.connect(to) as target:
            source.backup(target)
        source.close()
        target.close()

    def put_back(self, copy: Path) -> None:
        for name in ("marks.sqlite3-wal", "marks.sqlite3-shm"):
            (self.path / name).unlink(missing_ok=True)
        shutil.copy(copy, self.marks)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "3").mkdir()
    folder = Folder(tmp_path / "3")
    marks = folder.open(is_first_use=True)
    marks.admit([CLAIM])
    marks.close()
    return folder


def test_its_own_marks_open_as_often_as_it_takes(folder: Folder) -> None:
    for _ in range(3):
        marks = folder.open()
        assert marks.mark("acme") is not None
        marks.close()


def test_lost_marks_are_said_with_what_to_do(folder: Folder) -> None:
    folder.marks.unlink()
    with pytest.raises(ShareUnusable, match=r"signer 3 has lost its marks, .*marks\.sqlite3: put back.*out of service"):
        folder.open()
    assert not folder.marks.exists()


def test_an_older_copy_is_refused(folder: Folder, tmp_path: Path) -> None:
    folder.copy(tmp_path / "backup")
    marks = folder.open()
    marks.close()
    folder.put_back(tmp_path / "backup")
    for _ in range(2):
        with pytest.raises(ShareUnusable, match=r"signer 3: .* is not what it wrote last, but another copy"):
            folder.open()


def test_an_empty_store_in_their_place_is_refused(folder: Folder) -> None:
    for each in folder.path.glob("marks.sqlite3*"):
        each.unlink()
    MarkStore.open(folder.marks, public_key=KEY).close()
    with pytest.raises(ShareUnusable, match="another copy"):
        folder.open()
    with pytest.raises(ShareUnusable, match="another copy"):
        folder.open(is_first_use=True)


def test_a_lost_epoch_is_refused(folder: Folder) -> None:
    (folder.path / "marks-epoch.sealed").unlink()
    with pytest.raises(ShareUnusable, match="another copy"):
        folder.open()


@pytest.mark.parametrize("cut_at", [1, 2])
def test_a_power_cut_while_they_are_opened_is_no_other_copy(folder: Folder, cut_at: int) -> None:
    vault = folder.vault(FailingVault)
    vault.at = cut_at  # type: ignore[attr-defined]
    with pytest.raises(PowerCut):
        folder.open(vault=vault)
    marks = folder.open()
    assert marks.mark("acme") is not None
    marks.close()


@pytest.mark.parametrize("cut_at", [1, 2])
def test_nor_is_one_at_the_first_use(tmp_path: Path, cut_at: int) -> None:
    folder = Folder(tmp_path)
    vault = folder.vault(FailingVault)
    vault.at = cut_at  # type: ignore[attr-defined]
    with pytest.raises(PowerCut):
        folder.open(vault=vault, is_first_use=True)
    folder.open(is_first_use=True).close()
    folder.open().close()


def test_marks_of_an_earlier_version_are_taken_over_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    old = sqlite3.connect(folder.marks)
    for statement in (*_FIRST_SCHEMA, *_SINCE_STATEMENTS):
        old.execute(statement)
    old.execute("INSERT INTO bound_to VALUES (?)", (KEY,))
    old.execute("INSERT INTO account VALUES (1, 'acme', 1, ?)", (bytes(32),))
    old.execute("INSERT INTO meter VALUES (1, ?)", (bytes(32),))
    old.execute("INSERT INTO stated VALUES (1, 7, ?)", (bytes(32),))
    old.execute("PRAGMA user_version = 2")
    old.commit()
    old.close()
    shutil.copy(folder.marks, tmp_path / "copy")
    marks = folder.open(has_epochs=False)
    assert marks.counts() == (1, 1)
    marks.close()
    folder.put_back(tmp_path / "copy")
    with pytest.raises(ShareUnusable, match="another copy"):
        folder.open(has_epochs=False)


def test_a_disk_that_is_full_is_said_and_may_have_room_later(folder: Folder) -> None:
    in_the_way = folder.path / "marks-epoch.sealed.new"
    in_the_way.mkdir()
    for _ in range(2):
        with pytest.raises(SigningError, match="signer's marks could not be written") as raised:
            folder.open()
        assert not isinstance(raised.value, ShareUnusable)
    in_the_way.rmdir()
    folder.open().close()


@pytest.mark.parametrize("kind", ["none", "schema", "empty file"])
def test_an_empty_store_is_refused_though_the_epoch_is_gone_too(folder: Folder, kind: str) -> None:
    for each in (*folder.path.glob("marks.sqlite3*"), folder.path / "marks-epoch.sealed"):
        each.unlink()
    if kind == "schema":
        MarkStore.open(folder.marks, public_key=KEY).close()
    elif kind == "empty file":
        folder.marks.touch()
    with pytest.raises(ShareUnusable, match=r"lost its marks|another copy"):
        folder.open()


def claims(first: int, count: int) -> list[ChainClaim]:
    """The account's receipts; ``CLAIM`` is the first."""

    def digest(seq: int) -> bytes:
        return (seq - 1).to_bytes(32, "big")

    return [
        ChainClaim(account="acme", seq=seq, prev_sha256=digest(seq - 1), sha256=digest(seq))
        for seq in range(first, first + count)
    ]


A_CHECKPOINTS_WORTH = 4200


def killed(folder: Folder, to: Path, *names: str) -> Folder:
    """The folder as a kill now would leave it, without the files of these names."""
    shutil.copytree(folder.path, to, ignore=shutil.ignore_patterns("*-shm", *names))
    return Folder(to)


def test_marks_without_their_log_are_refused(folder: Folder, tmp_path: Path) -> None:
    """Whatever was vouched for since the log was last written over would be forgotten."""
    marks = folder.open()
    seq = 2
    for each in claims(seq, 700):
        marks.admit([each])
        seq += 1
    for number, count in enumerate((0, 1, A_CHECKPOINTS_WORTH, 1, 1, A_CHECKPOINTS_WORTH, A_CHECKPOINTS_WORTH, 1)):
        assert marks.admit(claims(seq, count)) == [None] * count
        seq += count
        whole = killed(folder, tmp_path / f"whole-{number}").open()
        assert whole.mark("acme") == marks.mark("acme")
        whole.close()
        torn = killed(folder, tmp_path / f"torn-{number}", "*-wal")
        found = torn.marks.read_bytes()
        for _ in range(2):
            with pytest.raises(ShareUnusable, match=r"not what it wrote last.*without its marks\.sqlite3-wal"):
                torn.open()
        assert torn.marks.read_bytes() == found, "nothing was written that its log would not fit"
        shutil.copy(folder.path / "marks.sqlite3-wal", torn.path)
        mended = torn.open()
        assert mended.mark("acme") == marks.mark("acme"), "once its log is put back"
        mended.close()
    marks.close()


def test_a_log_that_another_program_wrote_over_is_no_other_copy(folder: Folder, tmp_path: Path) -> None:
    """As when an operator opens the marks of a killed signer with SQLite's own shell."""
    marks = folder.open()
    marks.admit(claims(2, 5))
    left = killed(folder, tmp_path / "left")
    marks.close()
    other = sqlite3.connect(left.marks)
    assert other.execute("SELECT seq FROM account").fetchall() == [(6,)]
    other.close()
    assert not (left.path / "marks.sqlite3-wal").exists()
    again = left.open()
    assert again.admit(claims(7, 1)) == [None]
    again.close()


def test_the_log_of_a_signer_that_is_killed_again_and_again_does_not_grow(folder: Folder) -> None:
    sizes = []
    for life in range(4):

        def live(seq: int = 2 + 3000 * life) -> None:
            folder.open().admit(claims(seq, 3000))
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_a_child(live) == -signal.SIGKILL
        sizes.append((folder.path / "marks.sqlite3-wal").stat().st_size)
    assert max(sizes) < 2 * sizes[0]


class Watched(Vault):
    """Calls ``look`` before and after each write."""

    look: Callable[[], None]

    def write(self, name: str, content: bytes) -> None:
        self.look()
        super().write(name, content)
        self.look()


def test_a_kill_between_any_two_writes_leaves_whole_marks(folder: Folder, tmp_path: Path) -> None:
    lives: list[tuple[Folder, int]] = []
    vouched = 1
    vault = folder.vault(Watched)

    def look() -> None:
        lives.append((killed(folder, tmp_path / f"life-{len(lives)}"), vouched))

    vault.look = look  # type: ignore[attr-defined]
    for _ in range(2):
        marks = folder.open(vault=vault)
        for _ in range(3):
            assert marks.admit(claims(vouched + 1, A_CHECKPOINTS_WORTH)) == [None] * A_CHECKPOINTS_WORTH
            vouched += A_CHECKPOINTS_WORTH
        marks.close()
    assert len(lives) == 2 * 3 * 4, "an opening and two checkpoints, twice, and two writes each"
    for life, mark in lives:
        for _ in range(2):
            marks = life.open()
            assert marks.mark("acme").seq == mark  # type: ignore[union-attr]
            marks.close()


def test_a_checkpoint_on_a_full_disk_stops_signing_until_there_is_room(folder: Folder, tmp_path: Path) -> None:
    marks = folder.open()
    marks.admit(claims(2, A_CHECKPOINTS_WORTH))
    following = claims(2 + A_CHECKPOINTS_WORTH, 1)
    in_the_way = folder.path / "marks-epoch.sealed.new"
    in_the_way.mkdir()
    with pytest.raises(SigningError, match="could not be written"):
        marks.admit(following)
    in_the_way.rmdir()
    refuse = "CREATE TRIGGER full BEFORE UPDATE OF epoch ON life BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    marks._connection.execute(refuse)
    sealed = []
    for _ in range(2):
        with pytest.raises(SigningError, match="disk full"):
            marks.admit(following)
        sealed.append(_sealed_epochs(folder.vault()))
    assert sealed[0] == sealed[1], "the epoch that failed may be in the log: it stays the one that is tried"
    marks._connection.execute("DROP TRIGGER full")
    assert marks.admit(following) == [None]
    with pytest.raises(ShareUnusable, match="not what it wrote last"):
        killed(folder, tmp_path / "torn", "*-wal").open()
    marks.close()
    folder.open().close()


def in_a_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(line: int) -> Callable[[FrameType, str, object], Any]:
    ours, counted = str(Path(receipts.__file__).parent), 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal counted
        if not frame.f_code.co_filename.startswith(ours):
            return None
        counted += event == "line"
        if counted == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def test_a_kill_at_any_line_of_an_opening_or_a_checkpoint_leaves_marks_that_open(folder: Folder) -> None:
    vouched, deaths, exited = 1, 0, -signal.SIGKILL
    while exited:

        def live(line: int = 1 + 5 * deaths, vouched: int = vouched) -> None:
            sys.settrace(killed_at(line))
            marks = folder.open()
            marks._checkpoint_at = 0
            for each in claims(vouched + 1, 3):
                marks.admit([each])
            sys.settrace(None)

        exited = in_a_child(live)
        assert exited in (0, -signal.SIGKILL)
        deaths += exited != 0
        marks = folder.open()
        mark = marks.mark("acme")
        marks.close()
        assert mark is not None
        assert mark.seq - vouched in range(4)
        vouched = mark.seq
    assert deaths > 30
    assert vouched > 4, "it died after its marks were written, too"


def test_no_full_disk_puts_a_signer_out_for_good(folder: Folder) -> None:
    """Files may grow to so many bytes only, from none to more than it takes."""
    vouched = 1
    outcomes = set()
    for most_bytes in (0, *(2**power for power in range(8, 20))):

        def live(most_bytes: int = most_bytes, vouched: int = vouched) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            marks = None
            for _ in range(2):
                with suppress(SigningError):
                    marks = marks or folder.open()
                    marks._checkpoint_at = 0
                    marks.admit(claims(vouched + 1, 1))
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_a_child(live) == -signal.SIGKILL, "nothing but a SigningError"
        marks = folder.open()
        mark = marks.mark("acme")
        assert mark is not None
        assert mark.seq - vouched in (0, 1)
        outcomes.add(mark.seq - vouched)
        vouched = mark.seq
        marks.close()
    assert outcomes == {0, 1}
