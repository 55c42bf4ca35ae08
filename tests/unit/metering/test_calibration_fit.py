"""Fitting costs to shapes whose true costs are known."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.calibration import ReplicaWork
from metering.calibration_fit import EnergyModel, fit
from metering.errors import FitFailed

_TRUTH = EnergyModel(
    step=90_000, prefill_token=2_000, cached_token=15, decode_token=9_000, context_token=1.2, undetermined=()
)


def _shape(prompt, output, concurrency, *, cached=0, rounds=3):
    decode = concurrency * (output - 1) * rounds
    return ReplicaWork(
        steps=rounds * (output + concurrency // 2),
        prefill_tokens=rounds * concurrency * (prompt - cached),
        cached_tokens=rounds * concurrency * cached,
        decode_tokens=decode,
        context_tokens=decode * (prompt + output // 2),
        busy_ns=1,
        active_microjoules=1,
    )


def _grid():
    shapes = [_shape(*each) for each in itertools.product((40, 150, 540), (1, 16, 64), (1, 4, 16))]
    return [*shapes, _shape(540, 1, 1, cached=512), _shape(540, 1, 16, cached=512), _shape(540, 16, 4, cached=512)]


def _drawn(shapes, truth, noise=0.0, seed=1):
    chance = random.Random(seed)
    return [
        replace(each, active_microjoules=round(truth.predict(each) * (1 + chance.uniform(-noise, noise))))
        for each in shapes
    ]


def test_true_costs_are_found_again():
    found = fit(_drawn(_grid(), _TRUTH))
    assert found.undetermined == ()
    assert found.step == pytest.approx(_TRUTH.step, rel=1e-3)
    assert found.prefill_token == pytest.approx(_TRUTH.prefill_token, rel=1e-3)
    assert found.cached_token == pytest.approx(_TRUTH.cached_token, rel=0.02)
    assert found.decode_token == pytest.approx(_TRUTH.decode_token, rel=1e-3)
    assert found.context_token == pytest.approx(_TRUTH.context_token, rel=0.02)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_noise_of_the_shapes_is_about_the_error_of_those_held_out(seed):
    drawn = _drawn(_grid(), _TRUTH, noise=0.05, seed=seed)
    held_out = drawn[1::3]
    found = fit([each for each in drawn if each not in held_out])
    assert 0.5 < found.error_percent(held_out) < 8
    assert found.prefill_token == pytest.approx(_TRUTH.prefill_token, rel=0.15)


@settings(deadline=None, max_examples=30)
@given(
    costs=st.lists(st.floats(0, 1e5), min_size=5, max_size=5).filter(lambda costs: costs[0] + costs[1] > 1),
    seed=st.integers(0, 10_000),
)
def test_no_cost_is_ever_negative(costs, seed):
    names = ("step", "prefill_token", "cached_token", "decode_token", "context_token")
    truth = EnergyModel(**dict(zip(names, costs, strict=True)), undetermined=())
    found = fit(_drawn(_grid(), truth, noise=0.4, seed=seed))
    assert min(getattr(found, name) for name in names) >= 0


def test_a_decode_token_costs_a_prefill_token_at_least():
    cheap = replace(_TRUTH, decode_token=0.0, context_token=0.0)
    found = fit(_drawn(_grid(), cheap))
    assert found.decode_token == found.prefill_token > 0


def test_a_shape_counts_by_its_relative_error_however_small_it_is():
    # Two shapes of prefill alone disagree on its cost, the large one by far more joules.
    small, large = (
        replace(_shape(10, 1, 1), steps=0, prefill_tokens=10, active_microjoules=1000 * 10),
        replace(_shape(10, 1, 1), steps=0, prefill_tokens=10_000, active_microjoules=1200 * 10_000),
    )
    found = fit([small, large])
    assert abs(found.predict(small) / small.active_microjoules - 1) < 0.1
    assert found.error_percent([small, large]) == pytest.approx(9, abs=1)


def test_work_that_always_comes_in_one_proportion_is_reported_and_predicted_together():
    shapes = _drawn([_shape(prompt, 1, 1) for prompt in (40, 150, 540, 900)], _TRUTH)
    # To within a percent: what is left of the difference drowns in any measurement's noise.
    locked = [
        replace(each, steps=each.prefill_tokens * 7 + index % 2 * each.prefill_tokens // 14)
        for index, each in enumerate(shapes)
    ]
    drawn = _drawn(locked, _TRUTH)
    found = fit(drawn)
    assert {"step", "prefill_token"} <= set(found.undetermined)
    assert found.error_percent(drawn) < 0.1


def test_a_kind_of_work_that_never_occurred_is_reported_and_costs_nothing():
    found = fit(_drawn(_grid()[:27], _TRUTH))
    assert found.undetermined == ("cached_token",)
    assert found.cached_token == 0


def test_too_few_shapes_are_refused():
    with pytest.raises(FitFailed, match="5 shapes are too few to fit 5 costs"):
        fit(_drawn([*_grid()[10:14], _grid()[-1]], _TRUTH))
    with pytest.raises(FitFailed, match="too few"):
        fit([])


def test_a_shape_without_energy_is_refused():
    with pytest.raises(FitFailed, match="drew no energy"):
        fit([*_drawn(_grid(), _TRUTH), replace(_grid()[0], active_microjoules=0)])


def test_an_error_needs_shapes_that_were_held_out():
    with pytest.raises(FitFailed, match="held out"):
        _TRUTH.error_percent([])


def test_weights_are_relative_to_a_prefill_token():
    weights = _TRUTH.weights(3.5)
    assert weights.prefill_token == 1_000_000
    assert weights.step == 45_000_000
    assert weights.cached_token == 7_500
    assert weights.decode_token == 4_500_000
    assert weights.context_token == 600
    assert weights.allocation_percent == 3.5


def test_a_prefill_that_costs_nothing_gives_no_weights():
    free = replace(_TRUTH, prefill_token=0.0)
    with pytest.raises(FitFailed, match="did not grow with the prompt"):
        free.weights(None)
