"""Reports of begin and end become spans that never overlap."""

from hypothesis import given
from hypothesis import strategies as st

from metering.engine_steps import RequestWork, StepBegan, StepEnded
from metering.replica_steps import ReplicaSteps


def _began(steps, number, at):
    work = (RequestWork(f"r{number}", 1, 0, 0, 1, 1),)
    steps.began(StepBegan(replica="a", step=number, at_monotonic_ns=at, work=work))


def _ended(steps, number, at):
    steps.ended(StepEnded(replica="a", step=number, at_monotonic_ns=at, produced={}))


def _spans(steps, begin=0, end=1000):
    return [(span.begin_ns, span.end_ns, span.work.requests[0].request_id) for span in steps.spans(begin, end)]


def test_a_step_scheduled_ahead_begins_when_its_predecessor_ends():
    steps = ReplicaSteps()
    _began(steps, 1, 100)
    _began(steps, 2, 150)
    assert _spans(steps) == [(100, 1000, "r1")]
    _ended(steps, 1, 300)
    assert _spans(steps) == [(100, 300, "r1"), (300, 1000, "r2")]
    _ended(steps, 2, 400)
    assert _spans(steps) == [(100, 300, "r1"), (300, 400, "r2")]


def test_spans_are_clipped_to_the_window():
    steps = ReplicaSteps()
    _began(steps, 1, 100)
    _ended(steps, 1, 300)
    assert _spans(steps, 200, 250) == [(200, 250, "r1")]
    assert _spans(steps, 300, 400) == []


def test_a_lost_end_is_bridged_by_the_next_steps_begin():
    steps = ReplicaSteps()
    _began(steps, 1, 100)
    _began(steps, 2, 200)
    _ended(steps, 2, 300)
    assert _spans(steps) == [(100, 200, "r1"), (200, 300, "r2")]


def test_an_engine_that_starts_afresh_counts_from_one_again():
    steps = ReplicaSteps()
    _began(steps, 7, 100)
    _began(steps, 1, 500)
    assert _spans(steps) == [(100, 500, "r7"), (500, 1000, "r1")]


def test_forgetting_keeps_what_an_open_interval_can_ask_for():
    steps = ReplicaSteps()
    _began(steps, 1, 100)
    _ended(steps, 1, 200)
    _began(steps, 2, 200)
    _ended(steps, 2, 300)
    steps.forget_before(200)
    assert _spans(steps) == [(200, 300, "r2")]


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.booleans()), max_size=40),
    window=st.tuples(st.integers(0, 500), st.integers(0, 500)),
)
def test_spans_never_overlap_whatever_is_lost(events, window):
    steps = ReplicaSteps()
    begun = ended = now = 0
    for is_begin, passed, is_lost in events:
        now += passed
        if is_begin:
            begun += 1
            if not is_lost:
                _began(steps, begun, now)
        elif ended < begun:
            ended += 1
            if not is_lost:
                _ended(steps, ended, now)
    begin, length = window
    spans = steps.spans(begin, begin + length)
    reached = begin
    for span in spans:
        assert reached <= span.begin_ns < span.end_ns <= begin + length
        reached = span.end_ns
