from hypothesis import given
from hypothesis import strategies as st

from placement.replica_ranking import ReplicaFacts, ReplicaRates, rank_replicas

_RATES = ReplicaRates(usd_per_microjoule=1e-13, usd_per_second_waited=1e-5, tokens=512)

rates = st.builds(
    ReplicaRates,
    usd_per_microjoule=st.floats(0, 1e-9),
    usd_per_second_waited=st.floats(0, 1),
    tokens=st.integers(1, 10_000),
)
figures = st.one_of(st.none(), st.floats(0, 1e9))


@st.composite
def pools(draw: st.DrawFn) -> list[ReplicaFacts]:
    names = draw(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=8, unique=True))
    return [
        ReplicaFacts(
            replica=name,
            queue_length=draw(st.one_of(st.none(), st.integers(0, 500))),
            max_ongoing=draw(st.integers(1, 256)),
            microjoules_per_token=draw(figures),
            service_s=draw(st.one_of(st.none(), st.floats(0, 1e4))),
        )
        for name in names
    ]


def _replica(name: str, *, queue: int | None = 0, microjoules: float | None = 1e5) -> ReplicaFacts:
    return ReplicaFacts(
        replica=name, queue_length=queue, max_ongoing=64, microjoules_per_token=microjoules, service_s=5.0
    )


@given(pools(), rates)
def test_each_given_replica_stands_once_and_no_other(replicas: list[ReplicaFacts], rates: ReplicaRates):
    assert sorted(rank_replicas(replicas, rates)) == sorted(each.replica for each in replicas)


@given(pools(), rates, st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_given_is_no_matter(replicas, rates, random):
    shuffled = list(replicas)
    random.shuffle(shuffled)
    assert rank_replicas(shuffled, rates) == rank_replicas(replicas, rates)


@given(st.integers(0, 500), st.integers(1, 500), figures, st.floats(0, 1e4), rates)
def test_a_longer_queue_is_never_preferred_all_else_equal(shorter, more, microjoules, service_s, rates):
    def replica(name: str, queue: int) -> ReplicaFacts:
        return ReplicaFacts(
            replica=name,
            queue_length=queue,
            max_ongoing=64,
            microjoules_per_token=microjoules,
            service_s=service_s,
        )

    # The longer queue has the name that wins ties.
    assert rank_replicas([replica("a", shorter + more), replica("b", shorter)], rates) == ["b", "a"]


@given(st.floats(0, 1e9), st.floats(1e-3, 1e9), st.integers(0, 100), rates)
def test_more_joules_for_each_token_are_never_preferred_all_else_equal(fewer, more, queue, rates):
    # The one with more has the name that wins ties.
    cheap, dear = _replica("b", queue=queue, microjoules=fewer), _replica("a", queue=queue, microjoules=fewer + more)
    assert rank_replicas([cheap, dear], rates) == ["b", "a"]


def test_a_small_difference_of_joules_does_not_outweigh_a_shorter_queue():
    assert rank_replicas([_replica("a", queue=1, microjoules=1.05e5), _replica("b", microjoules=1.2e5)], _RATES) == [
        "b",
        "a",
    ]


def test_fuller_batches_draw_fewer_joules_and_are_worth_a_short_wait_but_not_a_long_one():
    alone, fuller = _replica("alone", microjoules=4e5), _replica("fuller", queue=1, microjoules=1e5)
    assert rank_replicas([alone, fuller], _RATES) == ["fuller", "alone"]
    crowded = _replica("fuller", queue=63, microjoules=1e5)
    assert rank_replicas([alone, crowded], _RATES) == ["alone", "fuller"]


def test_a_replica_that_has_learned_nothing_counts_as_the_others_do():
    new = _replica("new", queue=1, microjoules=None)
    assert rank_replicas(
        [_replica("thrifty", queue=1, microjoules=1e5), new, _replica("c", queue=1, microjoules=9e5)], _RATES
    ) == [
        "thrifty",
        "new",
        "c",
    ]


def test_an_unknown_queue_counts_as_the_longest():
    assert rank_replicas([_replica("a", queue=None), _replica("b", queue=9), _replica("c", queue=3)], _RATES) == [
        "c",
        "a",
        "b",
    ]
