import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.pins import Pins, region_matches
from placement.plan import PREFERENCES, ExchangeRates, Fleet, LiveFigures, Plan, PoolFacts, RequestNeeds, plan
from placement.tiers import Tier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One pool's facts and figures; the tests change one and lay them in columns."""

    facts: PoolFacts
    gco2_per_kwh: float = 100.0
    microjoules_per_input_token: float = 1e4
    microjoules_per_output_token: float = 1e5
    wait_s: float = 1.0
    unavailable: str | None = None
    set_aside: bool = False


_FACTS = PoolFacts(
    pool="p",
    model="m",
    model_revision=None,
    operator="acme",
    region="eu-fi",
    country="FI",
    silicon=None,
    capable_up_to=Tier.L3,
    context_tokens=4096,
    features=frozenset({"tools"}),
    usd_per_kwh=0.5,
    dc_pue=1.1,
    network_s=0.01,
)
_ROW = Row(facts=_FACTS)
_NEEDS = RequestNeeds(
    pins=Pins(), tier=Tier.L1, input_tokens=50, output_tokens=100, least_tokens=10, features=frozenset()
)
_RATES = PREFERENCES["balanced"]
_FIGURES = ("gco2_per_kwh", "microjoules_per_input_token", "microjoules_per_output_token", "wait_s")
_FACT_FIGURES = ("usd_per_kwh", "dc_pue", "network_s")

_places = st.sampled_from([("eu-de", "DE"), ("eu-fi", "FI"), ("EU-FR-2", "FR"), ("europe", None), ("us-east", "US")])
_wanted = st.sampled_from(["eu", "EU-de", "eu-fr", "fi", "US", "us-east", "eur", "europe", "mars"])
_features = st.frozensets(st.sampled_from(["tools", "images"]))


@st.composite
def _facts(draw: st.DrawFn) -> PoolFacts:
    region, country = draw(_places)
    return PoolFacts(
        pool=draw(st.text("abc", min_size=1, max_size=4)),
        model=draw(st.sampled_from(["m", "n"])),
        model_revision=None,
        operator=draw(st.sampled_from(["acme", "other"])),
        region=region,
        country=country,
        silicon=None,
        capable_up_to=draw(st.sampled_from(Tier)),
        context_tokens=draw(st.integers(16, 10_000)),
        features=draw(_features),
        usd_per_kwh=draw(st.floats(0, 10)),
        dc_pue=draw(st.floats(1, 3)),
        network_s=draw(st.floats(0, 1)),
    )


_rows = st.builds(
    Row,
    facts=_facts(),
    gco2_per_kwh=st.floats(0, 1000),
    microjoules_per_input_token=st.floats(0, 1e9),
    microjoules_per_output_token=st.floats(0, 1e9),
    wait_s=st.floats(0, 1e4),
    unavailable=st.sampled_from([None, None, "no replica is up"]),
    set_aside=st.booleans(),
)
_many = st.lists(_rows, max_size=7, unique_by=lambda row: row.facts.pool)
_pins = st.builds(
    Pins,
    model=st.sampled_from([None, None, "m"]),
    region=st.none() | _wanted,
    residency=st.lists(_wanted, max_size=2).map(tuple),
    operators=st.none() | st.frozensets(st.sampled_from(["acme", "other", "nobody"])),
)
_needs = st.builds(
    RequestNeeds,
    pins=st.just(Pins()) | _pins,
    tier=st.sampled_from(Tier),
    input_tokens=st.floats(0, 10_000),
    output_tokens=st.floats(0, 10_000),
    least_tokens=st.integers(0, 10_000),
    features=_features,
    likely_tokens=st.floats(0, 12_000),
)
_easy = st.builds(
    RequestNeeds,
    pins=st.just(Pins()),
    tier=st.just(Tier.L0),
    input_tokens=st.floats(1, 10_000),
    output_tokens=st.floats(1, 10_000),
    least_tokens=st.just(0),
    features=st.just(frozenset()),
)
_only_pinned = st.builds(lambda needs, pins: dataclasses.replace(needs, pins=pins), _easy, _pins)
_served = st.builds(
    Row,
    facts=_facts(),
    gco2_per_kwh=st.floats(1, 1000),
    microjoules_per_input_token=st.floats(1e3, 1e9),
    microjoules_per_output_token=st.floats(1e3, 1e9),
    wait_s=st.floats(0.1, 1e4),
)
_exchange = st.builds(ExchangeRates, usd_per_kgco2=st.floats(0, 100), usd_per_hour_waited=st.floats(0, 100))


