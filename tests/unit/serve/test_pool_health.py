from hypothesis import given
from hypothesis import strategies as st

from serve.pool_health import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, PoolHealth


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _backoff_s(health: PoolHealth, clock: FakeClock) -> float:
    """How long the pool is still set aside; the clock goes on until it isn't."""
    began_s = clock.now_s
    while health.is_set_aside("p"):
        clock.now_s += 0.125
    return clock.now_s - began_s


def test_a_pool_that_never_failed_is_not_set_aside_and_has_no_probe():
    health = PoolHealth(FakeClock())
    assert not health.is_set_aside("p")
    assert not health.probe("p")


def test_each_failure_in_a_row_sets_it_aside_twice_as_long_up_to_a_minute():
    clock = FakeClock()
    health = PoolHealth(clock)
    waits_s = []
    for _ in range(9):
        health.failed("p")
        waits_s.append(_backoff_s(health, clock))
    assert waits_s == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_another_pool_is_no_worse_off():
    health = PoolHealth(FakeClock())
    health.failed("p")
    assert (health.is_set_aside("p"), health.is_set_aside("q")) == (True, False)
    assert health.set_aside() == ["p"]


def test_attempts_that_fail_together_are_one_failure():
    clock = FakeClock()
    health = PoolHealth(clock)
    for _ in range(50):
        health.failed("p")
    assert _backoff_s(health, clock) == FIRST_BACKOFF_S


def test_one_request_probes_it_and_the_others_find_it_set_aside_until_that_is_over():
    clock = FakeClock()
    health = PoolHealth(clock)
    health.failed("p")
    assert not health.probe("p"), "it is too early"
    clock.now_s += FIRST_BACKOFF_S
    assert health.probe("p")
    clock.now_s += 10 * LONGEST_BACKOFF_S
    assert health.is_set_aside("p")
    assert not health.probe("p")
    health.begun("p")
    assert not health.is_set_aside("p")


def test_a_probe_that_told_nothing_leaves_the_next_request_to_probe():
    clock = FakeClock()
    health = PoolHealth(clock)
    health.failed("p")
    clock.now_s += FIRST_BACKOFF_S
    assert health.probe("p")
    health.left("p")
    assert not health.is_set_aside("p")
    assert health.probe("p")


def test_a_probe_that_fails_doubles_the_time():
    clock = FakeClock()
    health = PoolHealth(clock)
    health.failed("p")
    clock.now_s += FIRST_BACKOFF_S
    assert health.probe("p")
    health.failed("p")
    assert _backoff_s(health, clock) == 2 * FIRST_BACKOFF_S


def test_an_answer_that_begins_lets_it_back_in_and_only_a_whole_one_forgets_its_failures():
    clock = FakeClock()
    health = PoolHealth(clock)
    health.failed("p")
    health.begun("p")
    assert not health.is_set_aside("p")
    health.failed("p")
    assert _backoff_s(health, clock) == 2 * FIRST_BACKOFF_S
    health.begun("p")
    health.succeeded("p")
    health.failed("p")
    assert _backoff_s(health, clock) == FIRST_BACKOFF_S


_STEPS = st.lists(st.one_of(st.sampled_from(["failed", "begun", "succeeded", "probe"]), st.floats(0, 90)), max_size=60)


@given(_STEPS)
def test_it_is_never_set_aside_for_more_than_a_minute_without_a_probe(steps):
    clock = FakeClock()
    health = PoolHealth(clock)
    is_probed = False
    for step in steps:
        if isinstance(step, float):
            clock.now_s += step
        elif step == "probe":
            was_aside = health.is_set_aside("p")
            began = health.probe("p")
            assert not (was_aside and began)
            is_probed = is_probed or began
        else:
            before = clock.now_s
            getattr(health, step)("p")
            is_probed = is_probed and health.is_set_aside("p") and step == "failed"
            assert clock.now_s == before
    if is_probed:
        health.left("p")
    clock.now_s += LONGEST_BACKOFF_S
    assert not health.is_set_aside("p")
