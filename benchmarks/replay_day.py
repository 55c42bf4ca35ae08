"""A small discrete simulation of one day: queues, waking and what each request then draws, for one way to choose."""

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from benchmarks.replay_traffic import Request, TruePool, capable, is_largest
from placement.energy_rates import EnergyRates
from placement.exchange_rates import ExchangeRates
from placement.fleet import Fleet
from placement.live_figures import LiveFigures
from placement.output_lengths import OutputLengths
from placement.plan import RequestNeeds, plan
from placement.queueing import ServiceTimes, expected_waits_s, remaining_wake_s
from placement.running_mean import RunningMean

IDLE_S = 600.0
"""A pool without a request sleeps after this."""

_HOUR_S = 3600.0
_MICROJOULES_PER_KWH = 3.6e12
_MICROJOULES_PER_JOULE = 1e6
_GRAMS_PER_KG = 1e3
_SETTING_WAKE_S, _SETTING_WAKE_COUNTS_AS = 60.0, 2
_PRIOR_SERVICE_S = 10.0

Grid = Mapping[str, Sequence[float]]
"""Grams of CO2-equivalent per kWh of each zone, for each hour of the day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What requests cost; USD is the silicon's energy and what PUE adds to it."""

    joules: float
    grams: float
    usd: float
    waited_s: float
    network_s: float

    def score_usd(self, rates: ExchangeRates) -> float:
        """All of it in USD, as a plan adds it up."""
        seconds = self.waited_s + self.network_s
        return (
            self.usd + self.grams / _GRAMS_PER_KG * rates.usd_per_kgco2 + seconds / _HOUR_S * rates.usd_per_hour_waited
        )


