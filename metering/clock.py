"""The meter's clocks: windows are monotonic, receipts carry wall time, and a suspend shows between two others."""

import time
from pathlib import Path
from typing import Protocol

# macOS has no CLOCK_BOOTTIME. Python's monotonic clock is mach_absolute_time there, which stops in sleep; of the clocks
# that go on, CLOCK_MONOTONIC follows NTP and would drift away from it until that looked like a suspend, and
# CLOCK_MONOTONIC_RAW (mach_continuous_time) counts the same ticks: clock_gettime(3) of macOS.
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC_RAW)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Jitter between two clocks read one after the other, on a machine that is busy elsewhere.
SHORTEST_SUSPEND_NS = 100_000_000


class Clock(Protocol):
    """Readings of now. None of them blocks or fails."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never step; the same clock that engine steps are stamped with."""

    def boottime_ns(self) -> int:
        """The same, but it goes on while the machine is suspended."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""

    def boot_id(self) -> str | None:
        """What names this run of the monotonic clock; ``None`` where the system has no name for it."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic_ns(self) -> int:
        """``CLOCK_MONOTONIC``, shared by all processes of one boot."""
        return time.monotonic_ns()

    def boottime_ns(self) -> int:
        """``CLOCK_BOOTTIME``, or what macOS has instead."""
        return time.clock_gettime_ns(_BOOTTIME)

    def wall_ns(self) -> int:
        """``CLOCK_REALTIME``."""
        return time.time_ns()

    def boot_id(self) -> str | None:
        """The kernel's boot id (Linux)."""
        try:
            return _BOOT_ID.read_text().strip() or None
        except OSError:
            return None


class SuspendWatch:
    """How long the machine has been suspended since it was booted, to a tenth of a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._suspended_ns = min(self._apart_ns() for _ in range(3))

    def suspended_ns(self) -> int:
        """Time that `boottime_ns` counted and `monotonic_ns` didn't; it changes by whole suspends only."""
        apart_ns = self._apart_ns()
        if apart_ns - self._suspended_ns >= SHORTEST_SUSPEND_NS:
            # Once more: this thread may have been put aside between the two readings.
            apart_ns = min(apart_ns, self._apart_ns())
            if apart_ns - self._suspended_ns >= SHORTEST_SUSPEND_NS:
                self._suspended_ns = apart_ns
        return self._suspended_ns

    def _apart_ns(self) -> int:
        monotonic_ns = self._clock.monotonic_ns()
        return max(0, self._clock.boottime_ns() - monotonic_ns)
