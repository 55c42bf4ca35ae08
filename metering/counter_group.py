"""Counters that are read, closed and divided together: a host's sockets and memory, or the GPUs of one pool."""

from collections.abc import Sequence
from dataclasses import dataclass

from metering.counters.counter import CounterFacts
from metering.watched_counter import WatchedCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedInterval:
    """What a group counted between two readings of its counters.

    ``lost`` is the reason when some of the interval's energy is unknown, stray or in quarantine (see
    `metering.watched_counter`); ``energy_microjoules`` is then the rest, which still has to be divided.
    ``news`` are lines for the operator.
    """

    begin_ns: int
    end_ns: int
    energy_microjoules: int
    stray_microjoules: int
    quarantine_microjoules: int
    lost: str | None
    news: tuple[str, ...]


class CounterGroup:
    """Reads its counters together and remembers where the open interval began."""

    def __init__(self, counters: Sequence[WatchedCounter], *, begin_ns: int) -> None:
        """Go on from the counters' last readings."""
        self._counters = tuple(counters)
        self._facts = tuple(counter.facts for counter in counters)
        self._begin_ns = max([begin_ns, *(counter.read_at_ns for counter in counters)])

    @property
    def counters(self) -> tuple[WatchedCounter, ...]:
        """The counters themselves."""
        return self._counters

    @property
    def facts(self) -> tuple[CounterFacts, ...]:
        """What holds for the counters."""
        return self._facts

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The counters' devices."""
        return tuple(facts.device_id for facts in self._facts)

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
    def trouble(self) -> str | None:
        """Why one of its counters can't be read or trusted now."""
        return next((counter.trouble for counter in self._counters if counter.trouble is not None), None)

    @property
    def power_milliwatts(self) -> int | None:
        """Power of late of all counters together; ``None`` while one's isn't known, and without counters."""
        each = [counter.power_milliwatts for counter in self._counters]
        known = [milliwatts for milliwatts in each if milliwatts is not None]
        return sum(known) if known and len(known) == len(each) else None

    def close(self, now_ns: int, suspended_ns: int) -> ClosedInterval:
        """Read all counters: the interval ends and the next begins."""
        moved = [counter.take(suspended_ns) for counter in self._counters]
        begin_ns = self._begin_ns
        self._begin_ns = max([now_ns, begin_ns, *(counter.read_at_ns for counter in self._counters)])
        return ClosedInterval(
            begin_ns=begin_ns,
            end_ns=self._begin_ns,
            energy_microjoules=sum(movement.energy_microjoules for movement in moved),
            stray_microjoules=sum(movement.stray_microjoules for movement in moved),
            quarantine_microjoules=sum(movement.quarantine_microjoules for movement in moved),
            lost=next((movement.lost for movement in moved if movement.lost is not None), None),
            news=tuple(movement.news for movement in moved if movement.news is not None),
        )
