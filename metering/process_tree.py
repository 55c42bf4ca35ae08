"""CPU time of process trees: who, of all that runs on this host, is a replica, who the mesh itself.

A process belongs to the tree of its nearest registered ancestor, itself included, so a replica inside the
cluster's own tree is the replica's. CPU time is read from the CPU clock of the other process: nanoseconds and
one system call, where ``/proc/PID/stat`` would give 10 ms ticks and a parse (clock_getres(2); the encoding of
the clock id is the kernel's, linux/posix-timers.h).
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from metering.errors import CounterLost, ProcessGone

_REFRESH_NS = 2_000_000_000
# A scan of a host with thousands of processes takes tens of milliseconds: keep it to half a percent of a core.
_SCAN_SHARE = 200
_CPUCLOCK_SCHED = 2
_STAT_BYTES = 1024


def process_cpu_ns(pid: int) -> int | None:
    """CPU time of all threads of a process in nanoseconds, or ``None`` when it is gone. Linux only."""
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return None


@dataclass(slots=True, kw_only=True)
class _Process:
    parent: int
    started_ticks: int
    tree: str | None = None
    cpu_ns: int = 0


class ProcessTrees:
    """Cumulative CPU time by tree. Sums never fall: what a process used stays when it ends.

    Membership is looked up at most every 2 s. A process found late counts from then on, and one that is gone
    between two looks keeps what was last read: time is missed, never invented. A process whose parent died
    stays in the tree it was in. Where ``/proc`` can't be read (no file descriptors left), membership stays as it was.
    """

    def __init__(
        self,
        proc_root: Path,
        *,
        monotonic_ns: Callable[[], int],
        cpu_ns: Callable[[int], int | None] = process_cpu_ns,
    ) -> None:
        self._proc_root = str(proc_root)
        self._monotonic_ns = monotonic_ns
        self._cpu_ns = cpu_ns
        self._roots: dict[int, str] = {}
        self._processes: dict[int, _Process] = {}
        self._members: dict[int, _Process] = {}
        self._totals: dict[str, int] = {}
        self._dead: set[str] = set()
        self._next_scan_ns = 0

    def add(self, tree: str, pid: int) -> None:
        """Count the process and its descendants to ``tree`` from now on; a tree may have several roots.

        Raises:
            ProcessGone: there is no such process.
            CounterLost: it can't be told.
        """
        if self._cpu_ns(pid) is None or _read_process(self._proc_root, pid) is None:
            raise ProcessGone(f"no process {pid}")
        self._count()
        self._roots[pid] = tree
        self._totals.setdefault(tree, 0)
        self._dead.discard(tree)
        self._scan()

    def remove(self, tree: str) -> None:
        """Forget the tree; its processes fall to the tree that is next above them, if there is one."""
        self._count()
        self._roots = {pid: name for pid, name in self._roots.items() if name != tree}
        self._totals.pop(tree, None)
        self._dead.discard(tree)
        for process in self._processes.values():
            if process.tree == tree:
                process.tree = None
        self._scan()

    def sample(self) -> dict[str, int]:
        """CPU nanoseconds by tree since each was added."""
        if self._monotonic_ns() >= self._next_scan_ns:
            self._scan()
        self._count()
        return dict(self._totals)

    def dead(self) -> frozenset[str]:
        """Trees that lost a root process, as far as `sample` has seen."""
        return frozenset(self._dead)

    def pids(self, tree: str) -> frozenset[int]:
        """The tree's processes, as of the last look at them."""
        return frozenset(pid for pid, process in self._members.items() if process.tree == tree)

    def started_ticks(self, pid: int) -> int | None:
        """When the process started, in ticks since boot: with the pid, this names a process for good.

        Raises:
            CounterLost: it can't be told.
        """
        process = _read_process(self._proc_root, pid)
        return None if process is None else process.started_ticks

    def _count(self) -> None:
        gone = []
        for pid, process in self._members.items():
            now_ns = self._cpu_ns(pid)
            if now_ns is None:
                gone.append(pid)
                continue
            if process.tree is not None and now_ns > process.cpu_ns:
                self._totals[process.tree] += now_ns - process.cpu_ns
            process.cpu_ns = now_ns
        for pid in gone:
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        self._members.pop(pid, None)
        self._processes.pop(pid, None)
        tree = self._roots.pop(pid, None)
        if tree is not None:
            self._dead.add(tree)

    def _scan(self) -> None:
        began_ns = self._monotonic_ns()
        try:
            seen = dict(self._read_all())
        except (OSError, CounterLost):
            # Not a reason to take anybody for dead; the next sample looks again.
            return
        for pid in [pid for pid, known in self._processes.items() if _replaced(known, seen.get(pid))]:
            self._drop(pid)
        for pid, process in seen.items():
            known = self._processes.setdefault(pid, process)
            known.parent = process.parent
        for pid, process in self._processes.items():
            process.tree = self._nearest_tree(pid) or process.tree
            if process.tree is not None and pid not in self._members:
                process.cpu_ns = self._cpu_ns(pid) or 0
                self._members[pid] = process
        for pid in [pid for pid, process in self._members.items() if process.tree is None]:
            del self._members[pid]
        ended_ns = self._monotonic_ns()
        self._next_scan_ns = ended_ns + max(_REFRESH_NS, _SCAN_SHARE * (ended_ns - began_ns))

    def _read_all(self) -> Iterator[tuple[int, _Process]]:
        with os.scandir(self._proc_root) as entries:
            pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
        for pid in pids:
            process = _read_process(self._proc_root, pid)
            if process is not None:
                yield pid, process

    def _nearest_tree(self, pid: int) -> str | None:
        passed: set[int] = set()
        while pid in self._processes and pid not in passed:
            if pid in self._roots:
                return self._roots[pid]
            passed.add(pid)
            pid = self._processes[pid].parent
        return None


def _replaced(known: _Process, seen: _Process | None) -> bool:
    """Gone, or the pid now belongs to another process."""
    return seen is None or seen.started_ticks != known.started_ticks


def _read_process(proc_root: str, pid: int) -> _Process | None:
    """Parent and start of a live process; ``None`` when it is gone or a zombie (proc_pid_stat(5)).

    Raises:
        CounterLost: there is no telling.
    """
    try:
        descriptor = os.open(f"{proc_root}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _STAT_BYTES)
        finally:
            os.close(descriptor)
        # The command may hold spaces and parentheses; the fields start after the last one.
        fields = text.rpartition(b")")[2].split(maxsplit=20)
        if fields[0] in (b"Z", b"X"):
            return None
        return _Process(parent=int(fields[1]), started_ticks=int(fields[19]))
    except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError, ValueError):
        return None
    except OSError as wrong:
        raise CounterLost(f"{proc_root}/{pid}/stat: {wrong}") from wrong
