"""The pools of a mesh in columns: what doesn't change from one request to the next, made once."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.bounds import refuse_outside
from placement.pins import names_of
from placement.tiers import Tier

MOST_USD_PER_KWH = 1e6
MOST_PUE = 100.0
MOST_NETWORK_S = 1e6
MOST_TOKENS = 10**9
"""Limits far above anything real; below them no score overflows."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Places = NDArray[np.intp]

_LEVELS = {tier: level for level, tier in enumerate(Tier)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """One pool (model, silicon kind, region, operator) and what is settled about it.

    ``country`` is ISO 3166-1 alpha-2 or None where not published, ``silicon`` None where the pool names none;
    ``usd_per_kwh`` is the price at the silicon; ``network_s`` is the way from the ingress and back.

    Raises:
        ValueError: a figure is negative, not finite or beyond its limit; a PUE below 1; no context.
    """

    pool: str
    model: str
    model_revision: str | None
    operator: str
    region: str
    country: str | None
    silicon: str | None
    capable_up_to: Tier
    context_tokens: int
    features: frozenset[str]
    usd_per_kwh: float
    dc_pue: float
    network_s: float

    def __post_init__(self) -> None:
        refuse_outside(f"usd_per_kwh of {self.pool}", self.usd_per_kwh, 0, MOST_USD_PER_KWH)
        refuse_outside(f"dc_pue of {self.pool}", self.dc_pue, 1, MOST_PUE)
        refuse_outside(f"network_s of {self.pool}", self.network_s, 0, MOST_NETWORK_S)
        refuse_outside(f"context_tokens of {self.pool}", self.context_tokens, 1, MOST_TOKENS)


class Fleet:
    """Every pool's facts as columns, in the order in which the pools were given; immutable.

    The methods that answer flags answer one for each pool; what they give is the caller's to keep but not to change.
    """

    def __init__(self, pools: Sequence[PoolFacts]) -> None:
        """Raises ValueError where two pools have one name."""
        self.pools = tuple(pools)
        self.names = tuple(pool.pool for pool in self.pools)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two pools are called {_first_double(self.names)!r}")
        self.usd_per_kwh = self._floats(lambda pool: pool.usd_per_kwh)
        self.dc_pue = self._floats(lambda pool: pool.dc_pue)
        self.pue_above_1 = self.dc_pue - 1.0
        self.network_s = self._floats(lambda pool: pool.network_s)
        self.by_name: Places = np.array(sorted(range(len(self)), key=self.names.__getitem__), dtype=np.intp)
        self.name_rank: Places = np.argsort(self.by_name)
        self._levels = np.array([_LEVELS[pool.capable_up_to] for pool in self.pools], dtype=np.int64)
        self._context_tokens = np.array([pool.context_tokens for pool in self.pools], dtype=np.int64)
        self._none = self._frozen(np.zeros(len(self), dtype=np.bool_))
        self._models = self._flags_by(lambda pool: (pool.model,))
        self._regions = self._flags_by(lambda pool: names_of(pool.region, pool.country))
        self._operators = self._flags_by(lambda pool: (pool.operator,))
        self._features = self._flags_by(lambda pool: pool.features)

    def __len__(self) -> int:
        return len(self.pools)

    def serving(self, model: str) -> Flags:
        """Which pools serve exactly this model."""
        return self._models.get(model, self._none)

    def within(self, wanted: str) -> Flags:
        """Which pools are where `region_matches` finds ``wanted``."""
        return self._regions.get(wanted.casefold(), self._none)

    def run_by(self, operators: frozenset[str]) -> Flags:
        """Which pools one of these operators runs."""
        found = [self._operators[name] for name in self._operators.keys() & operators]
        return np.logical_or.reduce(found) if found else self._none

    def capable_of(self, tier: Tier) -> Flags:
        """Which pools' models are declared capable of the tier."""
        return self._levels >= _LEVELS[tier]

    def holding(self, tokens: float) -> Flags:
        """Which pools' contexts hold so many tokens."""
        return self._context_tokens >= tokens

    def having(self, feature: str) -> Flags:
        """Which pools' models have the feature."""
        return self._features.get(feature, self._none)

    def _floats(self, figure: Callable[[PoolFacts], float]) -> Floats:
        column = np.array([figure(pool) for pool in self.pools], dtype=np.float64)
        column.setflags(write=False)
        return column

    def _flags_by(self, names: Callable[[PoolFacts], Iterable[str]]) -> dict[str, Flags]:
        """For each name that some pool answers to, which pools do."""
        places: dict[str, list[int]] = {}
        for place, pool in enumerate(self.pools):
            for name in names(pool):
                places.setdefault(name, []).append(place)
        columns = {}
        for name, which in places.items():
            column = np.zeros(len(self), dtype=np.bool_)
            column[which] = True
            columns[name] = self._frozen(column)
        return columns

    @staticmethod
    def _frozen(column: Flags) -> Flags:
        column.setflags(write=False)
        return column


def _first_double(names: Iterable[Hashable]) -> Hashable:
    seen: set[Hashable] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
