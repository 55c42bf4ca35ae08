"""Sealed files: what comes back, and one clear error for each way in which they can be unusable."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from receipts.share_secret import ShareSecretSource, create_development_secret
from receipts.signer_vault import Vault
from receipts.signing_errors import ShareUnusable

SECRET = bytes(range(32))


def vault(folder: Path, *, identifier: int = 1, share_secret: bytes = SECRET) -> Vault:
    return Vault(folder=folder, identifier=identifier, share_secret=share_secret, random_bytes=os.urandom)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "signer-1"


def test_what_was_sealed_comes_back(folder: Path) -> None:
    vault(folder).write("share", b"a key share")
    assert vault(folder).read("share") == b"a key share"
    assert vault(folder).read("identity") is None


def test_the_file_is_private_and_shows_nothing(folder: Path) -> None:
    vault(folder).write("share", b"a key share")
    file = folder / "share.sealed"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert b"a key share" not in file.read_bytes()
    assert b"a key share".hex().encode() not in file.read_bytes()
    assert [each.name for each in folder.iterdir()] == ["share.sealed"]


def test_a_missing_or_short_secret_is_said(folder: Path) -> None:
    with pytest.raises(ShareUnusable, match="signer 1: the share secret is missing"):
        vault(folder, share_secret=b"")
    with pytest.raises(ShareUnusable, match="has 31 bytes, not 32"):
        vault(folder, share_secret=bytes(31))


def test_a_wrong_secret_is_told_from_a_damaged_file(folder: Path) -> None:
    vault(folder).write("share", b"a key share")
    with pytest.raises(ShareUnusable, match="another share secret"):
        vault(folder, share_secret=bytes(32)).read("share")


def test_the_file_of_another_signer_is_said(folder: Path) -> None:
    vault(folder).write("share", b"a key share")
    with pytest.raises(ShareUnusable, match="belongs to signer 1, not to signer 2"):
        vault(folder, identifier=2).read("share")


def test_a_file_under_another_name_is_refused(folder: Path) -> None:
    vault(folder).write("identity", bytes(32))
    (folder / "identity.sealed").rename(folder / "share.sealed")
    with pytest.raises(ShareUnusable, match="is damaged"):
        vault(folder).read("share")


def test_a_file_that_others_can_read_is_refused(folder: Path) -> None:
    vault(folder).write("share", b"a key share")
    (folder / "share.sealed").chmod(0o640)
    with pytest.raises(ShareUnusable, match="chmod 600"):
        vault(folder).read("share")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-20],
        lambda data: data.replace(b'"sealed": "', b'"sealed": "00'),
        lambda data: data.replace(b'"identifier": 1', b'"identifier": 3'),
        lambda data: data.replace(b"joule-mesh.sealed/v1", b"joule-mesh.sealed/v2"),
        lambda _: b"[]",
        lambda _: b"{}",
        lambda _: b"\xff" * 200,
        lambda data: data.replace(b'"sha256"', b'"sha"'),
    ],
)
def test_damage_is_said(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    vault(folder).write("share", b"a key share")
    file = folder / "share.sealed"
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    with pytest.raises(ShareUnusable, match="is damaged"):
        vault(folder).read("share")


def test_forged_content_with_a_fitting_checksum_is_refused(folder: Path) -> None:
    """The checksum is against accidents; against an attacker stands the seal."""
    from receipts.signer_vault import _checksum

    vault(folder).write("share", b"a key share")
    file = folder / "share.sealed"
    body = json.loads(file.read_bytes())
    del body["sha256"]
    body["sealed"] = body["sealed"][:-2] + ("00" if body["sealed"][-2:] != "00" else "01")
    file.write_text(json.dumps({**body, "sha256": _checksum(body)}))
    with pytest.raises(ShareUnusable, match="is damaged"):
        vault(folder).read("share")


def test_writing_again_replaces_the_file(folder: Path) -> None:
    (folder.parent / "signer-1").mkdir()
    (folder / "share.sealed.new").write_bytes(b"left over by a crash")
    vault(folder).write("share", b"one")
    vault(folder).write("share", b"two")
    assert vault(folder).read("share") == b"two"


def test_a_share_secret_is_read_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET.hex() + "\n")
    assert ShareSecretSource(file=file).read({}) == SECRET
    assert ShareSecretSource(environment_variable="SECRET").read({"SECRET": SECRET.hex()}) == SECRET


def test_a_share_secret_that_is_not_there_or_not_one_is_said_without_quoting_it(tmp_path: Path) -> None:
    with pytest.raises(ShareUnusable, match="missing"):
        ShareSecretSource(file=tmp_path / "none").read({})
    with pytest.raises(ShareUnusable, match="missing: the environment variable SECRET"):
        ShareSecretSource(environment_variable="SECRET").read({})
    with pytest.raises(ShareUnusable, match="one source"):
        ShareSecretSource().read({})
    with pytest.raises(ShareUnusable, match="64 hex digits") as caught:
        ShareSecretSource(environment_variable="SECRET").read({"SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_the_development_secret_is_made_once_and_private(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    create_development_secret(file, os.urandom)
    secret = ShareSecretSource(file=file).read({})
    create_development_secret(file, os.urandom)
    assert ShareSecretSource(file=file).read({}) == secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
