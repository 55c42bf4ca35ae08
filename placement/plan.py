"""The plan of one request: capable pools in order of their cost in USD, and why each other pool was refused.

Columns go in and a plan comes out whose rows are made only when they are read: of a thousand pools the door reads
one, a receipt three, and `jc explain` all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar, overload

import numpy as np

from placement.bounds import refuse_outside
from placement.exchange_rates import PREFERENCES, ExchangeRates, exchange_rates
from placement.fleet import MOST_TOKENS, Flags, Fleet, Floats, Places, PoolFacts
from placement.live_figures import LiveFigures
from placement.pins import Pins
from placement.tiers import Tier

__all__ = [
    "PREFERENCES",
    "Candidate",
    "ExchangeRates",
    "Fleet",
    "LiveFigures",
    "Pins",
    "Plan",
    "PoolFacts",
    "Rejection",
    "RequestNeeds",
    "exchange_rates",
    "plan",
]

_MICROJOULES_PER_KWH = 3.6e12
_GRAMS_PER_KG = 1e3
_SECONDS_PER_HOUR = 3600.0
_RowT_co = TypeVar("_RowT_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNeeds:
    """What the request asks of a pool; with a model pinned its tier is no matter.

    ``input_tokens`` and ``output_tokens`` are a forecast to rank by; ``least_tokens`` is certain, and what no smaller
    context can hold. ``likely_tokens`` are a cautious forecast of what one choice takes of a context: an engine refuses
    a prompt that is longer, so pools with less are tried last, where there is nothing better.

    Raises:
        ValueError: a count is negative, not finite or beyond a billion.
    """

    pins: Pins
    tier: Tier
    input_tokens: float
    output_tokens: float
    least_tokens: int
    features: frozenset[str]
    likely_tokens: float = 0.0

    def __post_init__(self) -> None:
        refuse_outside("input_tokens", self.input_tokens, 0, MOST_TOKENS)
        refuse_outside("output_tokens", self.output_tokens, 0, MOST_TOKENS)
        refuse_outside("least_tokens", self.least_tokens, 0, MOST_TOKENS)
        refuse_outside("likely_tokens", self.likely_tokens, 0, 2 * MOST_TOKENS)

    def refusal(self, pool: PoolFacts) -> str | None:
        """Why the pool can never serve this, in words; None where it can."""
        broken = self.pins.refusal(model=pool.model, region=pool.region, country=pool.country, operator=pool.operator)
        if broken is not None:
            return broken
        if self.pins.model is None and not self.tier.at_most(pool.capable_up_to):
            return f"{pool.model} is capable up to {pool.capable_up_to}, the request is {self.tier}"
        if self.least_tokens > pool.context_tokens:
            return f"{pool.model} has a context of {pool.context_tokens} tokens, the request needs {self.least_tokens}"
        if missing := self.features - pool.features:
            has = f"it has {', '.join(sorted(pool.features))}" if pool.features else "it has no features"
            return f"{pool.model} lacks {', '.join(sorted(missing))}; {has}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A capable pool and the parts of its score, each in USD; the score is their sum.

    ``expected_microjoules`` is IT energy; ``energy_usd`` its price, ``facility_usd`` what PUE adds to that,
    ``carbon_usd`` the worth of the facility's grams, ``wait_usd`` and ``network_usd`` that of the seconds.
    ``is_tight``: the request may be too long for it.
    """

    pool: str
    expected_microjoules: float
    energy_usd: float
    facility_usd: float
    carbon_usd: float
    wait_usd: float
    network_usd: float
    wait_s: float
    is_set_aside: bool
    is_tight: bool = False

    @property
    def score_usd(self) -> float:
        """Expected cost of this request on this pool, in USD."""
        return self.energy_usd + self.facility_usd + self.carbon_usd + self.wait_usd + self.network_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A pool that cannot serve the request, and why in words.

    ``is_for_now``: it is capable and allowed, only not available at this moment.
    """

    pool: str
    reason: str
    is_for_now: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Candidates cheapest first, those set aside after all others and those that are tight after these, ties by pool
    name; every other pool, by name, with its reason. Rows are made anew each time they are read.
    """

    candidates: Sequence[Candidate]
    rejections: Sequence[Rejection]