def live(rows: list[Row]) -> LiveFigures:
    numbers = {name: [getattr(row, name) for row in rows] for name in _FIGURES}
    return LiveFigures(
        **numbers, unavailable=[row.unavailable for row in rows], set_aside=[row.set_aside for row in rows]
    )


def planned(needs: RequestNeeds, rows: list[Row], rates: ExchangeRates = _RATES) -> Plan:
    return plan(needs, Fleet([row.facts for row in rows]), live(rows), rates)


def names(made: Plan) -> list[str]:
    return [candidate.pool for candidate in made.candidates]


def changed(row: Row, **members: object) -> Row:
    facts = {name: value for name, value in members.items() if name in PoolFacts.__dataclass_fields__}
    rest = {name: value for name, value in members.items() if name not in facts}
    return dataclasses.replace(row, facts=dataclasses.replace(row.facts, **facts), **rest)


@given(_needs, _many, _exchange)
def test_every_pool_is_once_a_candidate_or_rejected_with_a_reason(needs, rows, rates):
    made = planned(needs, rows, rates)
    rejected = [refused.pool for refused in made.rejections]
    assert sorted(names(made) + rejected) == sorted(row.facts.pool for row in rows)
    assert (len(made.candidates), len(made.rejections)) == (len(names(made)), len(rejected))
    assert all(refused.reason for refused in made.rejections)
    assert rejected == sorted(rejected)


@given(_needs, _many, _exchange)
def test_the_columns_refuse_just_the_pools_that_the_rule_for_one_pool_refuses(needs, rows, rates):
    by_name = {row.facts.pool: row for row in rows}
    made = planned(needs, rows, rates)
    assert all(needs.refusal(by_name[name].facts) is None for name in names(made))
    for refused in made.rejections:
        row = by_name[refused.pool]
        never = needs.refusal(row.facts)
        assert refused.is_for_now == (never is None)
        assert refused.reason == (row.unavailable if never is None else never)


@given(_only_pinned | _needs, _many, _exchange)
def test_no_candidate_breaks_a_pin_or_lacks_what_is_needed(needs, rows, rates):
    by_name = {row.facts.pool: row for row in rows}
    pins = needs.pins
    for name in names(planned(needs, rows, rates)):
        row = by_name[name]
        pool, place = row.facts, (row.facts.region, row.facts.country)
        assert pins.model in (None, pool.model)
        assert pins.region is None or region_matches(pins.region, *place)
        assert not pins.residency or any(region_matches(each, *place) for each in pins.residency)
        assert pins.operators is None or pool.operator in pins.operators
        assert pins.model is not None or needs.tier.at_most(pool.capable_up_to)
        assert needs.least_tokens <= pool.context_tokens
        assert needs.features <= pool.features
        assert row.unavailable is None


_EVERY_KIND = [
    changed(_ROW, pool=f"{model} {operator} {region}", model=model, operator=operator, region=region, country=country)
    for model in ("m", "n")
    for operator in ("acme", "other")
    for region, country in (("eu-de", "DE"), ("eu-fi", "FI"), ("EU-FR-2", "FR"), ("europe", None), ("us-east", "US"))
]


@given(_pins)
def test_pins_leave_just_the_pools_that_keep_them(pins):
    def keeps(pool: PoolFacts) -> bool:
        place = (pool.region, pool.country)
        return (
            pins.model in (None, pool.model)
            and (pins.region is None or region_matches(pins.region, *place))
            and (not pins.residency or any(region_matches(each, *place) for each in pins.residency))
            and (pins.operators is None or pool.operator in pins.operators)
        )

    made = planned(dataclasses.replace(_NEEDS, pins=pins), _EVERY_KIND)
    assert sorted(names(made)) == sorted(row.facts.pool for row in _EVERY_KIND if keeps(row.facts))


