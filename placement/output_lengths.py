"""How many tokens an answer is expected to have: learned by tier, and never above what the request allows."""

from collections.abc import Mapping
from types import MappingProxyType

from placement.running_mean import RunningMean
from placement.tiers import Tier

PRIOR_OUTPUT_TOKENS: Mapping[Tier, float] = MappingProxyType(
    {Tier.L0: 60.0, Tier.L1: 150.0, Tier.L2: 300.0, Tier.L3: 500.0}
)
"""Where learning starts, our own guess: a fact in a sentence, a passage reworked, a summary, a reasoned answer."""


class OutputLengths:
    """The mean output tokens of each tier's answers, over all pools."""

    def __init__(self, priors: Mapping[Tier, float] = PRIOR_OUTPUT_TOKENS) -> None:
        self._means = {tier: RunningMean(priors[tier]) for tier in Tier}

    def expected(self, tier: Tier, max_tokens: int | None) -> float:
        """Tokens to reckon with for one answer, of at most ``max_tokens``."""
        mean = self._means[tier].mean
        return mean if max_tokens is None else min(mean, float(max_tokens))

    def observe(self, tier: Tier, output_tokens: int, max_tokens: int | None) -> None:
        """Take in one finished answer. One that ran into its limit would have been longer: it raises the mean where
        it is above it, and else teaches nothing.

        Raises:
            ValueError: a negative number of tokens.
        """
        was_cut = max_tokens is not None and output_tokens >= max_tokens
        if not (was_cut and output_tokens <= self._means[tier].mean):
            self._means[tier].observe(output_tokens)
