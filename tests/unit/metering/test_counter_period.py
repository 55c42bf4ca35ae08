"""How often counters move, found by watching counters that do so as the test says."""

import pytest

from metering.counters.counter_period import measured_periods

MILLISECOND = 1_000_000


class Watch:
    """A clock that moves on only while the watcher sleeps, and a little with every reading."""

    def __init__(self, lab):
        self.clock = lab.clock()
        self.began_ns = self.clock.now_ns
        self.moves = []
        self._lab = lab

    def counter(self, energy_after, device_id="d"):
        """A counter whose energy is a function of the time since the beginning."""
        counter = self._lab.counter(self.clock, device_id=device_id)
        self.moves.append((counter, energy_after))
        return counter

    def sleep(self, seconds):
        self.clock.now_ns += int(seconds * 1e9)
        for counter, energy_after in self.moves:
            counter.value = energy_after(self.clock.now_ns - self.began_ns)

    def periods(self):
        counters = [counter for counter, _ in self.moves]
        return measured_periods(counters, monotonic_ns=self.clock.monotonic_ns, sleep=self.sleep)

    @property
    def took_ns(self):
        return self.clock.now_ns - self.began_ns


@pytest.fixture
def watch(lab):
    return Watch(lab)


def _every(milliseconds):
    return lambda elapsed_ns: elapsed_ns // (milliseconds * MILLISECOND)


@pytest.mark.parametrize("milliseconds", [4, 20, 50, 100, 160])
def test_the_period_is_found_to_a_poll(watch, milliseconds):
    watch.counter(_every(milliseconds))
    assert watch.periods()["d"] == pytest.approx(milliseconds * MILLISECOND, abs=2 * MILLISECOND)


def test_all_are_watched_at_once_and_for_half_a_second_at_most(watch):
    watch.counter(_every(20), "fast")
    watch.counter(_every(100), "slow")
    watch.counter(lambda _: 0, "still")
    assert watch.periods() == {"fast": 20 * MILLISECOND, "slow": 100 * MILLISECOND}
    assert watch.took_ns <= 500 * MILLISECOND


def test_counters_that_are_slow_to_read_take_no_longer(watch):
    watch.counter(_every(90))
    measured_periods(
        [counter for counter, _ in watch.moves],
        monotonic_ns=watch.clock.monotonic_ns,
        sleep=lambda seconds: watch.sleep(seconds + 0.02),
    )
    assert watch.took_ns <= 530 * MILLISECOND


def test_fast_counters_need_no_half_second(watch):
    watch.counter(_every(10))
    watch.periods()
    assert watch.took_ns <= 120 * MILLISECOND


def test_a_pause_of_the_device_is_not_its_period(watch):
    def pausing(elapsed_ns):
        return min(elapsed_ns, 50 * MILLISECOND) // (20 * MILLISECOND) + _every(20)(
            max(0, elapsed_ns - 240 * MILLISECOND)
        )

    watch.counter(pausing)
    assert watch.periods() == {"d": 20 * MILLISECOND}


def test_a_counter_that_moved_once_or_twice_says_nothing(watch):
    watch.counter(lambda elapsed_ns: min(elapsed_ns, 50 * MILLISECOND) // (20 * MILLISECOND))
    watch.counter(_every(300), "slow")
    assert watch.periods() == {}


def test_a_counter_that_is_lost_is_left_out(watch):
    watch.counter(_every(20)).is_lost = True
    assert watch.periods() == {}


def test_a_clock_that_stands_still_does_not_hold_it_up(lab):
    counter, polls = lab.counter(lab.clock()), []
    assert measured_periods([counter], monotonic_ns=lambda: 0, sleep=polls.append) == {}
    assert len(polls) <= 250