@given(_needs, _many, _exchange, st.randoms())
def test_the_plan_is_the_same_again_and_in_any_order_of_the_pools(needs, rows, rates, random):
    made = planned(needs, rows, rates)
    assert made == planned(needs, rows, rates)
    assert made == planned(needs, random.sample(rows, len(rows)), rates)


@given(_needs, _many, _exchange)
def test_scores_sum_from_their_parts_and_ascend_and_those_set_aside_or_tight_are_last(needs, rows, rates):
    by_name = {row.facts.pool: row for row in rows}
    made = list(planned(needs, rows, rates).candidates)
    for candidate in made:
        parts = (getattr(candidate, part.name) for part in dataclasses.fields(candidate) if part.name.endswith("_usd"))
        assert candidate.score_usd == pytest.approx(sum(parts))
        assert candidate.is_set_aside == by_name[candidate.pool].set_aside
        assert candidate.is_tight == (by_name[candidate.pool].facts.context_tokens < needs.likely_tokens)
    keys = [(candidate.is_tight, candidate.is_set_aside, candidate.score_usd, candidate.pool) for candidate in made]
    assert keys == sorted(keys)


@given(_needs, _many, _exchange)
def test_each_part_is_what_it_is_called(needs, rows, rates):
    by_name = {row.facts.pool: row for row in rows}
    for candidate in planned(needs, rows, rates).candidates:
        row = by_name[candidate.pool]
        microjoules = (
            needs.input_tokens * row.microjoules_per_input_token
            + needs.output_tokens * row.microjoules_per_output_token
        )
        kwh, hours = microjoules / 3.6e12, 1 / 3600
        kg = kwh * row.facts.dc_pue * row.gco2_per_kwh / 1000
        assert candidate.expected_microjoules == pytest.approx(microjoules)
        assert candidate.energy_usd == pytest.approx(kwh * row.facts.usd_per_kwh)
        assert candidate.facility_usd == pytest.approx(kwh * row.facts.usd_per_kwh * (row.facts.dc_pue - 1))
        assert candidate.carbon_usd == pytest.approx(kg * rates.usd_per_kgco2)
        assert candidate.wait_usd == pytest.approx(row.wait_s * hours * rates.usd_per_hour_waited)
        assert candidate.network_usd == pytest.approx(row.facts.network_s * hours * rates.usd_per_hour_waited)
        assert candidate.wait_s == row.wait_s


@given(
    _easy,
    _served,
    _many,
    st.builds(ExchangeRates, usd_per_kgco2=st.floats(0.01, 100), usd_per_hour_waited=st.floats(0.01, 100)),
    st.sampled_from(_FIGURES + _FACT_FIGURES),
    st.floats(1.1, 25),
    st.floats(0.1, 10),
)
def test_worse_in_any_figure_never_ranks_higher(needs, pool, rows, rates, part, times, plus):
    """More joules, a dirtier grid, a longer queue, a higher price or PUE, a longer way; all else equal."""
    figure = getattr(pool.facts if part in _FACT_FIGURES else pool, part)
    worse = changed(pool, **{part: figure * times + plus})
    name, others = pool.facts.pool, [row for row in rows if row.facts.pool != pool.facts.pool]
    beside = names(planned(needs, [changed(worse, pool=f"{name}~"), pool], rates))
    assert beside == [name, f"{name}~"]
    before, after = names(planned(needs, [pool, *others], rates)), names(planned(needs, [worse, *others], rates))
    assert after.index(name) >= before.index(name)
    assert [other for other in after if other != name] == [other for other in before if other != name]


@pytest.mark.parametrize("part", [*_FIGURES, *_FACT_FIGURES])
def test_each_figure_counts(part):
    """Twice as bad comes after, whatever its name."""
    value = getattr(_FACTS if part in _FACT_FIGURES else _ROW, part)
    assert names(planned(_NEEDS, [changed(_ROW, pool="a", **{part: value * 2}), _ROW])) == ["p", "a"]


