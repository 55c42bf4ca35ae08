"""Several Ray nodes on this machine, a site each: they keep their labels when they die, and leave nothing behind."""

import importlib.resources
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from mesh_processes import alive, command_of, descendants, listening, off_loopback
from running_echo import EchoMesh, free_port, running_echo_mesh, start_echo, told_at_the_end

from mesh.app import OPERATOR_ACCOUNT

_CLUSTERS = Path(str(importlib.resources.files("clusters")))
_SITES = {"eu-fi": "nordlys", "eu-de": "rheinwerk", "us-east": "tidewater"}
_BACK_WITHIN_S = 180  # of a machine that runs other tests beside
_GONE_WITHIN_S = 90  # a worker that was just starting tries for its raylet that long


@pytest.fixture(scope="module")
def three_sites(tmp_path_factory) -> Iterator[EchoMesh]:
    folder = tmp_path_factory.mktemp("three-sites")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JC_CONFIG", str(_CLUSTERS / "three-sites.yaml"))
        with running_echo_mesh(folder / "data", nodes=_CLUSTERS / "three-sites-nodes.yaml") as mesh:
            yield mesh


def _jc(mesh: EchoMesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mesh.command", *arguments, "--data-dir", str(mesh.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _nodes(mesh: EchoMesh) -> list[dict]:
    told = _jc(mesh, "nodes", "--json")
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)["data"]


def _raylets(mesh: EchoMesh) -> dict[str, int | None]:
    return json.loads((mesh.data_dir / "nodes.json").read_text())


def test_each_site_has_its_node_and_the_head_carries_the_ingress(three_sites):
    nodes = {node["name"]: node for node in _nodes(three_sites)}
    assert set(nodes) == {"head", *_SITES}
    assert all(node["state"] == "accepted" for node in nodes.values())
    assert nodes["head"]["carries_ingresses"]
    assert nodes["head"]["operator"] is None
    for name, operator in _SITES.items():
        node = nodes[name]
        assert (node["operator"], node["region"], node["address"]) == (operator, name, "127.0.0.1")
        assert node["silicon"]["is_simulated"]
        assert node["silicon"]["detected"]
        assert node["grid"]["gco2_per_kwh"] > 0
        assert node["grid"]["is_estimated"]
    assert nodes["us-east"]["grid"]["zone"] == "US-MIDA-PJM"


def test_the_table_shows_them(three_sites):
    told = _jc(three_sites, "nodes")
    assert told.returncode == 0, told.stderr
    for part in ("eu-de", "rheinwerk/eu-de", "h100 (simulated; ", "mean of 2024", "accepted, ingress"):
        assert part in told.stdout


def test_it_answers_and_all_nodes_are_one_host_in_one_book(three_sites):
    answer = three_sites.chat("on three sites")
    assert answer.ok, answer.text
    made = _jc(three_sites, "keys", "new", "--account", OPERATOR_ACCOUNT)
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    meters = requests.get(f"{three_sites.url}/v1/meters", headers=headers, timeout=30).json()["data"]
    assert len(meters) == 1


def test_everything_listens_on_loopback_only(three_sites):
    addresses = listening(three_sites.process.pid)
    assert len(addresses) > 10
    assert off_loopback(addresses) == {}


def test_a_node_that_is_killed_comes_back_with_its_labels_and_leaves_no_process(three_sites):
    before = _raylets(three_sites)
    victim = before["eu-de"]
    assert victim is not None
    assert "raylet" in command_of(victim)
    left = descendants(victim) - {victim}
    assert left, "a node has agents"
    os.kill(victim, signal.SIGKILL)
    assert three_sites.wait_until(lambda: _raylets(three_sites)["eu-de"] not in (None, victim), _BACK_WITHIN_S)
    after = _raylets(three_sites)
    assert {name: pid for name, pid in after.items() if name != "eu-de"} == {
        name: pid for name, pid in before.items() if name != "eu-de"
    }
    assert not alive(left)
    assert three_sites.wait_until(
        lambda: [node["state"] for node in _nodes(three_sites) if node["name"] == "eu-de"] == ["accepted", "dead"],
        _BACK_WITHIN_S,
    ), "Ray knows the new node, and that the old one is gone"
    (back,) = [node for node in _nodes(three_sites) if node["name"] == "eu-de" and node["state"] == "accepted"]
    assert (back["operator"], back["region"], back["silicon"]["label"]) == ("rheinwerk", "eu-de", "h100")
    answer = three_sites.chat("after the node came back")
    assert answer.ok, answer.text
    assert three_sites.process.stdout is not None
    told = three_sites.process.stdout.fileno()
    os.set_blocking(told, False)
    with pytest.raises(BlockingIOError):  # standard output is for those who asked, not for Ray's troubles
        os.read(told, 1)


def test_a_mesh_that_is_killed_takes_its_nodes_with_it(three_sites):
    """The last that asks it."""
    # Ray's agents first try for a minute to tell the head, which is gone, of their raylet's end.
    started = {pid for pid in descendants(three_sites.process.pid) if "Agent" not in command_of(pid)}
    assert len([pid for pid in started if "raylet" in command_of(pid)]) >= 1 + len(_SITES)
    three_sites.process.kill()
    three_sites.process.wait()
    assert three_sites.wait_until(lambda: not alive(started), _GONE_WITHIN_S), alive(started)


def test_silicon_that_is_not_what_its_label_says_is_refused_at_the_start(tmp_path, monkeypatch):
    settings = yaml.safe_load((_CLUSTERS / "three-sites.yaml").read_text())
    settings["silicon"][1] |= {"detected_as": "no such silicon", "simulated": False}
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("JC_CONFIG", str(tmp_path / "mesh.yaml"))
    nodes = yaml.safe_load((_CLUSTERS / "three-sites-nodes.yaml").read_text())
    nodes["nodes"] = [node for node in nodes["nodes"] if node["name"] in ("eu-fi", "eu-de")]
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(nodes))
    record = tmp_path / "data" / "nodes.json"
    record.parent.mkdir(mode=0o700)
    record.write_text('{"head": 1}')
    process = start_echo(tmp_path / "data", free_port(), fail_with="a refused node", nodes=tmp_path / "nodes.yaml")
    mesh = EchoMesh(url="", key="", data_dir=tmp_path / "data", process=process)
    assert mesh.wait_until(lambda: not record.exists(), _BACK_WITHIN_S)
    running = [pid for pid in descendants(process.pid) if "raylet" in command_of(pid)]
    told = told_at_the_end(process)
    assert running == [], "the record was there with nodes of this mesh: its processes are anybody's now"
    assert "nodes are refused" in told
    assert "node eu-de (127.0.0.1): labelled 'h100', which is detected as 'no such silicon'" in told
    assert "eu-fi" not in told.partition("nodes are refused")[2]
