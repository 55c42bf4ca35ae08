"""How often counters move, measured by watching them for a moment."""

import statistics
from collections.abc import Callable, Sequence

from metering.counters.counter import Counter
from metering.errors import CounterLost

LONGEST_WATCH_NS = 500_000_000
_POLL_S = 0.002
_MOST_POLLS = 250
# Two gaps are the least that half a second shows of a counter that moves every 200 ms; more than eight add nothing.
_FEWEST_GAPS = 2
_ENOUGH_GAPS = 8


def measured_periods(
    counters: Sequence[Counter], *, monotonic_ns: Callable[[], int], sleep: Callable[[float], None]
) -> dict[str, int]:
    """The median time in nanoseconds between moves of each counter's reading, by device id.

    All counters are watched at once, every 2 ms and for at most half a second. One that can't be read, or hardly
    moved in that time, is left out.
    """
    watched = [_Watched(counter) for counter in counters]
    until_ns = monotonic_ns() + LONGEST_WATCH_NS
    for _ in range(_MOST_POLLS):
        for each in watched:
            each.look()
        if all(each.gaps >= _ENOUGH_GAPS for each in watched) or monotonic_ns() >= until_ns:
            break
        sleep(_POLL_S)
    return {each.device_id: each.period_ns for each in watched if each.gaps >= _FEWEST_GAPS}


class _Watched:
    """One counter, and when it was seen to move."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._energy_microjoules: int | None = None
        self._moved_ns: list[int] = []

    @property
    def device_id(self) -> str:
        return self._counter.facts.device_id

    @property
    def gaps(self) -> int:
        """How many times between moves were seen."""
        return max(0, len(self._moved_ns) - 1)

    @property
    def period_ns(self) -> int:
        """The median of these times."""
        pairs = zip(self._moved_ns, self._moved_ns[1:], strict=False)
        return max(1, round(statistics.median(after - before for before, after in pairs)))

    def look(self) -> None:
        try:
            reading = self._counter.read()
        except CounterLost:
            return
        if self._energy_microjoules not in (None, reading.energy_microjoules):
            self._moved_ns.append(reading.at_monotonic_ns)
        self._energy_microjoules = reading.energy_microjoules