def test_ties_go_by_name():
    assert names(planned(_NEEDS, [_ROW, changed(_ROW, pool="o")])) == ["o", "p"]


def test_one_set_aside_is_tried_after_the_dearest_other():
    rows = [changed(_ROW, pool="a", set_aside=True), changed(_ROW, pool="z", usd_per_kwh=1000.0)]
    assert names(planned(_NEEDS, rows)) == ["z", "a"]


def test_one_whose_context_is_likely_too_short_is_tried_when_nothing_else_is_left():
    """Its engine would refuse the prompt, and that is final; one that failed lately may be well again."""
    rows = [changed(_ROW, pool="long", context_tokens=9000, set_aside=True, usd_per_kwh=1000.0), _ROW]
    needs = dataclasses.replace(_NEEDS, likely_tokens=5000.0)
    assert names(planned(needs, rows)) == ["long", "p"]
    assert names(planned(dataclasses.replace(_NEEDS, likely_tokens=4096.0), rows)) == ["p", "long"]


@pytest.mark.parametrize(
    ("needs", "figure"),
    [
        ({"pins": Pins(model="n")}, "serves m, the request is pinned to n"),
        ({"pins": Pins(region="us")}, "is in region eu-fi (FI), the request is pinned to us"),
        ({"pins": Pins(residency=("us", "DE"))}, "is in region eu-fi (FI), the account's data must stay in us or DE"),
        ({"pins": Pins(operators=frozenset({"b", "a"}))}, "is run by acme, the account allows a or b"),
        ({"pins": Pins(operators=frozenset())}, "is run by acme, the account allows no operator"),
        ({"tier": Tier.L3}, "m is capable up to L2, the request is L3"),
        ({"least_tokens": 5000}, "m has a context of 4096 tokens, the request needs 5000"),
        ({"features": frozenset({"images", "tools"})}, "m lacks images; it has tools"),
    ],
)
def test_a_rejection_names_the_pools_own_figure(needs, figure):
    (refused,) = planned(dataclasses.replace(_NEEDS, **needs), [changed(_ROW, capable_up_to=Tier.L2)]).rejections
    assert (refused.reason, refused.is_for_now) == (figure, False)


def test_the_first_filter_that_fails_is_the_reason():
    wrong = changed(_ROW, capable_up_to=Tier.L0, context_tokens=1, features=frozenset(), unavailable="gone")
    needs = RequestNeeds(
        pins=Pins(region="us", residency=("us",), operators=frozenset()),
        tier=Tier.L1,
        input_tokens=1,
        output_tokens=1,
        least_tokens=10,
        features=frozenset({"tools"}),
    )
    reasons = []
    for fixed in (
        {"region": "us"},
        {"operator": "acme"},
        {"capable_up_to": Tier.L1},
        {"context_tokens": 10},
        {"features": frozenset({"tools"})},
    ):
        (refused,) = planned(needs, [wrong]).rejections
        reasons.append((refused.reason.split()[:3], refused.is_for_now))
        wrong = changed(wrong, **fixed)
        if "operator" in fixed:
            needs = dataclasses.replace(needs, pins=Pins(region="us", operators=frozenset({"acme"})))
    (refused,) = planned(needs, [wrong]).rejections
    assert (refused.reason, refused.is_for_now) == ("gone", True)
    assert reasons == [
        (["is", "in", "region"], False),
        (["is", "run", "by"], False),
        (["m", "is", "capable"], False),
        (["m", "has", "a"], False),
        (["m", "lacks", "tools;"], False),
    ]


def test_a_context_that_just_holds_it_is_enough():
    assert names(planned(dataclasses.replace(_NEEDS, least_tokens=4096), [_ROW])) == ["p"]
    assert names(planned(dataclasses.replace(_NEEDS, least_tokens=4097), [_ROW])) == []


