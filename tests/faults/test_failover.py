"""Failover of a mesh of three places with a replica each: as the engine is asked to fail, then by real faults."""

from collections.abc import Iterator

import pytest
from failing_over import EVERY_ACCOUNT, FAULTS, FailoverRounds
from failover_report import failover_report
from rich.console import Console
from running_echo import EchoMesh, events, running_echo_mesh
from three_sites import ThreeSites, write_three_sites

_OF_EACH = 5
_SEED = 7


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> ThreeSites:
    return write_three_sites(tmp_path_factory.mktemp("failover"))


@pytest.fixture(scope="module")
def mesh(sites, tmp_path_factory) -> Iterator[EchoMesh]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JC_CONFIG", str(sites.config))
        data_dir = tmp_path_factory.mktemp("mesh") / "data"
        with running_echo_mesh(data_dir, accounts=EVERY_ACCOUNT, nodes=sites.nodes) as running:
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
        None,
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert ["energy" in chunk for chunk in chunks] == [False, False, False, False, True]
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


def test_after_all_that_it_answers_and_says_where(mesh, sites):
    response = mesh.chat("are you there")
    receipt = mesh.receipt(response.headers["X-Receipt-Id"])
    assert receipt["execution"]["retries"] == 0
    assert receipt["placement"]["pool"] in sites.pools.values()


def test_whatever_fails_in_the_middle_the_client_gets_the_whole_right_answer(mesh, sites, tmp_path):
    """A short run of the faults in the middle of answers; `make failover` does three hundred."""
    run = FailoverRounds(mesh, sites, tmp_path, seed=_SEED).run(_OF_EACH)
    Console(width=140).print(failover_report(run))
    assert run.verdict.is_clean, dict(run.verdict.findings)
    assert len(run.struck) == _OF_EACH * len(FAULTS)
    for fault in FAULTS:
        assert sum(each.retries > 0 for each in run.struck if each.round.fault == fault) >= 2, f"{fault} met no attempt"
