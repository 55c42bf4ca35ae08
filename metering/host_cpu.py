"""How long the machine's CPUs have been busy, from ``/proc/stat``."""

import os
from pathlib import Path

from metering.errors import CounterLost

# Fields of the "cpu" line that are work: user, nice, system, irq, softirq. Guest time is already inside user and
# nice; idle, iowait and steal (another machine's work) are not ours. Source: proc_stat(5).
_BUSY_FIELDS = (1, 2, 3, 6, 7)
_FIRST_LINE_BYTES = 256


class HostCpu:
    """The machine's busy CPU time, summed over its hardware threads."""

    def __init__(self, proc_root: Path, *, ticks_per_second: int | None = None) -> None:
        self._stat = proc_root / "stat"
        self._tick_ns = 1_000_000_000 // (ticks_per_second or os.sysconf("SC_CLK_TCK"))
        self._busy_ns = 0

    @property
    def tick_ns(self) -> int:
        """The kernel's accounting quantum: readings move in steps of it, one per thread."""
        return self._tick_ns

    def busy_ns(self) -> int:
        """Busy time since boot; never smaller than an earlier answer.

        Raises:
            CounterLost: ``/proc/stat`` can't be read or isn't one.
        """
        try:
            fields = _first_bytes(self._stat).split(maxsplit=_BUSY_FIELDS[-1] + 1)
            ticks = sum(int(fields[index]) for index in _BUSY_FIELDS)
        except (OSError, ValueError, IndexError) as wrong:
            raise CounterLost(f"{self._stat}: {wrong}") from wrong
        # Taking a CPU offline makes some kernels' sums step back.
        self._busy_ns = max(self._busy_ns, ticks * self._tick_ns)
        return self._busy_ns


def _first_bytes(path: Path) -> bytes:
    """The file's first line and perhaps more. Read ten times a second, it is worth going below buffered files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _FIRST_LINE_BYTES)
    finally:
        os.close(descriptor)
