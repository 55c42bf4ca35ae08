from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from placement.scaling import PoolLoad, next_to_wake, wanted_replicas


@st.composite
def loads(draw: st.DrawFn) -> PoolLoad:
    most = draw(st.integers(1, 50))
    return PoolLoad(
        pool=draw(st.text("abcdef", min_size=4, max_size=8)),
        in_flight=draw(st.floats(0, 1e5)),
        per_replica=draw(st.floats(1, 500)),
        running=draw(st.integers(0, 60)),
        least=draw(st.integers(0, most)),
        most=most,
    )


def _load(pool: str, **figures: float) -> PoolLoad:
    given: dict = {"in_flight": 0, "per_replica": 10, "running": 1, "least": 0, "most": 2, **figures}
    return PoolLoad(pool=pool, **given)


class TestWanted:
    @given(loads())
    def test_it_is_within_the_bounds(self, load: PoolLoad):
        assert load.least <= wanted_replicas(load) <= load.most

    @given(loads(), st.floats(0, 1e5))
    def test_more_requests_never_want_fewer_replicas(self, load: PoolLoad, more: float):
        assert wanted_replicas(replace(load, in_flight=load.in_flight + more)) >= wanted_replicas(load)

    @given(loads())
    def test_from_none_it_is_one_at_a_time(self, load: PoolLoad):
        assert wanted_replicas(replace(load, running=0)) <= max(1, load.least)

    @given(loads())
    def test_an_idle_pool_has_its_least(self, load: PoolLoad):
        assert wanted_replicas(replace(load, in_flight=0)) == load.least

    @given(loads())
    def test_what_it_wants_carries_the_requests_where_its_bounds_allow(self, load: PoolLoad):
        if load.running > 0 and (wanted := wanted_replicas(load)) < load.most:
            assert wanted * load.per_replica >= load.in_flight * (1 - 1e-9)

    def test_fifty_first_requests_start_one(self):
        assert wanted_replicas(_load("p", in_flight=50, running=0, most=8)) == 1
        assert wanted_replicas(_load("p", in_flight=50, running=1, most=8)) == 5


class TestNextToWake:
    def test_the_next_in_rank_wakes_when_all_before_it_are_full_at_their_most(self):
        full = _load("a", in_flight=20, running=2)
        assert next_to_wake([full, _load("b", running=0), _load("c", running=0)]) == "b"

    def test_none_while_a_cheaper_pool_has_room(self):
        assert next_to_wake([_load("a", in_flight=19, running=2), _load("b", running=0)]) is None

    def test_none_while_a_cheaper_pool_may_grow(self):
        assert next_to_wake([_load("a", in_flight=50, running=1), _load("b", running=0)]) is None

    def test_none_while_a_cheaper_pool_wakes(self):
        full = _load("a", in_flight=20, running=2)
        assert next_to_wake([full, _load("b", in_flight=1, running=0), _load("c", running=0)]) is None

    def test_a_cheaper_sleeping_pool_wakes_when_dearer_ones_carry_a_replicas_worth(self):
        asleep = _load("a", running=0)
        assert next_to_wake([asleep, _load("b", in_flight=9, running=2)]) is None
        assert next_to_wake([asleep, _load("b", in_flight=10, running=2)]) == "a"

    def test_a_cheaper_sleeping_pool_wakes_when_the_dearer_ones_are_full(self):
        asleep = _load("a", running=0, per_replica=100)
        assert next_to_wake([asleep, _load("b", in_flight=20, running=2)]) == "a"

    def test_nothing_wakes_in_a_mesh_without_requests(self):
        assert next_to_wake([_load("a", running=0), _load("b", running=1), _load("c", running=0)]) is None
        assert next_to_wake([_load("a", running=0), _load("b", running=0)]) is None
        assert next_to_wake([]) is None

    @given(st.lists(loads(), max_size=6))
    def test_only_the_first_that_sleeps_is_ever_woken_and_never_without_load(self, ranked: list[PoolLoad]):
        woken = next_to_wake(ranked)
        if woken is None:
            return
        first = next(load for load in ranked if load.running == 0)
        assert woken == first.pool
        assert first.in_flight == 0
        assert any(load.in_flight > 0 for load in ranked)

    @given(st.lists(loads(), max_size=6))
    def test_an_idle_mesh_sleeps_on(self, ranked: list[PoolLoad]):
        assert next_to_wake([replace(load, in_flight=0) for load in ranked]) is None
