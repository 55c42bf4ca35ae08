"""`jc verify` as a person runs it: exit codes, what goes where, a bar on a terminal, Ctrl-C."""

import hashlib
import io
import os
import pty
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from nacl.signing import SigningKey

import mesh
from receipts.canonical import canonical_bytes
from receipts.ed25519 import key_id_of
from receipts.export_manifest import ExportManifest, ExportSelection

ROOT = Path(mesh.__file__).parents[1]
JC = [sys.executable, "-m", "mesh.command", "verify", "--key"]
SUMMARY = "Verified: 0 passed, 1 failed\n"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "signer_pubkey.hex"
    path.write_text(bytes(SigningKey(bytes(32)).verify_key).hex() + "\n")
    return path


def jc_verify(key: Path, *files: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*JC, str(key), *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)


def lines(path: Path, size: int) -> Path:
    """An NDJSON file of about that many bytes that gives one finding, a line too long to be any document."""
    path.write_bytes(b"[" * size)
    return path


def test_findings_and_count_are_all_that_stdout_gets(key: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "r.ndjson", 2**23)
    done = jc_verify(key, path)
    assert (done.returncode, done.stdout) == (1, f"{path}:1: larger than 65536 bytes\n{SUMMARY}")
    assert done.stderr == ""


def test_nothing_verified_is_no_success(key: Path, tmp_path: Path) -> None:
    """A true head, and by its unsigned manifest no receipt with the tag."""
    group = SigningKey(bytes(32))
    key_id = key_id_of(bytes(group.verify_key))
    head = {
        "typ": "joule-mesh.account-head/v1",
        "account": "acme",
        "as_of_unix_ns": 10**18,
        "first_seq": 1,
        "last_seq": 2,
        "first_sha256": "ab" * 32,
        "last_sha256": "cd" * 32,
        "key_id": key_id,
    }
    signed = canonical_bytes({**head, "signature": group.sign(canonical_bytes(head)).signature.hex()})
    selection = ExportSelection(customer_tag="blue", since_unix_ns=None)
    manifest = ExportManifest(
        typ="joule-mesh.export/v1", account="acme", created_unix_ns=10**18, key_id=key_id, selection=selection
    )
    members = [("manifest.json", manifest.to_json()), ("heads/acme.json", signed + b"\n")]
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members)
    path = tmp_path / "e.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (*members, ("SHA256SUMS", sums.encode())):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    done = jc_verify(key, path)
    assert done.stdout.endswith("cannot be checked\nVerified: 0 passed, 0 failed\n")
    assert (done.returncode, done.stderr) == (1, "jc: the files hold no receipt\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read the key file {}: No such file or directory"),
        (b"", "the key file {} holds no key: a public key is 64 hex digits. `jc key` writes one"),
        (bytes(5000), "the key file {} holds no key"),
        (b"\xff" * 64, "the key file {} holds no key"),
    ],
)
def test_a_key_that_cannot_be_used(tmp_path: Path, content: bytes | None, says: str) -> None:
    key = tmp_path / "key.hex"
    if content is not None:
        key.write_bytes(content)
    done = jc_verify(key, lines(tmp_path / "r.ndjson", 10))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("jc: " + says.format(key))
    assert done.stderr.count("\n") == 1


def test_a_key_file_that_never_ends(tmp_path: Path) -> None:
    done = jc_verify(Path("/dev/zero"), lines(tmp_path / "r.ndjson", 10))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_files_that_cannot_be_read(key: Path, tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.tar", "No such file or directory"), (tmp_path, "Is a directory")):
        done = jc_verify(key, path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"jc: {path} cannot be read: {why}\n"


def on_terminal(command: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout, and what a terminal at stderr shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        # Linux ends a terminal without writers by an error.
        while chunk := _read(ours):
            shown += chunk
        assert process.stdout is not None
        stdout = process.stdout.read()
    os.close(ours)
    return process.returncode, stdout, shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


def test_a_terminal_shows_a_bar_for_long_input_only(key: Path, tmp_path: Path) -> None:
    for size, has_bar in ((1000, False), (2**23, True)):
        path = lines(tmp_path / "r.ndjson", size)
        code, stdout, shown = on_terminal([*JC, str(key), str(path)])
        assert (code, stdout.splitlines()[-1] + "\n") == (1, SUMMARY)
        assert "\x1b" not in stdout
        assert ("verifying" in shown) == has_bar


def test_ctrl_c_ends_it_quietly(key: Path, tmp_path: Path) -> None:
    """While it waits for more of a pipe, and has shown what it found so far."""
    pipe = tmp_path / "r.ndjson"
    os.mkfifo(pipe)
    command = [*JC, str(key), str(pipe)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        pipe.open("wb", buffering=0) as writer,
    ):
        writer.write(b"{}\n" * 30_000)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"{pipe}:1: it has no typ")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Verified" not in stdout
    assert stderr == "jc: interrupted; what comes after the last line above was not checked\n"
