"""Microjoules per token of each pool, learned from settled requests."""

_NEWEST_WEIGHT = 0.1


class EnergyRates:
    """An exponentially weighted mean per pool, starting from the pool's prior."""

    def __init__(self, priors_microjoules_per_token: dict[str, float]) -> None:
        self._rates = dict(priors_microjoules_per_token)

    def observe(self, pool: str, tokens: int, energy_microjoules: int | None) -> None:
        """Take in one settled request; one without metered energy or tokens teaches nothing."""
        if energy_microjoules is None or tokens < 1:
            return
        rate = energy_microjoules / tokens
        self._rates[pool] += _NEWEST_WEIGHT * (rate - self._rates[pool])

    def microjoules_per_token(self, pool: str) -> float:
        """The current mean of a known pool."""
        return self._rates[pool]
