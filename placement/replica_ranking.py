"""Which replica of a pool a request goes to: the expected USD of its joules there, and of its wait. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

ENERGY_STEP = 1.5
"""Replicas whose energy per token differs by less than this factor are mostly taken for equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """One live replica. What isn't known is None: nothing learned yet, or no answer about its queue.

    ``queue_length`` counts the requests that run and wait there, of at most ``max_ongoing``; ``service_s`` is a
    request's mean time and ``microjoules_per_token`` its energy, as the replica reported them last.
    """

    replica: str
    queue_length: float | None
    max_ongoing: int
    microjoules_per_token: float | None
    service_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRates:
    """What a pool's replicas have in common: the worth of a joule there and of a second, a request's usual tokens.

    The grid's intensity is that of the deployment's start: it is the same for all replicas of a pool, so it only
    moves the balance between joules and waiting.
    """

    usd_per_microjoule: float
    usd_per_second_waited: float
    tokens: int


def rank_replicas(replicas: Iterable[ReplicaFacts], rates: ReplicaRates) -> list[str]:
    """Every replica once, the cheapest first; ties by the shorter queue, then by fewer joules, then by name.

    The energy is what the replica reports, so one whose batches run fuller (fewer joules for each token) is cheaper;
    it counts in steps of `ENERGY_STEP`, for requests differ by more than replicas that are alike. A queue only ever
    makes a replica dearer: by the time that its requests take there, and as much again when its batch is full. What
    one replica doesn't know is taken as the others' mean; an unknown queue as the longest of the others.
    """
    facts = list(replicas)
    energy = _mean([each.microjoules_per_token for each in facts])
    service = _mean([each.service_s for each in facts])
    longest = max((each.queue_length for each in facts if each.queue_length is not None), default=0)

    def key(each: ReplicaFacts) -> tuple[float, float, float, str]:
        queue = longest if each.queue_length is None else each.queue_length
        microjoules = energy if each.microjoules_per_token is None else each.microjoules_per_token
        service_s = service if each.service_s is None else each.service_s
        seconds = service_s * (1 + queue / each.max_ongoing)
        energy_usd = _in_steps(microjoules) * rates.tokens * rates.usd_per_microjoule
        return energy_usd + seconds * rates.usd_per_second_waited, queue, microjoules, each.replica

    return [each.replica for each in sorted(facts, key=key)]


def _in_steps(microjoules: float) -> float:
    """The next lower power of `ENERGY_STEP`."""
    if microjoules < 1:
        return 0.0
    return float(ENERGY_STEP ** math.floor(math.log(microjoules, ENERGY_STEP)))


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
