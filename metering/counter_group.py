"""Counters that are read, closed and divided together: a host's sockets and memory, or one GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

from metering.counters.counter import Counter, CounterFacts, Reading, difference
from metering.errors import CounterLost

# Fewer of a counter's own steps show its rhythm, not the power.
_TELLING_PERIODS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedInterval:
    """What a group counted between two readings of its counters.

    ``lost`` is the reason when some of the interval's energy is unknown or went to quarantine;
    ``energy_microjoules`` is then the rest, which is real and still has to be booked.
    """

    begin_ns: int
    end_ns: int
    energy_microjoules: int
    quarantine_microjoules: int
    lost: str | None


class CounterGroup:
    """Reads its counters and remembers where the open interval began and how much power was last drawn."""

    def __init__(self, counters: Sequence[Counter], *, power_window_ns: int, now_ns: int) -> None:
        """Take the first readings; a counter that can't be read is tried again at every close.

        Power is averaged over at least ``power_window_ns``: over a shorter time a counter's steps show, not watts.
        """
        self._counters = tuple(counters)
        self._facts = tuple(counter.facts for counter in counters)
        self._power_window_ns = power_window_ns
        self._readings: list[Reading | None] = [_read(counter)[0] for counter in counters]
        self._begin_ns = max([now_ns, *(reading.at_monotonic_ns for reading in self._readings if reading)])
        self._window_microjoules = 0
        self._window_ns = 0
        self._power_milliwatts: int | None = None

    @property
    def facts(self) -> tuple[CounterFacts, ...]:
        """What holds for the counters."""
        return self._facts

    @property
    def begin_ns(self) -> int:
        """Where the open interval began."""
        return self._begin_ns

    @property
    def closes_at_will(self) -> bool:
        """Whether the interval may be closed now, and not only when it is due."""
        return all(facts.closes_at_will for facts in self._facts)

    @property
    def period_ns(self) -> int:
        """The slowest counter's; 0 without counters."""
        return max((facts.period_ns for facts in self._facts), default=0)

    @property
    def power_milliwatts(self) -> int | None:
        """Mean power since the last whole window if that is five counter periods ago, else of that window.

        ``None`` while there is neither.
        """
        if self._window_ns >= _TELLING_PERIODS * self.period_ns > 0:
            return self._window_microjoules * 1_000_000 // self._window_ns
        return self._power_milliwatts

    def close(self, now_ns: int) -> ClosedInterval:
        """Read all counters: the interval ends and the next begins."""
        energy = quarantine = 0
        lost: str | None = None
        end_ns = max(now_ns, self._begin_ns)
        for index, counter in enumerate(self._counters):
            before = self._readings[index]
            after, why = _read(counter)
            self._readings[index] = after
            if after is None or before is None:
                lost = lost or why or f"{counter.facts.device_id}: no reading at the interval's beginning"
                continue
            end_ns = max(end_ns, after.at_monotonic_ns)
            delta = difference(before, after, counter.facts)
            energy += delta.energy_microjoules or 0
            quarantine += delta.quarantined_microjoules
            lost = lost or delta.lost
        closed = ClosedInterval(
            begin_ns=self._begin_ns,
            end_ns=end_ns,
            energy_microjoules=energy,
            quarantine_microjoules=quarantine,
            lost=lost,
        )
        self._begin_ns = end_ns
        self._gauge(closed)
        return closed

    def _gauge(self, closed: ClosedInterval) -> None:
        if closed.lost is not None:
            self._window_microjoules = self._window_ns = 0
            return
        self._window_microjoules += closed.energy_microjoules
        self._window_ns += closed.end_ns - closed.begin_ns
        if self._window_ns >= self._power_window_ns:
            self._power_milliwatts = self._window_microjoules * 1_000_000 // self._window_ns
            self._window_microjoules = self._window_ns = 0


def _read(counter: Counter) -> tuple[Reading | None, str | None]:
    try:
        return counter.read(), None
    except CounterLost as why:
        return None, str(why)
