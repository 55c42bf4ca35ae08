"""What a counter is: a cumulative energy reading, what is known about it, and the difference of two readings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from metering.settlement import Confidence

# A reading may hold energy from up to one period before the interval, and rated power is passed for moments.
_PLAUSIBLE_TENTHS = 12
_LONGEST_READ_NS = 5_000_000
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterFacts:
    """What holds for a counter as long as it lives.

    ``period_ns``: how often the device itself moves the reading on. ``wrap_microjoules``: where it starts again
    from zero, ``None`` when a smaller reading can only mean a reset. ``maximum_power_milliwatts``: no honest
    reading rises faster; ``None`` when nothing is known, and then nothing is quarantined. ``error_percent``: the
    silicon's published accuracy. ``best_confidence``: the label that a request alone on the device can reach.
    ``closes_at_will``: a reading now is worth an interval's end; otherwise only the regular ones are.
    ``begins_anew`` is why a reading that an earlier meter took is none to go on from, if it isn't.
    """

    device_id: str
    method: str
    scope: str
    period_ns: int
    wrap_microjoules: int | None
    maximum_power_milliwatts: int | None
    error_percent: float
    best_confidence: Confidence
    closes_at_will: bool
    begins_anew: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A cumulative energy and the monotonic time at which it was read."""

    energy_microjoules: int
    at_monotonic_ns: int


class Counter(Protocol):
    """One device's cumulative energy.

    `read` takes microseconds, doesn't block on the device's work, and raises `metering.errors.CounterLost` when
    the device can't be read now; it may be read again later. It never returns a made-up value.
    """

    @property
    def facts(self) -> CounterFacts:
        """What holds for this counter."""

    def read(self) -> Reading:
        """The energy so far.

        Raises:
            CounterLost: the device cannot be read now.
        """


class Sharing(Protocol):
    """Who else uses a device whose counter knows no processes."""

    def others(self, own_pids: frozenset[int]) -> str | None:
        """Why the device isn't these processes' alone right now, or why that can't be told; ``None`` when it is.

        Takes milliseconds at most and never raises.
        """


def timely(energy_microjoules: Callable[[], int], monotonic_ns: Callable[[], int]) -> Reading:
    """Read a value and the time, once more if this process was held up between the two.

    On a crowded machine that can take a second, and the energy of that second would then look like a jump.
    """
    for _ in range(_TRIES):
        began_ns = monotonic_ns()
        reading = Reading(energy_microjoules=energy_microjoules(), at_monotonic_ns=monotonic_ns())
        if reading.at_monotonic_ns - began_ns <= _LONGEST_READ_NS:
            break
    return reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a counter moved between two readings.

    ``energy_microjoules`` is ``None``, with the reason in ``lost``, when it is not known. ``quarantined_microjoules``
    was counted but cannot be true: it is booked apart and billed to nobody, and ``lost`` says why.
    """

    energy_microjoules: int | None
    quarantined_microjoules: int
    lost: str | None


def difference(before: Reading, after: Reading, facts: CounterFacts) -> Delta:
    """The energy between two readings of one counter, as far as it can be known.

    One wrap is undone if the gap is too short for two. A decrease without a wrap range is a reset, a gap that could
    hide a whole turn is unknown, and a rise beyond 1.2 times the maximum power, over the time between the readings
    and one period (energy that an earlier moment left in the device's register), goes to quarantine.
    """
    elapsed_ns = after.at_monotonic_ns - before.at_monotonic_ns
    energy = after.energy_microjoules - before.energy_microjoules
    if facts.wrap_microjoules is not None:
        if _could_turn_round(elapsed_ns, facts.wrap_microjoules, facts.maximum_power_milliwatts):
            return _lost(f"{facts.device_id}: not read for {elapsed_ns / 1e9:.0f} s, long enough to wrap unseen")
        energy %= facts.wrap_microjoules
    if energy < 0:
        return _lost(f"{facts.device_id}: the counter went back, its driver was reset")
    if energy > _most_plausible(elapsed_ns, facts):
        reason = f"{facts.device_id}: the counter jumped by {energy / 1e6:.3f} J in {elapsed_ns / 1e9:.3f} s"
        return Delta(energy_microjoules=None, quarantined_microjoules=energy, lost=reason)
    return Delta(energy_microjoules=energy, quarantined_microjoules=0, lost=None)


def _lost(reason: str) -> Delta:
    return Delta(energy_microjoules=None, quarantined_microjoules=0, lost=reason)


def _could_turn_round(elapsed_ns: int, wrap_microjoules: int, maximum_power_milliwatts: int | None) -> bool:
    if maximum_power_milliwatts is None:
        return False
    return elapsed_ns * maximum_power_milliwatts > wrap_microjoules * 1_000_000


def _most_plausible(elapsed_ns: int, facts: CounterFacts) -> float:
    if facts.maximum_power_milliwatts is None:
        return float("inf")
    picojoules = facts.maximum_power_milliwatts * (elapsed_ns + facts.period_ns)
    return picojoules * _PLAUSIBLE_TENTHS // 10_000_000
