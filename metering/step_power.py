"""At what power a replica's steps run: for the part of a request that no counter has closed yet.

The mean over an interval would also hold the time in which nothing ran, and would charge a short request too little.
"""

from metering.counter_group import CounterGroup

# What is older than this much time in steps is forgotten: power follows the batch.
_HORIZON_NS = 500_000_000
# Fewer of a counter's own steps show its rhythm, not the power.
_TELLING_PERIODS = 5


class StepPower:
    """Energy above the floor that closed intervals gave to a replica's steps, over the time in steps, of late."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[int, int]] = {}

    def add(self, group: CounterGroup, grains: int, steps_ns: int) -> None:
        """An interval of these counters gave the steps so many grains for so long."""
        if steps_ns == 0:
            return
        before_grains, before_ns = self._known.get(group.device_ids, (0, 0))
        grains, known_ns = before_grains + grains, before_ns + steps_ns
        horizon_ns = max(_HORIZON_NS, _TELLING_PERIODS * group.period_ns)
        if known_ns > horizon_ns:
            grains, known_ns = grains * horizon_ns // known_ns, horizon_ns
        self._known[group.device_ids] = grains, known_ns

    def forget(self, group: CounterGroup) -> None:
        """What these counters have told was not so: they stood still."""
        self._known.pop(group.device_ids, None)

    def grains(self, group: CounterGroup, steps_ns: int) -> int | None:
        """What steps of this length draw from these counters; ``None`` while no interval with a step has told."""
        if steps_ns == 0:
            return 0
        if group.device_ids not in self._known:
            return None
        grains, known_ns = self._known[group.device_ids]
        return grains * steps_ns // known_ns
