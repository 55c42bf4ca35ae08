"""Who used the host's CPUs in an interval: each replica, the mesh's own processes, and everybody else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metering.host_cpu import HostCpu
from metering.process_tree import ProcessTrees

# Not a possible replica name, so that no replica can be booked as the mesh.
_MESH = "\0mesh"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuUse:
    """CPU time of one interval. ``foreign_ns`` belongs to processes that are not the mesh's."""

    replicas_ns: Mapping[str, int]
    overhead_ns: int
    foreign_ns: int


class CpuShares:
    """Divides the machine's busy time between process trees, interval by interval.

    Trees are read to the nanosecond, the machine in ticks of 10 ms per thread. Over a short interval the
    remainder can come out negative; it is carried into the next, so that foreign time is right in the long
    run instead of collecting every positive rounding error. The carry is bounded to one tick per thread.
    """

    def __init__(self, trees: ProcessTrees, host_cpu: HostCpu, *, threads: int, mesh_pids: Sequence[int] = ()) -> None:
        self._trees = trees
        self._host_cpu = host_cpu
        self._longest_debt_ns = threads * host_cpu.tick_ns
        for pid in mesh_pids:
            trees.add(_MESH, pid)
        self._trees_ns = trees.sample()
        self._busy_ns = host_cpu.busy_ns()
        self._debt_ns = 0

    def add(self, replica: str, pid: int) -> None:
        """Count this process and its descendants to a replica from now on.

        Raises:
            ProcessGone: there is no such process.
        """
        self._trees.add(replica, pid)

    def remove(self, replica: str) -> None:
        """Forget a replica; what it used since the last interval becomes foreign, so close one first."""
        self._trees.remove(replica)
        self._trees_ns.pop(replica, None)

    def dead(self) -> frozenset[str]:
        """Replicas whose process was gone when CPU time was last read."""
        return self._trees.dead() - {_MESH}

    def started_ticks(self, pid: int) -> int | None:
        """When the process started, in ticks since boot; ``None`` when it is gone."""
        return self._trees.started_ticks(pid)

    def pids(self, replica: str) -> frozenset[int]:
        """The processes of the replica's tree, as far as they have been found."""
        return self._trees.pids(replica)

    def since_last(self) -> CpuUse:
        """CPU time since the last call.

        Raises:
            CounterLost: the machine's busy time can't be read.
        """
        busy_ns = self._host_cpu.busy_ns()
        trees_ns = self._trees.sample()
        used = {tree: total - self._trees_ns.get(tree, 0) for tree, total in trees_ns.items()}
        foreign_ns = busy_ns - self._busy_ns - sum(used.values()) - self._debt_ns
        self._debt_ns = min(max(0, -foreign_ns), self._longest_debt_ns)
        self._busy_ns, self._trees_ns = busy_ns, trees_ns
        overhead_ns = used.pop(_MESH, 0)
        return CpuUse(replicas_ns=used, overhead_ns=overhead_ns, foreign_ns=max(0, foreign_ns))