def cost(request: Request, pool: TruePool, grid: Grid, waited_s: float) -> Cost:
    """What the request truly costs there, at the grid's intensity of the hour in which it came."""
    microjoules = pool.microjoules(request)
    facility_kwh = microjoules / _MICROJOULES_PER_KWH * pool.facts.dc_pue
    return Cost(
        joules=microjoules / _MICROJOULES_PER_JOULE,
        grams=facility_kwh * grid[pool.zone][int(request.at_s // _HOUR_S)],
        usd=facility_kwh * pool.facts.usd_per_kwh,
        waited_s=waited_s,
        network_s=pool.facts.network_s,
    )


def total(costs: Sequence[Cost]) -> Cost:
    """The sum."""
    return Cost(
        joules=sum(each.joules for each in costs),
        grams=sum(each.grams for each in costs),
        usd=sum(each.usd for each in costs),
        waited_s=sum(each.waited_s for each in costs),
        network_s=sum(each.network_s for each in costs),
    )


@dataclass(slots=True)
class Station:
    """One pool at work: first come, first served, in ``slots``; asleep when idle, and then it takes time to wake."""

    pool: TruePool
    rng: random.Random
    ready_s: float = 0.0
    wake_began_s: float = 0.0
    ongoing: int = 0
    idle_since_s: float = 0.0
    wakes: int = 0
    free_at_s: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.free_at_s = [0.0] * self.pool.slots

    def is_asleep(self, now_s: float) -> bool:
        return self.ongoing == 0 and now_s >= self.idle_since_s + IDLE_S

    def is_running(self, now_s: float) -> bool:
        return not self.is_asleep(now_s) and now_s >= self.ready_s

    def begins_s(self, now_s: float, wake_s: float) -> float:
        """When a request that comes now begins, exactly: nobody who comes later goes first."""
        if self.is_asleep(now_s):
            return now_s + wake_s
        return max(now_s, self.free_at_s[0])

    def take(self, request: Request) -> tuple[float, float]:
        """When it begins and when it ends."""
        now_s = request.at_s
        if self.is_asleep(now_s):
            self.wakes += 1
            self.wake_began_s, self.ready_s = now_s, now_s + self.pool.wake_s * self.rng.uniform(0.8, 1.3)
            self.free_at_s = [self.ready_s] * self.pool.slots
        begins_s = max(now_s, self.free_at_s[0])
        ends_s = begins_s + self.pool.service_s(request)
        heapq.heapreplace(self.free_at_s, ends_s)
        self.ongoing += 1
        return begins_s, ends_s

    def give_back(self, now_s: float) -> None:
        self.ongoing -= 1
        self.idle_since_s = now_s


class Policy(Protocol):
    """A way to choose."""

    def choose(self, request: Request, stations: Sequence[Station]) -> int:
        """The place of the pool for a request that comes now."""

    def settled(self, request: Request, place: int, service_s: float) -> None:
        """Hear of a request that has ended there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """How a day went: every request's cost, how often a pool was woken, and how many broke a pin or a limit."""

    costs: tuple[Cost, ...]
    wakes: int
    violations: int


def replay(requests: Sequence[Request], fleet: Sequence[TruePool], grid: Grid, policy: Policy, seed: int) -> Day:
    """Send every request where the policy chooses, and tell the policy when each has ended."""
    stations = [Station(pool=pool, rng=random.Random(f"{seed} {pool.facts.pool}")) for pool in fleet]  # noqa: S311
    ends: list[tuple[float, int, int, float]] = []
    costs, violations = [], 0
    for number, request in enumerate(requests):
        while ends and ends[0][0] <= request.at_s:
            ended_s, which, place, service_s = heapq.heappop(ends)
            stations[place].give_back(ended_s)
            policy.settled(requests[which], place, service_s)
        place = policy.choose(request, stations)
        violations += place not in capable(request, fleet)
        begins_s, ends_s = stations[place].take(request)
        costs.append(cost(request, fleet[place], grid, begins_s - request.at_s))
        heapq.heappush(ends, (ends_s, number, place, ends_s - begins_s))
    return Day(costs=tuple(costs), wakes=sum(each.wakes for each in stations), violations=violations)


class Auto:
    """The product's own code: plan, learned energy, learned lengths, expected waits; the tier comes from the label.

    With ``only_largest`` the model is pinned to the largest and only the region is chosen.
    """

    def __init__(
        self, fleet: Sequence[TruePool], grid: Grid, rates: ExchangeRates, *, only_largest: bool = False
    ) -> None:
        self._rates = rates
        self._grid = grid
        self._zones = [pool.zone for pool in fleet]
        self._slots = np.array([pool.slots for pool in fleet])
        self._fleet = Fleet([pool.facts for pool in fleet])
        self._places = {name: place for place, name in enumerate(self._fleet.names)}
        self._models = {is_largest(pool): pool.facts.model for pool in fleet}
        self._only_largest = only_largest
        names = self._fleet.names
        self._energy = EnergyRates({each.facts.pool: each.prior_microjoules_per_token for each in fleet})
        self._service = ServiceTimes(dict.fromkeys(names, _PRIOR_SERVICE_S))
        self._lengths = OutputLengths()
        self._wakes = [RunningMean(_SETTING_WAKE_S, prior_counts_as=_SETTING_WAKE_COUNTS_AS) for _ in fleet]
        self._wakes_seen = [0] * len(fleet)
        self._fleet_pools = fleet
        self._all_there: list[str | None] = [None] * len(names)
        self._none_aside = np.zeros(len(names), dtype=np.bool_)

    def choose(self, request: Request, stations: Sequence[Station]) -> int:
        now_s = request.at_s
        hour = int(now_s // _HOUR_S)
        self._see_wakes(stations, now_s)
        running = [each.is_running(now_s) for each in stations]
        waits_s = expected_waits_s(
            ongoing=[each.ongoing for each in stations],
            replicas=running,
            max_ongoing=self._slots,
            service_s=self._service.column,
            wake_s=[self._wake_left_s(place, each, now_s) for place, each in enumerate(stations)],
        )
        live = LiveFigures(
            gco2_per_kwh=[self._grid[zone][hour] for zone in self._zones],
            microjoules_per_input_token=self._energy.microjoules_per_input_token,
            microjoules_per_output_token=self._energy.microjoules_per_output_token,
            wait_s=waits_s,
            unavailable=self._all_there,
            set_aside=self._none_aside,
        )
        return self._places[plan(self._needs(request), self._fleet, live, self._rates).candidates[0].pool]

    def settled(self, request: Request, place: int, service_s: float) -> None:
        pool = self._fleet_pools[place]
        drawn = round(pool.microjoules(request))
        self._energy.observe(pool.facts.pool, request.input_tokens, request.output_tokens, drawn)
        self._lengths.observe(request.tier, request.output_tokens, request.max_tokens)
        self._service.observe(pool.facts.pool, service_s)

    def _needs(self, request: Request) -> RequestNeeds:
        pins = request.pins
        if self._only_largest:
            pins = type(pins)(
                model=self._models[True], region=pins.region, residency=pins.residency, operators=pins.operators
            )
        return RequestNeeds(
            pins=pins,
            tier=request.tier,
            input_tokens=request.expected_input_tokens,
            output_tokens=self._lengths.expected(request.tier, request.max_tokens),
            least_tokens=request.expected_input_tokens // 4,
            features=frozenset(),
        )

    def _see_wakes(self, stations: Sequence[Station], now_s: float) -> None:
        for place, station in enumerate(stations):
            if station.wakes > self._wakes_seen[place] and now_s >= station.ready_s:
                self._wakes_seen[place] = station.wakes
                self._wakes[place].observe(station.ready_s - station.wake_began_s)

    def _wake_left_s(self, place: int, station: Station, now_s: float) -> float:
        waking_for_s = None if station.is_asleep(now_s) else now_s - station.wake_began_s
        return remaining_wake_s(self._wakes[place].mean, waking_for_s)


class Largest:
    """Every request on the largest pool of the first region, or where its pins forbid that, of the next."""

    def __init__(self, fleet: Sequence[TruePool]) -> None:
        self._fleet = fleet

    def choose(self, request: Request, stations: Sequence[Station]) -> int:
        del stations
        return next(place for place in capable(request, self._fleet) if is_largest(self._fleet[place]))

    def settled(self, request: Request, place: int, service_s: float) -> None:
        """Learn nothing."""


class RoundRobin:
    """The capable pools in turn."""

    def __init__(self, fleet: Sequence[TruePool]) -> None:
        self._fleet = fleet
        self._turn = 0

    def choose(self, request: Request, stations: Sequence[Station]) -> int:
        del stations
        self._turn += 1
        able = capable(request, self._fleet)
        return able[self._turn % len(able)]

    def settled(self, request: Request, place: int, service_s: float) -> None:
        """Learn nothing."""


class Oracle:
    """Each request where it truly costs least when it comes: true energy, true length, the exact wait in the queue.

    Greedy: it doesn't hold a place free for a request that will need it more, so it is no bound; `bound` is.
    """

    def __init__(self, fleet: Sequence[TruePool], grid: Grid, rates: ExchangeRates) -> None:
        self._fleet, self._grid, self._rates = fleet, grid, rates

    def choose(self, request: Request, stations: Sequence[Station]) -> int:
        def score_usd(place: int) -> float:
            pool = self._fleet[place]
            begins_s = stations[place].begins_s(request.at_s, pool.wake_s)
            return cost(request, pool, self._grid, begins_s - request.at_s).score_usd(self._rates)

        return min(capable(request, self._fleet), key=score_usd)

    def settled(self, request: Request, place: int, service_s: float) -> None:
        """It knew."""


def bound(requests: Sequence[Request], fleet: Sequence[TruePool], grid: Grid, rates: ExchangeRates) -> Cost:
    """Each request where it truly costs least if nobody ever waits: no way to choose costs less at these rates."""
    return total(
        [
            min(
                (cost(request, fleet[place], grid, 0.0) for place in capable(request, fleet)),
                key=lambda each: each.score_usd(rates),
            )
            for request in requests
        ]
    )
