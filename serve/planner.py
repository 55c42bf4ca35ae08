"""The live side of `plan`: keeps the figures that it needs of every pool, and asks it for each request."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import numpy as np

from clusters.grid import CarbonFeed
from placement.energy_rates import EnergyRates, TokenRates
from placement.fleet import Flags, Floats
from placement.output_lengths import OutputLengths
from placement.pins import Pins
from placement.plan import ExchangeRates, Fleet, LiveFigures, Plan, PoolFacts, RequestNeeds, plan
from placement.scaling import PoolLoad, next_to_wake
from placement.tiers import Tier
from serve.errors import RequestRefused
from serve.model_request import ModelRequest
from serve.pool_loads import PoolLoads
from serve.pools import Pool
from serve.typical_energy import Typical, TypicalEnergy

_CHARACTERS_PER_TOKEN = 4
_FEW_CHARACTERS_PER_TOKEN = 3  # as text has that is not English, or code
_GRID_FRESH_FOR_S = 1.0


class Health(Protocol):
    """Which pools failed lately."""

    def set_aside(self) -> Collection[str]:
        """Those that are tried only after all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolNow:
    """One pool as it stands at this moment, for operators. Energy is learned, or its prior."""

    pool: Pool
    replicas_running: int
    replicas_wanted: int
    in_flight: int
    microjoules_per_input_token: float
    microjoules_per_output_token: float
    gco2_per_kwh: float
    wait_s: float
    wake_s: float
    unavailable: str | None
    is_set_aside: bool
    is_asleep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNow:
    """One model over all of its pools: the most that any of them can do."""

    model: str
    capable_up_to: Tier
    features: frozenset[str]
    context_tokens: int
    typical: Typical


