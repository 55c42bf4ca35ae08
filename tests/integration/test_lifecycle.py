"""Starting, and failing to start; starting again is among the faults' bad conditions."""

import socket
import subprocess
import sys

import requests
from running_echo import free_port, start_echo

from mesh.run_state import DataFolder


def test_an_engine_that_cannot_start_ends_the_start_with_its_own_reason(tmp_path):
    port = free_port()
    failed = start_echo(tmp_path, port, "the weights are made of cheese")
    _, said = failed.communicate(timeout=120)
    assert failed.returncode == 1
    assert "RuntimeError: the weights are made of cheese" in said
    assert "Traceback" not in said
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
    DataFolder(tmp_path).hold()


def test_the_data_folder_is_private_and_holds_no_api_key(echo_mesh):
    assert echo_mesh.data_dir.stat().st_mode & 0o077 == 0
    files = [path for path in echo_mesh.data_dir.rglob("*") if path.is_file()]
    assert len([path for path in files if "signers" in path.parts]) >= 15
    for path in files:
        assert echo_mesh.key.encode() not in path.read_bytes(), path
        if "signers" in path.parts or path.name in {"ray-token", "development-share-secret"}:
            assert path.stat().st_mode & 0o077 == 0, path


def test_an_operator_makes_a_key_on_the_running_mesh(echo_mesh):
    made = subprocess.run(
        [sys.executable, "-m", "mesh.command", "keys", "new", "--data-dir", str(echo_mesh.data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    assert requests.get(f"{echo_mesh.url}/v1/models", headers=headers, timeout=10).ok
