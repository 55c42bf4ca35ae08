"""What open requests have drawn so far: as a settlement at that moment would say it, and without touching the book."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

SLOW = {"closes_at_will": False, "period_ns": 100_000_000}


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path, host=SLOW)
    yield simulated
    simulated.close()


def _decoding(lab, host, *numbers):
    """Requests that share every step from now on."""
    requests = [lab.request_id(number) for number in numbers]
    for request in requests:
        host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(*(lab.decode(request) for request in requests))
    return requests


def test_a_request_that_no_step_listed_has_drawn_nothing(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.run(100)
    host.meter.tick()
    assert host.meter.running("cpu-a") == {request: 0}


def test_closed_intervals_count_whole_and_what_is_open_by_estimate(lab, host):
    (request,) = _decoding(lab, host, 1)
    host.run(100)
    host.meter.tick()
    assert host.meter.running("cpu-a") == {request: 100 * 10_000}
    host.run(50)
    assert host.meter.running("cpu-a") == {request: 150 * 10_000}, "no counter was read"


def test_without_a_power_known_only_what_is_closed_counts(lab, host):
    (request,) = _decoding(lab, host, 1)
    host.run(50)
    assert host.meter.running("cpu-a") == {request: 0}


def test_requests_of_one_step_draw_alike_and_those_of_other_replicas_are_not_told(lab, tmp_path):
    host = lab.host(tmp_path, replicas=("cpu-a", "cpu-b"))
    requests = _decoding(lab, host, 1, 2)
    host.meter.begin(lab.request_id(3), "cpu-b", b"")
    host.run(100, cpu={"cpu-a": 1})
    host.meter.tick()
    assert host.meter.running("cpu-a") == dict.fromkeys(requests, 500_000)
    assert host.meter.running("cpu-b") == {lab.request_id(3): 0}
    assert host.meter.running("cpu-c") == {}
    host.close()


def test_what_will_not_be_billed_is_left_out(lab, host):
    _decoding(lab, host, 1)
    host.run(100)
    host.meter.tick()
    host.restart_meter()
    assert host.meter.settle(lab.request_id(1), "finished").energy.total_microjoules is None
    _decoding(lab, host, 2)
    host.restart_meter()
    assert host.meter.running("cpu-a") == {}


@given(runs=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 50), st.booleans()), min_size=1, max_size=12))
def test_a_settlement_says_what_was_told_at_its_moment(lab, runs):
    """With a counter that closes when it is due only, a settlement adds nothing to what was last told."""
    with lab.folder() as folder:
        host = lab.host(folder, host=SLOW)
        requests = _decoding(lab, host, 1, 2)
        for milliseconds, watts, ticks in runs:
            host.run(milliseconds, watts=watts)
            if ticks:
                host.meter.tick()
        before = host.meter.totals()
        told = host.meter.running("cpu-a")
        assert host.meter.totals() == before
        for request in requests:
            settled = host.meter.settle(request, "finished").energy
            if settled.total_microjoules is not None:
                assert settled.total_microjoules == told[request]
        host.close()
