"""Killing parts of a running mesh: what was promised is kept, and the mesh answers again."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
import requests
from running_echo import EchoMesh, events, running_echo_mesh

_RECOVERY_S = 60


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    with running_echo_mesh(tmp_path_factory.mktemp("faults")) as running:
        yield running


def _kill(mesh: EchoMesh, title: str) -> int:
    """Kill the mesh's Ray workers of this title; how many there were."""
    family = psutil.Process(mesh.process.pid).children(recursive=True)
    victims = [each for each in family if f"ray::{title}" in " ".join(each.cmdline())]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    return len(victims)


def _answers(mesh: EchoMesh) -> bool:
    try:
        return mesh.chat("are you there").ok
    except requests.RequestException:
        return False


def _is_signed(mesh: EchoMesh, receipt_id: str) -> bool:
    try:
        return mesh.receipt(receipt_id)["verification"]["signature"] is not None
    except requests.RequestException:
        return False


def test_a_replica_killed_in_mid_stream_ends_the_stream_with_an_error_and_is_replaced(mesh):
    response = mesh.chat("!crash now please", stream=True)
    *_, last = events(response)
    assert last["error"]["code"] == "upstream_error"
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)


def test_a_replica_killed_before_the_answer_is_a_502_in_the_envelope(mesh):
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)
    response = mesh.chat("!crash now please")
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)


@pytest.mark.parametrize("title", ["LedgerActor", "MeterActor"])
def test_the_mesh_survives_the_death_of(mesh, title):
    before = mesh.chat("before the kill").headers["X-Receipt-Id"]
    assert _kill(mesh, title) == 1
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)
    assert mesh.wait_until(lambda: _is_signed(mesh, before), _RECOVERY_S)
    after = mesh.chat("after the kill").headers["X-Receipt-Id"]
    assert mesh.wait_until(lambda: _is_signed(mesh, after), _RECOVERY_S)


def test_a_restarted_meter_goes_on_metering_and_delivering(mesh):
    assert _kill(mesh, "MeterActor") == 1
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)
    journal = mesh.data_dir / "meter" / "journal.ndjson"
    before = journal.read_bytes()
    assert mesh.wait_until(lambda: journal.read_bytes() != before, 10), "it does not tick"
    response = mesh.chat("word " * 1000, stream=True)
    next(response.iter_lines())
    response.close()
    assert mesh.wait_until(lambda: _is_signed(mesh, response.headers["X-Receipt-Id"]), _RECOVERY_S)
    assert mesh.receipt(response.headers["X-Receipt-Id"])["energy"]["total_joules"] > 0


def test_all_signers_die_and_receipts_wait_for_them(mesh):
    assert _kill(mesh, "SignerActor") == 5
    receipt_id = mesh.chat("sign me later").headers["X-Receipt-Id"]
    assert mesh.wait_until(lambda: _is_signed(mesh, receipt_id), _RECOVERY_S)


def test_after_all_that_no_chain_has_a_gap(mesh):
    answers = [mesh.chat("count").headers["X-Receipt-Id"] for _ in range(3)]
    chains = [mesh.receipt(each)["chain"] for each in answers]
    assert [chain["seq"] for chain in chains] == list(range(chains[0]["seq"], chains[0]["seq"] + 3))
