"""A mesh that joins a Ray cluster by RAY_ADDRESS: two Ray nodes on this one machine, which share one host meter."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import running_echo
from running_echo import EchoMesh, running_echo_mesh

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
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RAY_ADDRESS", address)
            with running_echo_mesh(tmp_path_factory.mktemp("joined")) as mesh:
                yield mesh
    finally:
        cluster.terminate()
        cluster.wait(_STOPPED_WITHIN_S)
        cluster.stdout.close()


def test_it_answers_and_both_nodes_are_one_host_in_one_book(joined):
    answer = joined.chat("a mesh on somebody's cluster")
    assert answer.ok, answer.text
    assert answer.json()["energy"]["joules"] > 0
    new_key = ("keys", "new", "--account", OPERATOR_ACCOUNT, "--data-dir", str(joined.data_dir))
    made = subprocess.run(
        [sys.executable, "-m", "mesh.command", *new_key], capture_output=True, text=True, check=True, timeout=60
    )
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    shown = requests.get(f"{joined.url}/v1/meters", headers=headers, timeout=30).json()
    assert len(shown["data"]) == 1, "a host's energy must be counted once, however many Ray nodes it runs"
    assert shown["data"][0]["identity_error_microjoules"] == 0
    receipt_id = answer.headers["X-Receipt-Id"]
    assert joined.wait_until(lambda: joined.receipt(receipt_id)["verification"]["signature"] is not None)
