"""The meter's clock: windows are monotonic, receipts carry wall time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of now. Neither blocks nor fails."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never step; the same clock that engine steps are stamped with."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic_ns(self) -> int:
        """``CLOCK_MONOTONIC``, shared by all processes of one boot."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """``CLOCK_REALTIME``."""
        return time.time_ns()
