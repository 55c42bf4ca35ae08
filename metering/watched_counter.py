"""One counter under watch: what each reading says about the energy since the last one, and whether to believe it.

Energy goes one of three ways. What can be divided among those who ran is divided. What was really drawn but while the
counter couldn't be read (the device was gone, or the meter itself was away) is nobody's: it becomes overhead. What was
counted but cannot be trusted (a jump, the time of a suspend, a counter that moves again after it had stuck) is
quarantined. What can't be known (a reset, a wrap that nobody saw) isn't guessed: a new epoch begins.
"""

from dataclasses import dataclass, replace

from metering.checkpoint import CounterMark
from metering.clock import SHORTEST_SUSPEND_NS
from metering.counters.counter import Counter, CounterFacts, Delta, Reading, difference
from metering.errors import CounterLost
from metering.meter_report import DeviceReport
from metering.power_gauge import PowerGauge

# A device that works for this long, and for so many of its counter's periods, must have moved its counter.
_LONGEST_STILL_NS = 2_000_000_000
_LONGEST_STILL_PERIODS = 20
# Jumps closer together than this are one event: a maximum power that is set too low would report one every tick.
_JUMPS_APART_NS = 10_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """What a counter's new reading says of the time since its last.

    ``stray_microjoules`` were drawn, but nobody can be charged for them. ``lost`` is the reason when not everything
    is known or divided; ``news`` is the line for the operator when that is a new event.
    """

    energy_microjoules: int = 0
    stray_microjoules: int = 0
    quarantine_microjoules: int = 0
    lost: str | None = None
    news: str | None = None


