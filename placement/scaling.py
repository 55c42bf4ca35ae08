"""How many replicas a pool should have, and which sleeping pool to wake before its first request. Pure.

Pools grow in rank order because their demand comes in rank order: the plan sends each request to the pool that is
cheapest with its wait counted, and `wanted_replicas` follows that demand. `next_to_wake` looks ahead across pools,
for the plan alone would send nobody to a pool that sleeps while another has any room.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """One pool's load: ``in_flight`` requests run or wait there; a replica should have ``per_replica`` of them.

    ``running`` replicas answer; ``least`` and ``most`` bound how many there may be.
    """

    pool: str
    in_flight: float
    per_replica: float
    running: int
    least: int
    most: int


def wanted_replicas(load: PoolLoad) -> int:
    """As many as the requests in flight fill, within the pool's bounds.

    From none it is one at a time (or the pool's least), however many wait: how much one takes shows when it runs.
    """
    wanted = math.ceil(load.in_flight / load.per_replica)
    if load.running == 0:
        wanted = min(wanted, 1)
    return max(load.least, min(load.most, wanted))


def next_to_wake(ranked: Sequence[PoolLoad]) -> str | None:
    """Of pools in the order of their rank, the one to wake now, or None: the first that sleeps is the only choice.

    It wakes when every pool before it is full at its most. Where none is before it, dearer ones serve what it could,
    since nobody waits for a waking that way: then it wakes once they have as many requests as fill a replica of its,
    or are full themselves. Not while it wakes already (requests are on their way to it).
    """
    place = next((place for place, load in enumerate(ranked) if load.running == 0), None)
    if place is None or ranked[place].in_flight > 0:
        return None
    sleeper, before = ranked[place], ranked[:place]
    behind = [load for load in ranked[place + 1 :] if load.running > 0]
    is_due = all(map(_is_full, before or behind)) and bool(before or behind)
    if not before:
        is_due = is_due or sum(load.in_flight for load in behind) >= sleeper.per_replica
    return sleeper.pool if is_due else None


def _is_full(load: PoolLoad) -> bool:
    return load.running >= load.most and load.in_flight >= load.per_replica * load.running
