import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.queueing import ServiceTimes, expected_waits_s, remaining_wake_s

_QUEUE = st.fixed_dictionaries(
    {
        "ongoing": st.integers(0, 200),
        "replicas": st.integers(0, 5),
        "max_ongoing": st.integers(1, 32),
        "service_s": st.floats(0, 100, allow_subnormal=False),  # of which no share is rounded to nothing
        "wake_s": st.floats(0, 300),
    }
)


def wait_s(**queue: float) -> float:
    return float(expected_waits_s(**queue))


@pytest.mark.parametrize(
    ("ongoing", "replicas", "expected"),
    [(0, 1, 0), (3, 1, 0), (4, 1, 2), (5, 1, 4), (11, 1, 16), (5, 2, 0), (8, 2, 1), (0, 0, 60), (3, 0, 60), (6, 0, 66)],
)
def test_the_wait_by_hand(ongoing, replicas, expected):
    """Four at once in a replica, eight seconds each: a place becomes free every two."""
    assert wait_s(ongoing=ongoing, replicas=replicas, max_ongoing=4, service_s=8.0, wake_s=60.0) == expected


@given(_QUEUE)
def test_there_is_no_wait_just_while_there_is_room(queue):
    has_room = queue["replicas"] > 0 and queue["ongoing"] < queue["replicas"] * queue["max_ongoing"]
    if has_room:
        assert wait_s(**queue) == 0
    elif queue["service_s"] > 0 and queue["replicas"] > 0:
        assert wait_s(**queue) > 0
    elif queue["replicas"] == 0:
        assert wait_s(**queue) >= queue["wake_s"]


@given(_QUEUE, st.sampled_from(["ongoing", "service_s", "wake_s"]), st.integers(1, 50))
def test_a_longer_queue_slower_service_or_waking_never_shortens_it(queue, name, more):
    assert wait_s(**{**queue, name: queue[name] + more}) >= wait_s(**queue)


@given(_QUEUE, st.sampled_from(["replicas", "max_ongoing"]), st.integers(1, 50))
def test_more_room_never_lengthens_it(queue, name, more):
    assert wait_s(**{**queue, name: queue[name] + more}) <= wait_s(**queue) * (1 + 1e-12)


@given(st.lists(_QUEUE, min_size=1, max_size=5))
def test_columns_are_each_pools_own(queues):
    columns = {name: [queue[name] for queue in queues] for name in queues[0]}
    assert expected_waits_s(**columns).tolist() == [wait_s(**queue) for queue in queues]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ["ongoing", "replicas", "max_ongoing", "service_s", "wake_s"])
def test_a_figure_that_is_none_is_refused(name, value):
    figures = {"ongoing": 1.0, "replicas": 1.0, "max_ongoing": 1.0, "service_s": 1.0, "wake_s": 1.0, name: value}
    with pytest.raises(ValueError, match=name):
        expected_waits_s(**figures)


@pytest.mark.parametrize(
    ("waking_for_s", "left"), [(None, 60), (0, 60), (20, 40), (59, 6), (65, 6), (90, 30), (500, 440)]
)
def test_a_waking_that_began_has_less_left_and_one_that_is_late_has_more_the_later_it_is(waking_for_s, left):
    assert remaining_wake_s(60.0, waking_for_s) == left


def test_service_times_are_learned_by_pool():
    times = ServiceTimes({"a": 10.0, "b": 10.0})
    for _ in range(2000):
        times.observe("b", 2.0)
    assert times.service_s("a") == 10
    assert times.service_s("b") == pytest.approx(2, rel=0.01)
    assert times.column.tolist() == [times.service_s("a"), times.service_s("b")]
    with pytest.raises(ValueError, match="read-only"):
        times.column[0] = 1.0
    assert isinstance(times.column, np.ndarray)
