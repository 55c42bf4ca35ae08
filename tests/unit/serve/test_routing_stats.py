import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.routing_stats import FRESH_FOR_S, RoutingStats


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _receipt(joules: float | None, *, tokens: int = 100) -> bytes:
    document = {"energy": {"total_joules": joules}, "workload": {"tokens": {"input": 0, "output": tokens}}}
    return json.dumps(document).encode()


def _learned(joules: float, seconds: float = 2.0) -> dict[str, float]:
    clock = Clock()
    stats = RoutingStats(clock)
    since = stats.begin()
    clock.now_s += seconds
    stats.end()
    stats.learn(_receipt(joules), since=since)
    return stats.snapshot()


def test_nothing_learned_says_nothing():
    assert RoutingStats(Clock()).snapshot() == {"running": 0.0}


def test_energy_and_time_of_what_finished():
    assert _learned(12.34) == {"running": 0.0, "microjoules_per_token": 120_000.0, "service_s": 2.0}


def test_unknown_energy_teaches_nothing():
    stats = RoutingStats(Clock())
    stats.learn(_receipt(None), since=0.0)
    stats.learn(_receipt(1.0, tokens=0), since=0.0)
    assert "microjoules_per_token" not in stats.snapshot()


def test_a_small_change_is_not_told():
    stats = RoutingStats(Clock())
    stats.learn(_receipt(12.0), since=0.0)
    before = stats.snapshot()
    stats.learn(_receipt(12.1), since=0.0)
    assert stats.snapshot() == before


def test_what_was_learned_long_ago_is_not_told():
    clock = Clock()
    stats = RoutingStats(clock)
    stats.learn(_receipt(12.0), since=0.0)
    clock.now_s += FRESH_FOR_S
    assert "service_s" in stats.snapshot()
    clock.now_s += 1
    assert stats.snapshot() == {"running": 0.0}


@given(st.integers(0, 1000))
def test_running_requests_are_a_power_of_two_below_their_number(count: int):
    stats = RoutingStats(Clock())
    for _ in range(count):
        stats.begin()
    told = stats.snapshot()["running"]
    assert told <= count < 2 * told or told == count == 0
    for _ in range(count):
        stats.end()
    assert stats.snapshot()["running"] == 0


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e5))
def test_two_digits_are_kept(joules: float, seconds: float):
    told = _learned(joules, seconds)
    assert told["microjoules_per_token"] == pytest.approx(joules * 1e4, rel=0.06)
    assert told["service_s"] == pytest.approx(seconds, rel=0.06)
