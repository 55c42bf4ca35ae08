"""Killing parts of a running mesh: what was promised is kept, and the mesh answers again."""

import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from kill_report import report
from killing_rounds import EVERY_ACCOUNT, KillingRounds
from rich.console import Console
from running_echo import EchoMesh, events, metered, running_echo_mesh
from soundness import LedgerAccess

from mesh.app import OPERATOR_ACCOUNT

_RECOVERY_S = 60
_STANDS_STILL_S = 25  # ten by the settings of the deployments; the rest is for a busy machine
_ROUNDS = 5
# Its first round kills the ingress, so that the leases of the holds which that leaves are over by the end.
_SEED = 99


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    data_dir = tmp_path_factory.mktemp("faults") / "data"
    with running_echo_mesh(data_dir, accounts=EVERY_ACCOUNT, record_nonces=True) as running:
        yield running


@pytest.fixture(scope="module")
def operator_key(mesh) -> str:
    return mesh.account_keys[OPERATOR_ACCOUNT]


def _meter(mesh: EchoMesh, operator_key: str) -> dict:
    response = requests.get(f"{mesh.url}/v1/meters", headers={"Authorization": f"Bearer {operator_key}"}, timeout=30)
    response.raise_for_status()
    (report,) = response.json()["data"]
    return report


def _billed_microjoules(mesh: EchoMesh) -> int:
    """What all receipts in the ledger's file sum to, from their signed bytes."""
    with contextlib.closing(sqlite3.connect(f"file:{mesh.data_dir}/ledger.sqlite3?mode=ro", uri=True)) as ledger:
        rows = ledger.execute("SELECT signed_bytes FROM receipts").fetchall()
    joules = [json.loads(row[0])["energy"]["total_joules"] for row in rows]
    return sum(round(each * 1e6) for each in joules if each is not None)


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


def test_an_engine_that_breaks_is_a_502_and_the_mesh_goes_on(mesh):
    with ThreadPoolExecutor(1) as thread:  # both at once: each is tried again and again, with pauses
        asking = thread.submit(mesh.chat, "!break now please")
        *_, last = events(mesh.chat("!break now please", stream=True))
        unary = asking.result()
    assert (unary.status_code, unary.json()["error"]["code"]) == (502, "upstream_error")
    assert last["error"]["code"] == "upstream_error"
    assert mesh.chat("and now").ok


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


def test_a_replica_that_stands_still_is_ended_long_before_a_stop_would_be_and_replaced(mesh):
    """Ray Serve would wait for three looks of thirty seconds, and then for the replica's own good end."""
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)
    family = psutil.Process(mesh.process.pid).children(recursive=True)
    (replica,) = (each for each in family if "ray::ServeReplica:joule-mesh:smollm2" in " ".join(each.cmdline()))
    os.kill(replica.pid, signal.SIGSTOP)
    assert mesh.wait_until(lambda: not replica.is_running(), _STANDS_STILL_S)
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
    metered(response)
    response.close()
    assert mesh.wait_until(lambda: _is_signed(mesh, response.headers["X-Receipt-Id"]), _RECOVERY_S)
    assert mesh.receipt(response.headers["X-Receipt-Id"])["energy"]["total_joules"] > 0


def test_a_meter_killed_in_mid_request_bills_nothing_that_it_does_not_know(mesh, operator_key):
    """The answer goes on; its energy isn't known whole any more, so its receipt says why and costs nothing."""
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)
    response = mesh.chat("word " * 1500, stream=True)
    lines = response.iter_lines(decode_unicode=True)
    next(lines)
    assert _kill(mesh, "MeterActor") == 1
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert mesh.wait_until(lambda: _is_signed(mesh, response.headers["X-Receipt-Id"]), _RECOVERY_S)
    receipt = mesh.receipt(response.headers["X-Receipt-Id"])
    assert receipt["energy"]["total_joules"] is None
    assert "meter was restarted" in receipt["energy"]["unavailable_reason"]
    assert receipt["price"]["usd_picos"] == 0
    assert _meter(mesh, operator_key)["identity_error_microjoules"] == 0


def test_an_ingress_killed_in_mid_stream_loses_no_settlement(mesh):
    response = mesh.chat("word " * 500, stream=True)
    lines = metered(response)
    assert _kill(mesh, "ServeReplica:joule-mesh:ingress") == 1
    with contextlib.suppress(requests.RequestException):
        assert "data: [DONE]" not in list(lines), "the ingress had answered before it was killed"
    assert mesh.wait_until(lambda: _answers(mesh), _RECOVERY_S)
    assert mesh.wait_until(lambda: _is_signed(mesh, response.headers["X-Receipt-Id"]), _RECOVERY_S)
    assert mesh.receipt(response.headers["X-Receipt-Id"])["energy"]["total_joules"] > 0


def test_all_signers_die_and_receipts_wait_for_them(mesh):
    assert _kill(mesh, "SignerActor") == 5
    receipt_id = mesh.chat("sign me later").headers["X-Receipt-Id"]
    assert mesh.wait_until(lambda: _is_signed(mesh, receipt_id), _RECOVERY_S)


def test_whatever_is_killed_nothing_is_lost_doubled_or_wrong(mesh, tmp_path):
    """A short run of the rounds of killing; `make faults` does two hundred."""
    rounds = KillingRounds(mesh, tmp_path, seed=_SEED, ledger=LedgerAccess.of_folder(mesh.data_dir))
    run = rounds.run(_ROUNDS, check_every=_ROUNDS)
    Console(width=140).print(report(run))
    assert run.verdict.is_clean, dict(run.verdict.findings)
    assert run.rounds_done == _ROUNDS
    assert all(run.kills.values())
    assert any(exchange.outcome == "answered" for exchange in run.exchanges)


def test_after_all_that_no_chain_has_a_gap(mesh):
    answers = [mesh.chat("count").headers["X-Receipt-Id"] for _ in range(3)]
    chains = [mesh.receipt(each)["chain"] for each in answers]
    assert [chain["seq"] for chain in chains] == list(range(chains[0]["seq"], chains[0]["seq"] + 3))


def test_after_all_that_the_book_is_closed_and_the_receipts_are_the_bill(mesh, operator_key):
    """No settlement was lost or paid twice: what the meter charged is what the ledger's receipts sum to."""
    assert mesh.wait_until(lambda: _meter(mesh, operator_key)["unacknowledged"] == 0, _RECOVERY_S)
    assert mesh.wait_until(lambda: _meter(mesh, operator_key)["open_requests"] == 0, _RECOVERY_S)
    report = _meter(mesh, operator_key)
    assert report["identity_error_microjoules"] == 0
    assert report["totals"]["request_microjoules"] == _billed_microjoules(mesh)
    assert any("the meter was away for" in each["what"] for each in report["incidents"])
    (device,) = report["devices"]
    assert device["counted_microjoules"] == report["totals"]["counted_microjoules"]