class Planner:
    """Plans requests on what one ingress knows: learned rates and times, the grids, replicas, its own load."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        carbon: CarbonFeed,
        rates: ExchangeRates,
        health: Health,
        clock: Callable[[], float],
        *,
        ingresses: int = 1,
    ) -> None:
        """``clock`` is in seconds, monotonic; there are ``ingresses`` like this one. No pool, no planner."""
        self._pools = list(pools.values())
        self._place_of = {pool.key: place for place, pool in enumerate(self._pools)}
        self._models = tuple(sorted({pool.model for pool in self._pools}))
        self._fleet = Fleet([_facts(pool) for pool in self._pools])
        self._carbon = carbon
        self._rates = rates
        self._health = health
        self._clock = clock
        self._energy = EnergyRates({pool.key: pool.prior_microjoules_per_token for pool in self._pools})
        self._lengths = OutputLengths()
        self._typical = TypicalEnergy()
        self._loads = PoolLoads(self._pools, ingresses=ingresses, clock=clock)
        self._unavailable: tuple[str | None, ...] = (None,) * len(self._pools)
        zones = sorted({pool.site.grid_zone for pool in self._pools})
        self._zones = zones
        self._zone_of = np.array([zones.index(pool.site.grid_zone) for pool in self._pools], dtype=np.intp)
        self._grid = np.zeros(len(self._pools))
        self._grid_read_at: float | None = None
        self._last_needs: RequestNeeds | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that some pool serves."""
        return self._models

    @property
    def rates(self) -> ExchangeRates:
        """The exchange rates of the ranking."""
        return self._rates

    def plan(self, request: ModelRequest, tier: Tier, pins: Pins) -> Plan:
        """Rank the pools for this request, with the model that it names pinned.

        Raises:
            RequestRefused: 404 for a model that no pool serves.
        """
        needs = self.needs(request, tier, pins)
        self._last_needs = needs
        return self.plan_for(needs)

    def plan_for(self, needs: RequestNeeds) -> Plan:
        """Rank the pools for these needs, as they stand now."""
        return plan(needs, self._fleet, self._live(self._loads.waits_s()), self._rates)

    def needs(self, request: ModelRequest, tier: Tier, pins: Pins) -> RequestNeeds:
        """What the request asks of a pool; tokens are a forecast.

        Raises:
            RequestRefused: as `plan`.
        """
        if not request.is_auto and request.model not in self._models:
            raise RequestRefused(
                HTTPStatus.NOT_FOUND,
                f"there is no model {request.model!r}; use 'auto' or one of: {', '.join(self._models)}",
                "model",
            )
        model = None if request.is_auto else request.model
        each = self._lengths.expected(tier, request.max_tokens)
        return RequestNeeds(
            pins=Pins(model=model, region=pins.region, residency=pins.residency, operators=pins.operators),
            tier=tier,
            input_tokens=request.prompt_characters / _CHARACTERS_PER_TOKEN,
            output_tokens=request.choices * each,
            least_tokens=request.least_tokens,
            features=request.features,
            likely_tokens=request.longest_characters / _FEW_CHARACTERS_PER_TOKEN + each,
        )

    def took(self, pool: str) -> None:
        """An attempt goes to it."""
        self._loads.took(pool)

    @contextmanager
    def expecting(self, pool: str) -> Iterator[None]:
        """An attempt is about to go to it: requests that are planned meanwhile find it counted already."""
        self.took(pool)
        try:
            yield
        finally:
            self.gave_back(pool, None)

    def gave_back(self, pool: str, service_s: float | None) -> None:
        """The attempt is over; ``service_s`` from its first item to its last when it finished, else None."""
        self._loads.gave_back(pool, service_s)

    def learn(self, pool: str, tokens_in: int, tokens_out: int, microjoules: int | None) -> None:
        """Take in a settled request: tokens prefilled, tokens generated and what they drew, None where unknown."""
        self._energy.observe(pool, tokens_in, tokens_out, microjoules)
        self._typical.observe(self._pools[self._place_of[pool]].model, tokens_out, microjoules)

    def learn_length(self, tier: Tier, tokens_out: int, max_tokens: int | None) -> None:
        """Take in how long a finished answer (one choice) of this tier was, and what its limit had been."""
        self._lengths.observe(tier, tokens_out, max_tokens)

    def see(self, replicas: Mapping[str, int], unavailable: Mapping[str, str], wanted: Mapping[str, int]) -> None:
        """What the watch saw: replicas that run (and are wanted), and why some pools can't serve now."""
        self._loads.see(replicas, wanted)
        self._unavailable = tuple(unavailable.get(pool.key) for pool in self._pools)

    def is_asleep(self, pool: str) -> bool:
        """Whether none of its replicas runs, so that a request waits for one to start."""
        return self._loads.is_asleep(pool)

    def wake_s(self, pool: str) -> float:
        """How long one takes to start: the setting, until wakings teach better."""
        return self._loads.wake_s(pool)

    def token_rates(self, pool: str) -> TokenRates:
        """What a token draws there, as learned so far."""
        return self._energy.rates(pool)

    def pools_now(self) -> Iterator[PoolNow]:
        """Every pool as it stands."""
        waits = self._loads.waits_s()
        live = self._live(waits)
        for place, pool in enumerate(self._pools):
            load = self._loads.now(pool.key)
            yield PoolNow(
                pool=pool,
                replicas_running=load.running,
                replicas_wanted=load.wanted,
                in_flight=load.in_flight,
                microjoules_per_input_token=float(live.microjoules_per_input_token[place]),
                microjoules_per_output_token=float(live.microjoules_per_output_token[place]),
                gco2_per_kwh=float(live.gco2_per_kwh[place]),
                wait_s=float(waits[place]),
                wake_s=load.wake_s,
                unavailable=live.unavailable[place],
                is_set_aside=bool(live.set_aside[place]),
                is_asleep=load.running == 0,
            )

    def models_now(self) -> Iterator[ModelNow]:
        """Every model that some pool serves, by name."""
        for model in self._models:
            pools = [pool for pool in self._pools if pool.model == model]
            yield ModelNow(
                model=model,
                capable_up_to=max(pool.capable_up_to for pool in pools),
                features=frozenset().union(*(pool.features for pool in pools)),
                context_tokens=max(pool.context_tokens for pool in pools),
                typical=self._typical.of(model),
            )

    def next_to_wake(self) -> str | None:
        """A sleeping pool that should start a replica ahead of its first request, as `placement.scaling` has it.

        The pools rank as for the request that came last, but by cost alone: the woken one is to take over waiting.
        """
        if self._last_needs is None or not self._loads.has_sleepers:
            return None
        unhurried = self._live(np.zeros(len(self._pools)))
        ranked = plan(self._last_needs, self._fleet, unhurried, self._rates).candidates
        pools = {pool.key: pool for pool in self._pools}
        return next_to_wake([self._load(pools[candidate.pool]) for candidate in ranked])

    def _load(self, pool: Pool) -> PoolLoad:
        now = self._loads.now(pool.key)
        return PoolLoad(
            pool=pool.key,
            in_flight=now.in_flight,
            per_replica=pool.max_ongoing,
            running=now.running,
            least=pool.least_replicas,
            most=pool.most_replicas,
        )

    def _live(self, waits_s: Floats) -> LiveFigures:
        return LiveFigures(
            gco2_per_kwh=self._grid_now(),
            microjoules_per_input_token=self._energy.microjoules_per_input_token,
            microjoules_per_output_token=self._energy.microjoules_per_output_token,
            wait_s=waits_s,
            unavailable=self._unavailable,
            set_aside=self._set_aside(),
        )

    def _set_aside(self) -> Flags:
        aside = np.zeros(len(self._pools), dtype=np.bool_)
        for pool in self._health.set_aside():
            aside[self._place_of[pool]] = True
        return aside

    def _grid_now(self) -> Floats:
        """Every pool's intensity, read from the feed once a second at most and once for each zone."""
        now = self._clock()
        if self._grid_read_at is None or now - self._grid_read_at >= _GRID_FRESH_FOR_S:
            by_zone = np.array([self._carbon.intensity(zone).gco2_per_kwh for zone in self._zones])
            self._grid = by_zone[self._zone_of]
            self._grid_read_at = now
        return self._grid


def _facts(pool: Pool) -> PoolFacts:
    return PoolFacts(
        pool=pool.key,
        model=pool.model,
        model_revision=pool.model_revision,
        operator=pool.site.operator,
        region=pool.site.region,
        country=pool.site.country,
        silicon=pool.silicon,
        capable_up_to=pool.capable_up_to,
        context_tokens=pool.context_tokens,
        features=pool.features,
        usd_per_kwh=pool.usd_per_kwh,
        dc_pue=pool.site.dc_pue,
        network_s=pool.network_s,
    )
