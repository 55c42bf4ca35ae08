"""What this ingress knows of its pools' loads: requests on their way there, replicas, wakings, times."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from placement.fleet import Floats
from placement.queueing import ServiceTimes, expected_waits_s, remaining_wake_s
from placement.running_mean import RunningMean
from serve.pools import Pool

SERVICE_PRIOR_S = 10.0
"""A request's time until a pool's first answers teach better; an answer of some hundred tokens on a small machine."""

_WAKE_SETTING_COUNTS_AS = 2
"""Wakings are few: a handful must count for more than the setting does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoadNow:
    """One pool as this ingress sees it; ``in_flight`` are its own requests only."""

    running: int
    wanted: int
    in_flight: int
    service_s: float
    wake_s: float
    is_waking: bool


class PoolLoads:
    """Columns in the pools' order, kept as requests come and go. ``clock`` is in seconds, monotonic.

    Until the first look a pool is taken to have its least replicas. Other ingresses' requests are not known here:
    with ``ingresses`` of them, each takes the others to send as many as itself.
    """

    def __init__(self, pools: Sequence[Pool], *, ingresses: int, clock: Callable[[], float]) -> None:
        self._places = {pool.key: place for place, pool in enumerate(pools)}
        self._ingresses = ingresses
        self._clock = clock
        self._in_flight = np.zeros(len(pools))
        self._running = np.array([pool.least_replicas for pool in pools], dtype=np.float64)
        self._wanted = [pool.least_replicas for pool in pools]
        self._max_ongoing = np.array([pool.max_ongoing for pool in pools], dtype=np.float64)
        self._services = ServiceTimes({pool.key: SERVICE_PRIOR_S for pool in pools})
        self._wakes = [RunningMean(pool.wake_s, prior_counts_as=_WAKE_SETTING_COUNTS_AS) for pool in pools]
        self._wakes_s = np.array([pool.wake_s for pool in pools], dtype=np.float64)
        self._waking_since: dict[int, float] = {}

    def took(self, pool: str) -> None:
        """A request goes to it; the first one to a pool without replicas wakes it."""
        place = self._places[pool]
        self._in_flight[place] += 1
        if self._running[place] == 0:
            self._waking_since.setdefault(place, self._clock())

    def gave_back(self, pool: str, service_s: float | None) -> None:
        """It is done there; ``service_s`` is how long a whole answer took from its start, None teaches nothing."""
        place = self._places[pool]
        assert self._in_flight[place] > 0, f"{pool} gave back more than it took"
        self._in_flight[place] -= 1
        if service_s is not None:
            self._services.observe(pool, service_s)
        self._forget_idle_waking(place)

    def see(self, running: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        """Replicas that run, and that are wanted, by pool. A pool that has woken teaches how long that took."""
        now = self._clock()
        for pool, place in self._places.items():
            self._running[place] = running.get(pool, 0)
            self._wanted[place] = wanted.get(pool, 0)
            if self._running[place] > 0:
                began = self._waking_since.pop(place, None)
                if began is not None:
                    self._wakes[place].observe(now - began)
                    self._wakes_s[place] = self._wakes[place].mean
            elif self._wanted[place] > 0:
                self._waking_since.setdefault(place, now)
            else:
                self._forget_idle_waking(place)

    def _forget_idle_waking(self, place: int) -> None:
        """Nobody waits for it any more, and nothing is starting: the next waking begins anew."""
        if self._in_flight[place] == 0 and self._wanted[place] == 0:
            self._waking_since.pop(place, None)

    @property
    def has_sleepers(self) -> bool:
        """Whether some pool has no replica that runs."""
        return bool((self._running == 0).any())

    def is_asleep(self, pool: str) -> bool:
        """Whether no replica runs; one may be starting."""
        return bool(self._running[self._places[pool]] == 0)

    def wake_s(self, pool: str) -> float:
        """Seconds from the first request to a replica that runs, as learned."""
        return float(self._wakes_s[self._places[pool]])

    def waits_s(self) -> Floats:
        """Expected seconds until a replica begins with one more request, what is left of a waking included."""
        now = self._clock()
        left = self._wakes_s.copy()
        for place, began in self._waking_since.items():
            left[place] = remaining_wake_s(self._wakes_s.item(place), now - began)
        return expected_waits_s(
            ongoing=self._in_flight * self._ingresses,
            replicas=self._running,
            max_ongoing=self._max_ongoing,
            service_s=self._services.column,
            wake_s=left,
        )

    def now(self, pool: str) -> PoolLoadNow:
        """One pool's figures."""
        place = self._places[pool]
        return PoolLoadNow(
            running=int(self._running[place]),
            wanted=self._wanted[place],
            in_flight=int(self._in_flight[place]),
            service_s=self._services.service_s(pool),
            wake_s=self.wake_s(pool),
            is_waking=place in self._waking_since,
        )
