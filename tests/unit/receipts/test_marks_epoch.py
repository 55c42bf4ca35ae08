"""A signer notices when its marks are gone or are not the ones that it wrote last."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from receipts.marks_epoch import open_marks
from receipts.signer_store import _FIRST_SCHEMA, _SINCE_STATEMENTS, ChainClaim, MarkStore
from receipts.signer_vault import Vault
from receipts.signing_errors import ShareUnusable

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

    def open(self, *, is_first_use: bool = False, vault: Vault | None = None) -> MarkStore:
        return open_marks(
            self.marks,
            vault=vault or self.vault(),
            identifier=3,
            public_key=KEY,
            random_bytes=os.urandom,
            is_first_use=is_first_use,
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
    marks = folder.open()
    assert marks.counts() == (1, 1)
    marks.close()
    folder.put_back(tmp_path / "copy")
    with pytest.raises(ShareUnusable, match="another copy"):
        folder.open()


def test_a_disk_that_is_full_is_said(folder: Folder) -> None:
    (folder.path / "marks-epoch.sealed.new").mkdir()
    with pytest.raises(ShareUnusable, match="signer's marks could not be written"):
        folder.open()