def plan(needs: RequestNeeds, fleet: Fleet, live: LiveFigures, rates: ExchangeRates) -> Plan:
    """Filter by pins and by what each pool can do, then rank by expected cost.

    Pure and deterministic; the order of the pools is irrelevant.

    Raises:
        ValueError: ``live`` is of another number of pools than ``fleet``.
    """
    if len(live) != len(fleet):
        raise ValueError(f"there are live figures of {len(live)} pools, in a fleet of {len(fleet)}")
    serves = _serves(needs, fleet, live)
    scores = _scores(needs, fleet, live, rates)
    which = np.flatnonzero(serves)
    tight = ~fleet.holding(needs.likely_tokens)
    ranked = which[np.lexsort((fleet.name_rank[which], scores.score_usd[which], live.set_aside[which], tight[which]))]
    refused = fleet.by_name[~serves[fleet.by_name]]
    return Plan(
        candidates=_Rows(ranked, partial(_candidate, fleet, live, scores, tight)),
        rejections=_Rows(refused, partial(_rejection, needs, fleet, live)),
    )


class _Rows(Sequence[_RowT_co], Generic[_RowT_co]):
    """Rows made when they are read, by their places in the fleet."""

    def __init__(self, places: Places, make: Callable[[int], _RowT_co]) -> None:
        self._places = places
        self._make = make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> _RowT_co: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[_RowT_co, ...]: ...
    def __getitem__(self, index: int | slice) -> _RowT_co | tuple[_RowT_co, ...]:
        if isinstance(index, slice):
            return tuple(self._make(place) for place in self._places[index].tolist())
        return self._make(int(self._places[index]))

    def __iter__(self) -> Iterator[_RowT_co]:
        return map(self._make, self._places.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scores:
    """The parts of every pool's score in USD, also of those that are refused: a column costs no more."""

    microjoules: Floats
    energy_usd: Floats
    facility_usd: Floats
    carbon_usd: Floats
    wait_usd: Floats
    network_usd: Floats
    score_usd: Floats = field(init=False)

    def __post_init__(self) -> None:
        # In the order in which `Candidate.score_usd` adds, so that both are one number to the last bit.
        total = self.energy_usd + self.facility_usd + self.carbon_usd + self.wait_usd + self.network_usd
        object.__setattr__(self, "score_usd", total)


def _serves(needs: RequestNeeds, fleet: Fleet, live: LiveFigures) -> Flags:
    """Which pools pass every filter: what `RequestNeeds.refusal` says of one pool, for all of them at once."""
    pins = needs.pins
    serves = fleet.holding(needs.least_tokens)
    serves &= fleet.capable_of(needs.tier) if pins.model is None else fleet.serving(pins.model)
    if pins.region is not None:
        serves &= fleet.within(pins.region)
    if pins.residency:
        serves &= np.logical_or.reduce([fleet.within(each) for each in pins.residency])
    if pins.operators is not None:
        serves &= fleet.run_by(pins.operators)
    for feature in needs.features:
        serves &= fleet.having(feature)
    if live.available is not None:
        serves &= live.available
    return serves


def _scores(needs: RequestNeeds, fleet: Fleet, live: LiveFigures, rates: ExchangeRates) -> _Scores:
    microjoules = (
        needs.input_tokens * live.microjoules_per_input_token + needs.output_tokens * live.microjoules_per_output_token
    )
    kwh = microjoules / _MICROJOULES_PER_KWH
    energy_usd = kwh * fleet.usd_per_kwh
    usd_per_gram, usd_per_s = rates.usd_per_kgco2 / _GRAMS_PER_KG, rates.usd_per_hour_waited / _SECONDS_PER_HOUR
    return _Scores(
        microjoules=microjoules,
        energy_usd=energy_usd,
        facility_usd=fleet.pue_above_1 * energy_usd,
        carbon_usd=kwh * fleet.dc_pue * live.gco2_per_kwh * usd_per_gram,
        wait_usd=live.wait_s * usd_per_s,
        network_usd=fleet.network_s * usd_per_s,
    )


def _candidate(fleet: Fleet, live: LiveFigures, scores: _Scores, tight: Flags, place: int) -> Candidate:
    return Candidate(
        pool=fleet.names[place],
        expected_microjoules=scores.microjoules.item(place),
        energy_usd=scores.energy_usd.item(place),
        facility_usd=scores.facility_usd.item(place),
        carbon_usd=scores.carbon_usd.item(place),
        wait_usd=scores.wait_usd.item(place),
        network_usd=scores.network_usd.item(place),
        wait_s=live.wait_s.item(place),
        is_set_aside=live.set_aside.item(place),
        is_tight=tight.item(place),
    )


def _rejection(needs: RequestNeeds, fleet: Fleet, live: LiveFigures, place: int) -> Rejection:
    never, now = needs.refusal(fleet.pools[place]), live.unavailable[place]
    reason = now if never is None else never
    assert reason is not None, f"{fleet.names[place]} was refused for no reason"
    return Rejection(pool=fleet.names[place], reason=reason, is_for_now=never is None)