class WatchedCounter:
    """A counter, its last reading, and what it has counted since the book began."""

    def __init__(self, counter: Counter, *, power_window_ns: int) -> None:
        """Nothing is read before `resume`."""
        self.facts: CounterFacts = counter.facts
        self._counter = counter
        self._gauge = PowerGauge(window_ns=power_window_ns, period_ns=counter.facts.period_ns)
        self._reading: Reading | None = None
        self._suspended_ns = 0
        self._counted_microjoules = 0
        self._quarantine_microjoules = 0
        self._trouble: str | None = None
        self._is_gone = False
        self._is_stuck = False
        self._is_unmoved = False
        self._still_ns = 0
        self._jumped_ns: int | None = None

    @property
    def read_at_ns(self) -> int:
        """When the counter was last read; 0 before that."""
        return 0 if self._reading is None else self._reading.at_monotonic_ns

    @property
    def power_milliwatts(self) -> int | None:
        """Mean power of late, ``None`` while it isn't known or the counter is in trouble."""
        return None if self._trouble else self._gauge.milliwatts

    @property
    def trouble(self) -> str | None:
        """Why it can't be read or trusted now, as of its last reading."""
        return self._trouble

    @property
    def mark(self) -> CounterMark:
        """Where it stands, for the meter that comes after this one."""
        return CounterMark(
            method=self.facts.method,
            counted_microjoules=self._counted_microjoules,
            quarantine_microjoules=self._quarantine_microjoules,
            reading=self._reading,
            suspended_ns=self._suspended_ns,
        )

    def resume(self, mark: CounterMark | None, *, unusable: str | None, suspended_ns: int) -> Movement:
        """Take the first reading. What was counted since an earlier meter's ``mark`` is stray, as far as it is known.

        ``unusable`` is the reason when no earlier reading means anything any more.
        """
        unusable = unusable or self.facts.begins_anew
        if mark is not None:
            self._counted_microjoules = mark.counted_microjoules
            self._quarantine_microjoules = mark.quarantine_microjoules
            if unusable is None and mark.method == self.facts.method:
                self._reading, self._suspended_ns = mark.reading, mark.suspended_ns
        before, asleep_ns = self._reading, suspended_ns - self._suspended_ns
        after = self._read(suspended_ns)
        if isinstance(after, CounterLost):
            return self._gone(str(after))
        if mark is None:
            return Movement()
        if before is None:
            reason = unusable or f"its last reading, by {mark.method}, is none that can be gone on from"
            return Movement(news=f"{self.facts.device_id}: what it drew while the meter was away is unknown: {reason}")
        delta = _between(before, after, self.facts, asleep_ns)
        return self._counted(
            Movement(
                stray_microjoules=delta.energy_microjoules or 0,
                quarantine_microjoules=delta.quarantined_microjoules,
                news=None if delta.lost is None else f"{delta.lost}, while the meter was away",
            )
        )

    def take(self, suspended_ns: int) -> Movement:
        """Read the counter: what it says of the time since the last reading."""
        before, asleep_ns = self._reading, suspended_ns - self._suspended_ns
        after = self._read(suspended_ns)
        if isinstance(after, CounterLost):
            return self._gone(str(after))
        movement = self._judged(before, after, asleep_ns)
        self._is_gone = False
        self._is_unmoved = movement.lost is None and movement.energy_microjoules == 0
        if not self._is_unmoved:
            self._still_ns = 0
            self._is_stuck = False
        if not self._is_stuck:
            self._trouble = movement.lost
        if movement.lost is None and before is not None:
            self._gauge.add(movement.energy_microjoules, after.at_monotonic_ns - before.at_monotonic_ns)
        else:
            self._gauge.interrupt()
        return self._counted(movement)

    def worked(self, elapsed_ns: int) -> Movement:
        """Its device worked for this long until the last reading, which must have moved it sooner or later."""
        if not self._is_unmoved:
            return Movement()
        self._still_ns += elapsed_ns
        if self._still_ns < max(_LONGEST_STILL_NS, _LONGEST_STILL_PERIODS * self.facts.period_ns):
            return Movement()
        reason = f"{self.facts.device_id}: the counter stood still for {self._still_ns / 1e9:.1f} s of work"
        news = None if self._is_stuck else reason
        self._is_stuck = True
        self._trouble = reason
        self._gauge.interrupt()
        return Movement(lost=reason, news=news)

    def report(self, floor_milliwatts: int | None) -> DeviceReport:
        """What is shown of it."""
        facts, reading = self.facts, self._reading
        return DeviceReport(
            device_id=facts.device_id,
            method=facts.method,
            scope=facts.scope,
            period_ns=facts.period_ns,
            maximum_power_milliwatts=facts.maximum_power_milliwatts,
            error_percent=facts.error_percent,
            best_confidence=facts.best_confidence,
            counted_microjoules=self._counted_microjoules,
            quarantine_microjoules=self._quarantine_microjoules,
            reading_microjoules=None if reading is None else reading.energy_microjoules,
            read_at_monotonic_ns=None if reading is None else reading.at_monotonic_ns,
            power_milliwatts=self.power_milliwatts,
            floor_milliwatts=floor_milliwatts,
            trouble=self._trouble,
        )

    def _read(self, suspended_ns: int) -> Reading | CounterLost:
        """A reading, which is kept, or why there is none; then the last good one stays."""
        try:
            reading = self._counter.read()
        except CounterLost as why:
            return why
        self._reading, self._suspended_ns = reading, suspended_ns
        return reading

    def _gone(self, why: str) -> Movement:
        news = None if self._is_gone else why
        self._is_gone = True
        self._is_unmoved = False
        self._trouble = why
        self._gauge.interrupt()
        return Movement(lost=why, news=news)

    def _judged(self, before: Reading | None, after: Reading, asleep_ns: int) -> Movement:
        device = self.facts.device_id
        if before is None:
            return Movement(lost=f"{device}: it had never been read before", news=f"{device}: can be read now")
        delta = _between(before, after, self.facts, asleep_ns)
        energy = delta.energy_microjoules or 0
        if self._is_gone:
            away_s = (after.at_monotonic_ns - before.at_monotonic_ns) / 1e9
            lost = delta.lost or f"{device}: could not be read for {away_s:.1f} s"
            known = delta.lost or f"{energy / 1e6:.3f} J that it counted meanwhile are overhead"
            news = f"{device}: can be read again after {away_s:.1f} s; {known}"
            return Movement(
                stray_microjoules=energy, quarantine_microjoules=delta.quarantined_microjoules, lost=lost, news=news
            )
        if delta.lost is not None:
            # A suspend is one event of the whole machine.
            is_new = asleep_ns < SHORTEST_SUSPEND_NS and self._is_new(delta, after.at_monotonic_ns)
            return Movement(
                quarantine_microjoules=delta.quarantined_microjoules,
                lost=delta.lost,
                news=delta.lost if is_new else None,
            )
        if self._is_stuck and energy:
            reason = f"{device}: the counter moved again after it had stood still; {energy / 1e6:.3f} J are quarantined"
            return Movement(quarantine_microjoules=energy, lost=reason, news=reason)
        return Movement(energy_microjoules=energy)

    def _is_new(self, delta: Delta, now_ns: int) -> bool:
        """Whether what went wrong is an event of its own."""
        if not delta.quarantined_microjoules:
            return True
        jumped_ns, self._jumped_ns = self._jumped_ns, now_ns
        return jumped_ns is None or now_ns - jumped_ns > _JUMPS_APART_NS

    def _counted(self, movement: Movement) -> Movement:
        self._counted_microjoules += movement.energy_microjoules + movement.stray_microjoules
        self._counted_microjoules += movement.quarantine_microjoules
        self._quarantine_microjoules += movement.quarantine_microjoules
        return movement


def _between(before: Reading, after: Reading, facts: CounterFacts, asleep_ns: int) -> Delta:
    """The difference of two readings; over a suspend, nothing that was counted can be trusted or divided.

    The monotonic clock stood still meanwhile, and some counters with it, while others went on or began afresh.
    """
    if asleep_ns < SHORTEST_SUSPEND_NS:
        return difference(before, after, facts)
    reason = f"{facts.device_id}: the machine was suspended for {asleep_ns / 1e9:.1f} s"
    woken = replace(after, at_monotonic_ns=after.at_monotonic_ns + asleep_ns)
    delta = difference(before, woken, facts)
    # A decrease may be a wrap as well as a counter that the sleep has reset.
    went_back = after.energy_microjoules < before.energy_microjoules
    counted = 0 if went_back else (delta.energy_microjoules or 0) + delta.quarantined_microjoules
    return Delta(energy_microjoules=None, quarantined_microjoules=counted, lost=reason)
