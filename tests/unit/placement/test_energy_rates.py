import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.energy_rates import MOST_STEP, EnergyRates, prior_rates

_PRIOR = 1e5
_rate = st.floats(1e3, 1e6)
_tokens = st.integers(0, 100_000)
_settled = st.tuples(_tokens, _tokens, st.integers(0, 10**15))


def learned(shapes, true_input, true_output, noise=lambda: 1.0) -> EnergyRates:
    rates = EnergyRates({"p": _PRIOR})
    for input_tokens, output_tokens in shapes:
        drawn = (input_tokens * true_input + output_tokens * true_output) * noise()
        rates.observe("p", input_tokens, output_tokens, round(drawn))
    return rates


def both(rates: EnergyRates) -> tuple[float, float]:
    now = rates.rates("p")
    return now.microjoules_per_input_token, now.microjoules_per_output_token


def test_the_prior_is_the_mean_over_as_many_of_both_and_output_is_dearer():
    prior = prior_rates(_PRIOR)
    assert prior.microjoules(1, 1) == pytest.approx(2 * _PRIOR)
    assert prior.microjoules_per_output_token == pytest.approx(10 * prior.microjoules_per_input_token)
    assert prior.larger_microjoules_per_token == prior.microjoules_per_output_token
    assert both(EnergyRates({"p": _PRIOR})) == pytest.approx(
        (prior.microjoules_per_input_token, prior.microjoules_per_output_token)
    )


@given(_rate, _rate, st.integers(0, 2**32))
@settings(max_examples=40)
def test_it_finds_the_true_rates_on_mixed_shapes(true_input, true_output, seed):
    """Shapes in which each kind of token is now nearly all of the energy, now nearly none."""
    rng = random.Random(seed)
    share = [rng.uniform(0.05, 0.95) for _ in range(600)]
    shapes = [(1 + int(1e6 * part / true_input * 1e3), 1 + int(1e6 * (1 - part) / true_output * 1e3)) for part in share]
    found = both(learned(shapes, true_input, true_output))
    assert found == pytest.approx((true_input, true_output), rel=0.05)


@given(st.integers(0, 2**32))
@settings(max_examples=10)
def test_it_settles_near_the_mean_of_what_scatters(seed):
    """Skewed noise with a mean of 1: the rates must fit the mean energy, not the lower median."""
    rng = random.Random(seed)
    shapes = [(rng.randint(1, 4000), rng.randint(1, 400)) for _ in range(4000)]
    sigma = 0.5
    rates = learned(shapes, 1e4, 1e5, lambda: rng.lognormvariate(-(sigma**2) / 2, sigma))
    tail = shapes[-1000:]
    expected = sum(rates.rates("p").microjoules(*shape) for shape in tail)
    assert expected == pytest.approx(sum(i * 1e4 + o * 1e5 for i, o in tail), rel=0.15)


@given(_tokens, _tokens, st.floats(0.01, 100), st.integers(1, 500))
@settings(max_examples=60)
def test_requests_of_one_shape_are_forecast_and_no_rate_runs_away(input_tokens, output_tokens, times, count):
    if input_tokens + output_tokens == 0:
        return
    prior = prior_rates(_PRIOR)
    true = prior.microjoules(input_tokens, output_tokens) * times
    rates = EnergyRates({"p": _PRIOR})
    for _ in range(count):
        rates.observe("p", input_tokens, output_tokens, round(true))
    bound = max(times, 1 / times) * 1.05
    for now, before in zip(
        both(rates), (prior.microjoules_per_input_token, prior.microjoules_per_output_token), strict=True
    ):
        assert before / bound**2 <= now <= before * bound**2
    if count > 200 and times > 0.1:
        assert rates.rates("p").microjoules(input_tokens, output_tokens) == pytest.approx(true, rel=0.05)


def test_after_ten_thousand_of_one_shape_another_shape_moves_it_no_more_than_one_step():
    rng = random.Random(1)
    rates = learned([(1000, 100)] * 10_000, 1e4, 1e5, lambda: rng.lognormvariate(-0.02, 0.2))
    before = both(rates)
    assert all(1e3 < rate < 1e6 for rate in before)
    rates.observe("p", 0, 1000, 10**12)
    for now, was in zip(both(rates), before, strict=True):
        assert was / MOST_STEP * (1 - 1e-9) <= now <= was * MOST_STEP * (1 + 1e-9)