def test_a_pinned_model_serves_what_its_tier_would_forbid():
    assert names(planned(dataclasses.replace(_NEEDS, pins=Pins(model="m"), tier=Tier.L3), [_ROW])) == ["p"]
    weak = changed(_ROW, capable_up_to=Tier.L0)
    assert names(planned(_NEEDS, [weak])) == []
    assert names(planned(dataclasses.replace(_NEEDS, pins=Pins(model="m")), [weak])) == ["p"]


@pytest.mark.parametrize("name", _FIGURES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_figure_that_is_none_is_refused_where_it_is_made(name, value):
    with pytest.raises(ValueError, match=rf"{name} of pool 1 "):
        live([_ROW, dataclasses.replace(_ROW, **{name: value})])


@pytest.mark.parametrize("name", [*_FACT_FIGURES, "context_tokens"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_fact_that_is_none_is_refused_where_it_is_made(name, value):
    with pytest.raises(ValueError, match=f"{name} of p "):
        dataclasses.replace(_FACTS, **{name: value})


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens", "least_tokens"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_need_that_is_none_is_refused_where_it_is_made(name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(_NEEDS, **{name: value})


def test_the_largest_figures_that_pass_give_a_finite_score():
    facts = dataclasses.replace(_FACTS, usd_per_kwh=1e6, dc_pue=100.0, network_s=1e6)
    row = Row(
        facts=facts,
        gco2_per_kwh=1e5,
        microjoules_per_input_token=1e15,
        microjoules_per_output_token=1e15,
        wait_s=1e9,
    )
    needs = dataclasses.replace(_NEEDS, input_tokens=10**9, output_tokens=10**9)
    (only,) = planned(needs, [row], ExchangeRates(usd_per_kgco2=1e6, usd_per_hour_waited=1e6)).candidates
    assert 0 < only.score_usd < float("inf")


def test_columns_that_are_not_one_for_each_pool_are_refused():
    with pytest.raises(ValueError, match="1 pools, in a fleet of 2"):
        plan(_NEEDS, Fleet([_FACTS, dataclasses.replace(_FACTS, pool="q")]), live([_ROW]), _RATES)
    with pytest.raises(ValueError, match="2 pools have figures of shape"):
        LiveFigures(**{name: [1.0] for name in _FIGURES}, unavailable=[None, None], set_aside=[False, False])
    with pytest.raises(ValueError, match="marks of shape"):
        LiveFigures(**{name: [1.0] for name in _FIGURES}, unavailable=[None], set_aside=[])


def test_two_pools_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'p'"):
        Fleet([_FACTS, _FACTS])


def test_the_callers_arrays_are_its_own():
    """A plan is read later than it is made; what changes in between must not show."""
    numbers = {name: np.array([1.0]) for name in _FIGURES}
    aside, unavailable = np.array([False]), [None]
    figures = LiveFigures(**numbers, unavailable=unavailable, set_aside=aside)
    made = plan(_NEEDS, Fleet([_FACTS]), figures, _RATES)
    before = made.candidates[0]
    for column in numbers.values():
        column[0] = 5.0
    aside[0], unavailable[0] = True, "gone"
    assert made.candidates[0] == before
    assert len(plan(_NEEDS, Fleet([_FACTS]), figures, _RATES).candidates) == 1


def test_rows_are_a_sequence():
    rows = [changed(_ROW, pool=name, region=region) for name, region in (("a", "eu"), ("b", "eu"), ("c", "us"))]
    made = planned(dataclasses.replace(_NEEDS, pins=Pins(region="eu")), rows)
    assert [row.pool for row in made.candidates[:1]] == ["a"]
    assert (made.candidates[-1].pool, made.rejections[0].pool) == ("b", "c")
    with pytest.raises(IndexError):
        made.candidates[2]
    assert made == Plan(candidates=tuple(made.candidates), rejections=tuple(made.rejections))
    assert made != Plan(candidates=(), rejections=tuple(made.rejections))
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301 - what we just wrote


def test_no_pools_make_an_empty_plan():
    made = planned(_NEEDS, [])
    assert (len(made.candidates), len(made.rejections)) == (0, 0)
