"""A mesh that joins a Ray cluster by RAY_ADDRESS: two Ray nodes on this one machine, which share one host meter.

Its pool has two replicas, which share the machine's one processor.
"""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import running_echo
from running_echo import METERED, EchoMesh, built_in_settings, running_echo_mesh

from mesh.app import OPERATOR_ACCOUNT

_TWO_RAY_NODES = Path(running_echo.__file__).with_name("two_ray_nodes.py")
_STOPPED_WITHIN_S = 60


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Iterator[EchoMesh]:
    cluster = subprocess.Popen([sys.executable, str(_TWO_RAY_NODES)], stdout=subprocess.PIPE, text=True)
    assert cluster.stdout is not None
    try:
        address = cluster.stdout.readline().strip()
        assert address, "the two Ray nodes did not start; the reason is above"
        settings = built_in_settings()
        settings["pools"][0] |= {"replicas": 2, "cpus_per_replica": 0.5}
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RAY_ADDRESS", address)
            with running_echo_mesh(tmp_path_factory.mktemp("joined"), settings=settings) as mesh:
                yield mesh
    finally:
        cluster.terminate()
        cluster.wait(_STOPPED_WITHIN_S)
        cluster.stdout.close()


@pytest.fixture(scope="module")
def operator_key(joined) -> str:
    new_key = ("keys", "new", "--account", OPERATOR_ACCOUNT, "--data-dir", str(joined.data_dir))
    made = subprocess.run(
        [sys.executable, "-m", "mesh.command", *new_key], capture_output=True, text=True, check=True, timeout=60
    )
    return made.stdout.strip()


def _meters(joined, operator_key: str) -> list[dict]:
    headers = {"Authorization": f"Bearer {operator_key}"}
    return requests.get(f"{joined.url}/v1/meters", headers=headers, timeout=30).json()["data"]


def test_it_answers_and_both_nodes_are_one_host_in_one_book(joined, operator_key):
    answer = joined.chat(METERED)
    assert answer.ok, answer.text
    assert answer.json()["energy"]["joules"] > 0
    meters = _meters(joined, operator_key)
    assert len(meters) == 1, "a host's energy must be counted once, however many Ray nodes it runs"
    receipt_id = answer.headers["X-Receipt-Id"]
    assert joined.wait_until(lambda: joined.receipt(receipt_id)["verification"]["signature"] is not None)


def test_two_replicas_together_are_never_billed_more_than_was_counted(joined, operator_key):
    (before,) = _meters(joined, operator_key)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: joined.chat(f"{number} " + "word " * 40), range(32)))
    (after,) = _meters(joined, operator_key)
    billed = sum(round(answer.json()["energy"]["joules"] * 1e6) for answer in answers)
    counted = after["totals"]["counted_microjoules"] - before["totals"]["counted_microjoules"]
    assert after["totals"]["request_microjoules"] - before["totals"]["request_microjoules"] == billed
    assert 0 < billed <= counted
    assert after["identity_error_microjoules"] == 0
    assert len(after["replicas"]) == 2
    assert all(replica["work"]["steps"] > 100 for replica in after["replicas"]), "one replica did everything"