def test_however_many_of_one_shape_leave_it_no_less_sure_than_its_prior():
    """Only inputs were seen; the first output moves its rate as it moves a new pool's, not further."""
    prior = prior_rates(_PRIOR)
    long = EnergyRates({"p": _PRIOR})
    for _ in range(60_000):
        long.observe("p", 1000, 0, round(prior.microjoules(1000, 0)))
    new = EnergyRates({"p": _PRIOR})
    for rates in (long, new):
        rates.observe("p", 0, 1000, round(1.2 * prior.microjoules(0, 1000)))
    assert both(long)[1] == pytest.approx(both(new)[1], rel=1e-4)


@given(st.lists(_settled, max_size=40), _settled)
def test_one_wild_figure_moves_each_rate_by_a_bounded_factor(earlier, wild):
    rates = EnergyRates({"p": _PRIOR})
    for figure in earlier:
        rates.observe("p", *figure)
    before = both(rates)
    rates.observe("p", *wild)
    for now, was in zip(both(rates), before, strict=True):
        assert was / MOST_STEP * (1 - 1e-9) <= now <= was * MOST_STEP * (1 + 1e-9)


def test_a_wild_figure_among_many_is_hardly_felt():
    rng = random.Random(1)
    shapes = [(rng.randint(1, 4000), rng.randint(1, 400)) for _ in range(500)]
    rates = learned(shapes, 1e4, 1e5)
    rates.observe("p", 1000, 100, 10**14)
    assert both(rates) == pytest.approx((1e4, 1e5), rel=0.2)


@given(st.lists(_settled, max_size=60))
def test_rates_are_always_positive_and_finite(figures):
    rates = EnergyRates({"p": _PRIOR})
    for figure in figures:
        rates.observe("p", *figure)
    assert all(0 < rate < math.inf for rate in both(rates))


def test_it_follows_a_lasting_change():
    rng = random.Random(1)
    shapes = [(rng.randint(1, 4000), rng.randint(1, 400)) for _ in range(500)]
    rates = learned(shapes, 1e4, 1e5)
    for input_tokens, output_tokens in shapes:
        rates.observe("p", input_tokens, output_tokens, round(input_tokens * 5e3 + output_tokens * 5e5))
    assert both(rates) == pytest.approx((5e3, 5e5), rel=0.15)


@pytest.mark.parametrize("figure", [(10, 10, None), (0, 0, 10**9)])
def test_a_request_without_energy_or_tokens_teaches_nothing(figure):
    rates = EnergyRates({"p": _PRIOR})
    before = both(rates)
    rates.observe("p", *figure)
    assert both(rates) == before


@pytest.mark.parametrize(
    ("figure", "name"), [((-1, 1, 1), "input_tokens"), ((1, -1, 1), "output_tokens"), ((1, 1, -1), "microjoules")]
)
def test_a_negative_figure_is_refused(figure, name):
    with pytest.raises(ValueError, match=name):
        EnergyRates({"p": _PRIOR}).observe("p", *figure)


@pytest.mark.parametrize("prior", [0.0, -1.0, float("nan"), float("inf")])
def test_a_prior_that_is_none_is_refused(prior):
    with pytest.raises(ValueError, match="prior_microjoules_per_token"):
        EnergyRates({"p": prior})


def test_columns_are_in_the_priors_order_and_only_to_be_read():
    rates = EnergyRates({"b": 1e5, "a": 2e5})
    rates.observe("a", 100, 100, 10**9)
    inputs, outputs = rates.microjoules_per_input_token, rates.microjoules_per_output_token
    pools = [rates.rates("b"), rates.rates("a")]
    assert inputs.tolist() == [pool.microjoules_per_input_token for pool in pools]
    assert outputs.tolist() == [pool.microjoules_per_output_token for pool in pools]
    with pytest.raises(ValueError, match="read-only"):
        inputs[0] = 1.0
