"""What a replica tells its pool's router about itself: energy and time of its requests, coarse on purpose."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

FRESH_FOR_S = 60.0
_NEWEST_WEIGHT = 0.2
_SIGNIFICANT_DIGITS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learned:
    microjoules_per_token: float
    service_s: float


class RoutingStats:
    """Exponentially weighted means over the requests that finished here. ``clock`` is in seconds, monotonic.

    What was learned of a batch long over would keep requests away, or draw them, for nothing: after `FRESH_FOR_S`
    without a request it is no longer given. Figures are coarse, for Ray tells every ingress whenever one changes.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._learned: _Learned | None = None
        self._learned_at = 0.0

    def begin(self) -> float:
        """A request begins; what it returns goes to `learn`."""
        self._running += 1
        return self._clock()

    def end(self) -> None:
        """One that began is over, however it ended."""
        self._running -= 1

    def learn(self, receipt: bytes, *, since: float) -> None:
        """Take in the receipt of a request that began then and finished; without known energy it teaches nothing."""
        document = json.loads(receipt)
        joules, tokens = document["energy"]["total_joules"], document["workload"]["tokens"]
        count = tokens["input"] + tokens["output"]
        if joules is None or count < 1:
            return
        self._learned_at = self._clock()
        newest = _Learned(microjoules_per_token=joules * 1e6 / count, service_s=self._learned_at - since)
        self._learned = newest if self._learned is None else _mixed(self._learned, newest)

    def snapshot(self) -> dict[str, float]:
        """Requests that run, rounded down to a power of two; and the means, with two significant digits, once there
        are fresh ones: µJ per token, seconds per request.
        """
        running = {"running": float(1 << self._running.bit_length() >> 1)}
        if self._learned is None or self._clock() - self._learned_at > FRESH_FOR_S:
            return running
        return {
            **running,
            "microjoules_per_token": _coarse(self._learned.microjoules_per_token),
            "service_s": _coarse(self._learned.service_s),
        }


def _mixed(old: _Learned, new: _Learned) -> _Learned:
    def mean(before: float, now: float) -> float:
        return before + _NEWEST_WEIGHT * (now - before)

    return _Learned(
        microjoules_per_token=mean(old.microjoules_per_token, new.microjoules_per_token),
        service_s=mean(old.service_s, new.service_s),
    )


def _coarse(value: float) -> float:
    if value == 0:
        return 0.0
    return round(value, _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))))
