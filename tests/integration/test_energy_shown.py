"""What operators see of the meters: over HTTP, in the terminal, and in Ray's own Prometheus endpoint."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from mesh.app import OPERATOR_ACCOUNT
from receipts.signing_metrics import METRICS as SIGNING_METRICS
from serve.energy_metrics import METRICS

_DASHBOARD = Path(__file__).parents[2] / "clusters" / "grafana-dashboard.json"
_RAY_HANDS_ON_WITHIN_S = 45


def _jc(mesh, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mesh.command", *arguments, "--data-dir", str(mesh.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def operator_key(echo_mesh) -> str:
    return _jc(echo_mesh, "keys", "new", "--account", OPERATOR_ACCOUNT).stdout.strip()


def _meters(mesh, key: str) -> requests.Response:
    return requests.get(f"{mesh.url}/v1/meters", headers={"Authorization": f"Bearer {key}"}, timeout=30)


def test_an_operator_sees_the_book_and_that_it_balances(echo_mesh, operator_key):
    before = _meters(echo_mesh, operator_key).json()["data"][0]
    joules = echo_mesh.chat("eight words that cost a little processor time").json()["energy"]["joules"]
    after = _meters(echo_mesh, operator_key).json()
    assert after["unreachable"] == 0
    (report,) = after["data"]
    totals = report["totals"]
    accounts = ("request", "idle", "foreign", "overhead", "quarantine", "trueup")
    assert sum(totals[f"{account}_microjoules"] for account in accounts) == totals["counted_microjoules"] > 0
    assert report["identity_error_microjoules"] == 0
    assert report["settled_requests"] == before["settled_requests"] + 1
    charged = totals["request_microjoules"] - before["totals"]["request_microjoules"]
    assert charged == pytest.approx(joules * 1e6, abs=1)
    assert report["replicas"][0]["work"]["decode_tokens"] >= before["replicas"][0]["work"]["decode_tokens"] + 7
    assert report["statement_sequence"] > before["statement_sequence"]
    assert report["notes"]


def test_a_customer_does_not(echo_mesh):
    refused = _meters(echo_mesh, echo_mesh.key)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "insufficient_scope"
    assert _meters(echo_mesh, "jc_LIVE_wrong").status_code == 401


def test_jc_meter_prints_the_running_mesh_once(echo_mesh):
    printed = _jc(echo_mesh, "meter", "--once")
    assert printed.returncode == 0, printed.stderr
    for words in ("the accounts sum to what was counted", "foreign", "trueup", "not calibrated", "taken"):
        assert words in printed.stdout
    (report,) = json.loads(_jc(echo_mesh, "meter", "--json").stdout)
    assert report["identity_error_microjoules"] == 0


def test_jc_meter_without_a_mesh_shows_this_machines_counters(tmp_path):
    command = [sys.executable, "-m", "mesh.command", "meter", "--once", "--data-dir", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert printed.returncode == 0, printed.stderr
    assert "no mesh runs" in printed.stdout
    assert "watts" in printed.stdout
    assert list(tmp_path.iterdir()) == [], "looking must leave nothing behind"


def _exported(mesh) -> dict[str, set[str]]:
    """Names in Ray's Prometheus endpoints, with the label names of their samples."""
    session = Path(json.loads((mesh.data_dir / "run.json").read_text())["logs"]).parent
    discovery = session / "prom_metrics_service_discovery.json"
    labels: dict[str, set[str]] = {}
    for target in json.loads(discovery.read_text())[0]["targets"]:
        try:
            text = requests.get(f"http://{target}/metrics", timeout=10).text
        except requests.ConnectionError:
            continue  # Ray names its autoscaler's port too, which only a real cluster has
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def test_prometheus_gets_every_metric_and_the_dashboard_asks_for_no_other(echo_mesh):
    echo_mesh.chat("so that there is a receipt")
    histograms = {"ray_joule_mesh_request_joules", "ray_joule_mesh_time_to_signature_seconds"}
    wanted = {f"ray_{name}" for name in (*METRICS, *SIGNING_METRICS)}
    wanted = wanted - histograms | {f"{name}_bucket" for name in histograms}
    exported: dict[str, set[str]] = {}

    def has_all() -> bool:
        exported.update(_exported(echo_mesh))
        return wanted <= exported.keys()

    assert echo_mesh.wait_until(has_all, _RAY_HANDS_ON_WITHIN_S), f"missing: {wanted - exported.keys()}"
    asked = re.findall(r"(ray_joule_mesh_\w+)", _DASHBOARD.read_text())
    assert len(asked) > 10
    assert set(asked) <= exported.keys()
    for names, metric in re.findall(r"by \(([^)]*)\) \(\w*\(?(ray_joule_mesh_\w+)", _DASHBOARD.read_text()):
        assert {name.strip() for name in names.split(",")} <= exported[metric]
