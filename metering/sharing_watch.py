"""Whether a replica's GPUs are its alone: asked about once a second, since asking a driver takes its time."""

from collections.abc import Collection, Mapping

from metering.counters.counter import Sharing
from metering.host_counters import HostProcesses
from metering.metered_replica import MeteredReplica

_ASK_EVERY_NS = 1_000_000_000


class SharingWatch:
    """Asks each replica's devices who else is on them."""

    def __init__(self, sharing: Mapping[str, Sharing], processes: HostProcesses) -> None:
        self._sharing = sharing
        self._processes = processes
        self._next_ns = 0

    def ask(self, replicas: Collection[MeteredReplica], now_ns: int) -> None:
        """Set what is found on each replica, if it is time; replicas that share a GPU count the others as theirs."""
        if now_ns < self._next_ns or not self._sharing:
            return
        self._next_ns = now_ns + _ASK_EVERY_NS
        pids = {each.registration.replica: self._processes.pids(each.registration.replica) for each in replicas}
        for replica in replicas:
            replica.shared = self._reason(replica, replicas, pids)

    def _reason(
        self, replica: MeteredReplica, replicas: Collection[MeteredReplica], pids: Mapping[str, frozenset[int]]
    ) -> str | None:
        for device_id in replica.registration.device_ids:
            device = self._sharing.get(device_id)
            if device is None:
                continue
            owners = [pids[each.registration.replica] for each in replicas if device_id in each.registration.device_ids]
            reason = device.others(frozenset().union(*owners))
            if reason is not None:
                return reason
        return None
