import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from placement.plan import ExchangeRates, PoolSnapshot, RequestNeeds, plan
from placement.tiers import Tier

_POOL = PoolSnapshot(
    pool="p",
    model="m",
    region="eu-fi",
    capable_up_to=Tier.L3,
    context_tokens=4096,
    features=frozenset(),
    microjoules_per_token=1e5,
    usd_per_kwh=0.5,
    dc_pue=1.1,
    grid_intensity_gco2_per_kwh=100.0,
)
_NEEDS = RequestNeeds(model=None, tier=Tier.L1, region=None, expected_tokens=100, least_tokens=10, features=frozenset())
_RATES = ExchangeRates(usd_per_kgco2=0.1)

_pools = st.builds(
    PoolSnapshot,
    pool=st.text("abc", min_size=1, max_size=4),
    model=st.sampled_from(["m", "n"]),
    region=st.sampled_from(["eu-fi", "us-east"]),
    capable_up_to=st.sampled_from(Tier),
    context_tokens=st.integers(16, 10_000),
    features=st.frozensets(st.sampled_from(["tools", "images"])),
    microjoules_per_token=st.floats(1, 1e9),
    usd_per_kwh=st.floats(0, 10),
    dc_pue=st.floats(1, 3),
    grid_intensity_gco2_per_kwh=st.floats(0, 1000),
)
_many = st.lists(_pools, max_size=6, unique_by=lambda pool: pool.pool)
_needs = st.builds(
    RequestNeeds,
    model=st.sampled_from([None, "m"]),
    tier=st.sampled_from(Tier),
    region=st.sampled_from([None, "eu-fi"]),
    expected_tokens=st.integers(1, 10_000),
    least_tokens=st.integers(0, 10_000),
    features=st.frozensets(st.sampled_from(["tools", "images"])),
)


@given(_needs, _many)
def test_every_pool_is_either_a_candidate_or_rejected_with_a_reason(needs, pools):
    made = plan(needs, pools, _RATES)
    named = [candidate.pool for candidate in made.candidates] + [refused.pool for refused in made.rejections]
    assert sorted(named) == sorted(pool.pool for pool in pools)
    assert all(refused.reason for refused in made.rejections)


@given(_needs, _many, st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_the_pools(needs, pools, random):
    shuffled = random.sample(pools, len(pools))
    assert plan(needs, pools, _RATES) == plan(needs, shuffled, _RATES)


@given(_needs, _many)
def test_no_candidate_breaks_a_pin_or_lacks_what_is_needed(needs, pools):
    by_name = {pool.pool: pool for pool in pools}
    for candidate in plan(needs, pools, _RATES).candidates:
        pool = by_name[candidate.pool]
        assert needs.region in (None, pool.region)
        assert needs.model in (None, pool.model)
        assert needs.features <= pool.features
        assert needs.least_tokens <= pool.context_tokens
        assert needs.model is not None or needs.tier.at_most(pool.capable_up_to)


@given(st.sampled_from(["microjoules_per_token", "usd_per_kwh", "dc_pue", "grid_intensity_gco2_per_kwh"]))
def test_dearer_in_any_part_never_ranks_higher(part):
    dearer = dataclasses.replace(_POOL, pool="a", **{part: getattr(_POOL, part) * 2})
    ranked = plan(_NEEDS, [dearer, _POOL], _RATES).candidates
    assert [candidate.pool for candidate in ranked] == ["p", "a"]


def test_ties_go_by_name():
    twin = dataclasses.replace(_POOL, pool="o")
    assert [candidate.pool for candidate in plan(_NEEDS, [_POOL, twin], _RATES).candidates] == ["o", "p"]
