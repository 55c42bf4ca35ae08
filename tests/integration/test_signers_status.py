"""`jc signers status` on a running mesh: all well, and with too few signers alive.

The mesh is everybody's, and the last who ask it are these tests, by this file's name: they kill signers.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from running_echo import EchoMesh

_RECOVERY_S = 60


def _jc(mesh: EchoMesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mesh.command", "signers", *arguments, "--data-dir", str(mesh.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def _signers(mesh: EchoMesh) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(mesh.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::SignerActor" in " ".join(each.cmdline()):
                found.append(each)
    return found


@contextmanager
def _only_two_alive(mesh: EchoMesh) -> Iterator[None]:
    """Three are killed; Ray starts them again, and their successors are held still until the block ends."""
    before = _signers(mesh)
    for each in before[2:]:
        each.kill()
    held: dict[int, psutil.Process] = {}

    def hold_successors() -> bool:
        for each in _signers(mesh):
            if each not in before and each.pid not in held:
                each.suspend()
                held[each.pid] = each
        return len(held) == 3

    try:
        assert mesh.wait_until(hold_successors, _RECOVERY_S)
        yield
    finally:
        for each in held.values():
            each.resume()


def _is_signed(mesh: EchoMesh, receipt_id: str) -> bool:
    return mesh.receipt(receipt_id)["verification"]["signature"] is not None


def test_a_group_that_signs(echo_mesh: EchoMesh) -> None:
    receipt_id = echo_mesh.chat("sign this").headers["X-Receipt-Id"]
    assert echo_mesh.wait_until(lambda: _is_signed(echo_mesh, receipt_id))
    printed = _jc(echo_mesh, "status")
    assert printed.returncode == 0, printed.stderr
    for words in ("3 of 5 sign; 5 ready", "signer", "nonces", "no receipt waits", "receipts/s signed"):
        assert words in printed.stdout
    report = json.loads(_jc(echo_mesh, "status", "--json").stdout)
    assert [each["state"] for each in report["signers"]] == ["ready"] * 5
    assert sum(each["vouched"] > 0 for each in report["signers"]) == 3, "one quorum signs, the others are spare"
    assert all(each["node"] and abs(each["clock_ahead_s"]) < 60 for each in report["signers"])
    assert (report["unsigned_receipts"], report["oldest_unsigned_age_s"]) == (0, None)


def test_taking_back_a_signer_that_is_not_excluded_is_an_error(echo_mesh: EchoMesh) -> None:
    refused = _jc(echo_mesh, "readmit", "2")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "jc: signer 2 is not excluded\n"


def test_with_three_dead_receipts_wait_and_are_signed_later(echo_mesh: EchoMesh) -> None:
    with _only_two_alive(echo_mesh):
        receipt_id = echo_mesh.chat("sign this later").headers["X-Receipt-Id"]
        printed = _jc(echo_mesh, "status")
        assert printed.returncode == 1, printed.stdout + printed.stderr
        assert "TOO FEW, receipts wait until 3 are" in printed.stdout
        assert "is away: " in printed.stdout
        assert "1 receipts wait, the oldest" in printed.stdout
        assert not _is_signed(echo_mesh, receipt_id)
    assert echo_mesh.wait_until(lambda: _is_signed(echo_mesh, receipt_id), _RECOVERY_S)
    assert echo_mesh.wait_until(lambda: _jc(echo_mesh, "status").returncode == 0, _RECOVERY_S)


def test_without_a_mesh_there_is_nothing_to_show(tmp_path) -> None:
    command = [sys.executable, "-m", "mesh.command", "signers", "status", "--data-dir", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert printed.returncode == 2
    assert "no mesh runs" in printed.stderr
