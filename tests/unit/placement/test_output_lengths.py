import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.output_lengths import PRIOR_OUTPUT_TOKENS, OutputLengths
from placement.running_mean import RunningMean
from placement.tiers import Tier


@pytest.mark.parametrize("tier", Tier)
def test_it_starts_from_the_prior_and_never_passes_the_limit(tier):
    lengths = OutputLengths()
    assert lengths.expected(tier, None) == PRIOR_OUTPUT_TOKENS[tier]
    assert lengths.expected(tier, 7) == 7
    assert lengths.expected(tier, 10**6) == PRIOR_OUTPUT_TOKENS[tier]


def test_each_tier_learns_its_own_mean():
    lengths = OutputLengths()
    for tokens in (10, 30) * 500:
        lengths.observe(Tier.L0, tokens, None)
    assert lengths.expected(Tier.L0, None) == pytest.approx(20, rel=0.05)
    assert lengths.expected(Tier.L1, None) == PRIOR_OUTPUT_TOKENS[Tier.L1]


def test_an_answer_that_ran_into_its_limit_only_tells_that_it_was_longer():
    lengths = OutputLengths()
    before = lengths.expected(Tier.L2, None)
    lengths.observe(Tier.L2, 5, 5)
    assert lengths.expected(Tier.L2, None) == before
    lengths.observe(Tier.L2, 5, 6)
    assert lengths.expected(Tier.L2, None) < before
    lengths = OutputLengths()
    lengths.observe(Tier.L2, 1000, 1000)
    assert lengths.expected(Tier.L2, None) > before


@given(st.floats(1e-3, 1e6), st.lists(st.floats(0, 1e9), max_size=30), st.floats(0, 1e15))
def test_one_value_at_most_doubles_a_mean_and_takes_at_most_a_tenth_of_it(prior, earlier, wild):
    mean = RunningMean(prior)
    for value in earlier:
        mean.observe(value)
    before = mean.mean
    mean.observe(wild)
    assert 0.9 * before <= mean.mean <= 2 * before


def test_a_prior_that_counts_as_few_gives_way_sooner():
    few, many = RunningMean(60.0, prior_counts_as=2), RunningMean(60.0)
    for mean in (few, many):
        mean.observe(30.0)
    assert (few.mean, many.mean) == (pytest.approx(50), pytest.approx(60 - 30 / 11))
    with pytest.raises(ValueError, match="prior_counts_as"):
        RunningMean(1.0, prior_counts_as=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_value_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="value"):
        RunningMean(1.0).observe(value)
    with pytest.raises(ValueError, match="prior"):
        RunningMean(value)
