"""Failover of a running mesh whose engine fails as it is asked to: pools in two places, one replica each."""

import importlib.resources
from collections.abc import Iterator

import pytest
import yaml
from running_echo import EchoMesh, events, running_echo_mesh

_BETWEEN_TOKENS_S = 3
_SITES = (("self-hosted", "eu-fi"), ("self-hosted", "eu-de"))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    folder = tmp_path_factory.mktemp("failover")
    settings = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    site, pool = settings["sites"][0], settings["pools"][0]
    settings["sites"] = [{**site, "operator": operator, "region": region} for operator, region in _SITES]
    settings["pools"] = [
        {**pool, "site": f"{operator}/{region}", "cpus_per_replica": 0.25} for operator, region in _SITES
    ]
    settings["deadlines"]["between_tokens_s"] = _BETWEEN_TOKENS_S
    nodes = [{"name": region, "site": f"{operator}/{region}", "cpus": 1} for operator, region in _SITES]
    (folder / "mesh.yaml").write_text(yaml.safe_dump(settings))
    (folder / "nodes.yaml").write_text(yaml.safe_dump({"nodes": nodes}))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JC_CONFIG", str(folder / "mesh.yaml"))
        with running_echo_mesh(folder / "data", nodes=folder / "nodes.yaml") as running:
            yield running


def _content(chunks: list) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize(
    ("command", "outcome"),
    [("!break-once", "engine error"), ("!crash-once", "replica died"), ("!hang-once", "timeout")],
)
def test_a_stream_that_fails_in_its_middle_goes_on_elsewhere_and_its_receipt_says_so(mesh, command, outcome):
    text = f"{command} one two three"
    response = mesh.chat(text, stream=True)
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert _content(chunks) == f"{text} "
    assert [choice["delta"].get("role") for chunk in chunks for choice in chunk["choices"]] == [
        "assistant",
        None,
        None,
        None,
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert ["energy" in chunk for chunk in chunks] == [False, False, False, True]
    receipt = mesh.receipt(response.headers["X-Receipt-Id"])
    (attempt,) = receipt["execution"]["attempts"]
    assert attempt["outcome"] == outcome
    assert attempt["joules"] is None or attempt["joules"] >= 0
    assert receipt["placement"]["resumed_after_tokens"] == 1
    assert receipt["silicon"]["region"] != attempt["pool"].rpartition("/")[2]
    assert chunks[-1]["energy"]["joules"] == receipt["energy"]["total_joules"], "the attempt that finished is the bill"


def test_what_fails_everywhere_is_an_error_after_as_many_attempts_as_are_set(mesh):
    response = mesh.chat("!break now")
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
    assert response.json()["error"]["message"] == "no attempt of 3 succeeded; the last: engine error"


def test_a_stream_that_fails_everywhere_breaks_off_and_says_so(mesh):
    *_, last = events(mesh.chat("!break now please", stream=True))
    assert last["error"]["code"] == "upstream_error"
    assert last["error"]["message"] == "the answer broke off: engine error; 3 attempts failed"


def test_several_choices_are_not_resumed(mesh):
    *_, last = events(mesh.chat("!break now please", stream=True, n=2))
    assert "can't be resumed: n is above 1" in last["error"]["message"]


def test_what_the_client_got_wrong_is_tried_once(mesh):
    response = mesh.chat("!refuse this")
    assert (response.status_code, response.json()["error"]["message"]) == (400, "refused as asked")


def test_after_all_that_it_answers_and_says_where(mesh):
    response = mesh.chat("are you there")
    receipt = mesh.receipt(response.headers["X-Receipt-Id"])
    assert receipt["execution"]["retries"] == 0
    assert receipt["placement"]["pool"].startswith("smollm2-135m-instruct@self-hosted/eu-")
