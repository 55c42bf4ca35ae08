"""The difference of two readings: known, quarantined, or unknown, and never made up."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.counters.counter import CounterFacts, Reading, difference, timely

FACTS = CounterFacts(
    device_id="d",
    method="rapl",
    scope="cpu-package",
    period_ns=1_000_000,
    wrap_microjoules=None,
    maximum_power_milliwatts=400_000,
    error_percent=5.0,
    best_confidence="measured-apportioned",
    closes_at_will=True,
)
SECOND = 1_000_000_000


def _between(before, after, elapsed_ns, **changes):
    return difference(
        Reading(energy_microjoules=before, at_monotonic_ns=0),
        Reading(energy_microjoules=after, at_monotonic_ns=elapsed_ns),
        replace(FACTS, **changes),
    )


def test_the_plain_case():
    delta = _between(100, 350, SECOND)
    assert (delta.energy_microjoules, delta.quarantined_microjoules, delta.lost) == (250, 0, None)


def test_a_decrease_without_a_wrap_range_is_a_reset():
    delta = _between(100, 50, SECOND)
    assert delta.energy_microjoules is None
    assert "reset" in delta.lost


@pytest.mark.parametrize(("excess", "is_plausible"), [(0, True), (1, False)])
def test_plausible_is_up_to_a_fifth_over_maximum_power_and_one_period(excess, is_plausible):
    most = 400_000_000 * 12 // 10 * 1001 // 1000
    delta = _between(0, most + excess, SECOND)
    assert (delta.lost is None) is is_plausible
    assert delta.quarantined_microjoules == (0 if is_plausible else most + excess)


def test_two_readings_in_a_row_may_hold_one_period_of_energy():
    assert _between(0, 400, 0).energy_microjoules == 400


def test_without_a_known_maximum_nothing_is_quarantined():
    delta = _between(0, 10**15, SECOND, maximum_power_milliwatts=None)
    assert delta.energy_microjoules == 10**15


@given(start=st.integers(0, 999_999), energy=st.integers(0, 400_000), elapsed=st.integers(1_000_000, 2_000_000))
def test_a_wrapping_counter_gives_what_was_added(start, energy, elapsed):
    delta = _between(start, (start + energy) % 1_000_000, elapsed, wrap_microjoules=1_000_000)
    assert delta.energy_microjoules == energy


@given(before=st.integers(0, 2**60), after=st.integers(0, 2**60), elapsed=st.integers(0, 10**13))
def test_a_difference_is_known_or_has_a_reason(before, after, elapsed):
    delta = _between(before, after, elapsed)
    assert (delta.energy_microjoules is None) == (delta.lost is not None)
    assert delta.quarantined_microjoules >= 0
    assert (delta.energy_microjoules or 0) >= 0


def test_a_reader_that_was_held_up_reads_again_so_that_the_time_is_the_values():
    """The energy of a second in which the process didn't run would else look like a jump in the next interval."""
    clock = iter([0, 1_000_000_000, 1_000_000_100, 1_000_000_300])
    energy = iter([5, 7])
    reading = timely(lambda: next(energy), lambda: next(clock))
    assert reading == Reading(energy_microjoules=7, at_monotonic_ns=1_000_000_300)


def test_a_reader_that_is_always_slow_is_believed_in_the_end():
    clock = iter(range(0, 10**12, 10**9))
    energy = iter(range(100))
    reading = timely(lambda: next(energy), lambda: next(clock))
    assert reading == Reading(energy_microjoules=2, at_monotonic_ns=5 * 10**9)
