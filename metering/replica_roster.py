"""The replicas of a host: those that run, and those that are gone while an interval that they ran in is open."""

from collections import Counter
from collections.abc import Collection, Sequence

from metering.calibration import Calibration
from metering.counter_group import CounterGroup
from metering.counters.detect import Sensors
from metering.errors import ProcessGone, UnknownReplica
from metering.host_counters import GroupInterval, HostCounters, HostProcesses
from metering.host_silicon import host_unavailable
from metering.journal import RegisteredReplica
from metering.metered_replica import MeteredReplica, ReplicaRegistration


class ReplicaRoster:
    """Who is metered, by name, and on which counters each one's work shows."""

    def __init__(
        self, sensors: Sensors, processes: HostProcesses, counters: HostCounters, calibration: Calibration, node: str
    ) -> None:
        self._sensors = sensors
        self._processes = processes
        self._counters = counters
        self._calibration = calibration
        self._node = node
        self._departed: list[MeteredReplica] = []
        self.live: dict[str, MeteredReplica] = {}

    @property
    def models(self) -> frozenset[str]:
        """The models that are served."""
        return frozenset(replica.registration.model for replica in self.live.values())

    @property
    def dead(self) -> Collection[str]:
        """Those whose process is gone, as far as has been seen."""
        return self._processes.dead().intersection(self.live)

    def get(self, name: str) -> MeteredReplica:
        """The replica of this name.

        Raises:
            UnknownReplica: nobody registered it.
        """
        if name not in self.live:
            raise UnknownReplica(f"no replica {name!r} is registered on {self._node}")
        return self.live[name]

    def entry(self, registration: ReplicaRegistration) -> RegisteredReplica:
        """What names this replica's process for good.

        Raises:
            ProcessGone: it doesn't exist.
        """
        started_ticks = self._processes.started_ticks(registration.pid)
        if started_ticks is None:
            raise ProcessGone(f"replica {registration.replica}: no process {registration.pid}")
        return RegisteredReplica(
            replica=registration.replica,
            pid=registration.pid,
            started_ticks=started_ticks,
            model=registration.model,
            device_ids=registration.device_ids,
        )

    def add(self, registration: ReplicaRegistration) -> None:
        """Meter it from now on; `regroup` gives it its counters."""
        self._processes.add(registration.replica, registration.pid)
        self.live[registration.replica] = self._metered(registration)

    def resume(self, entry: RegisteredReplica) -> bool:
        """Take over a replica of an earlier meter; whether its process still runs."""
        self.live[entry.replica] = self._metered(
            ReplicaRegistration(replica=entry.replica, pid=entry.pid, model=entry.model, device_ids=entry.device_ids)
        )
        if self._processes.started_ticks(entry.pid) != entry.started_ticks:
            return False
        try:
            self._processes.add(entry.replica, entry.pid)
        except ProcessGone:
            return False
        return True

    def remove(self, name: str) -> None:
        """Its process is gone; what it did is kept as long as an interval can ask for it."""
        self._departed.append(self.live.pop(name))
        self._processes.remove(name)

    def regroup(self) -> list[GroupInterval]:
        """Read each replica's GPUs as one pool from now on: after replicas came or went. What that closes."""
        return self._counters.pool(replica.registration.device_ids for replica in self.live.values())

    def take_groups(self) -> None:
        """Give each replica the groups that its devices are in now; after what `regroup` closed is booked."""
        owners = Counter(device_id for each in self.live.values() for device_id in set(each.registration.device_ids))
        for replica in self.live.values():
            device_ids = replica.registration.device_ids
            replica.groups = (*self._counters.devices_of(device_ids), self._counters.host)
            replica.has_neighbours = any(owners[device_id] > 1 for device_id in device_ids)

    def calibrate(self, calibration: Calibration) -> None:
        """Divide by these weights from now on."""
        self._calibration = calibration
        for replica in self.live.values():
            replica.weights = calibration.weights_of(replica.registration.model)

    def on(self, group: CounterGroup) -> Sequence[MeteredReplica]:
        """Whose work shows on this group, or did."""
        return [replica for replica in (*self.live.values(), *self._departed) if group in replica.groups]

    def forget_before(self, monotonic_ns: int) -> None:
        """Drop what no open interval can ask for."""
        for replica in (*self.live.values(), *self._departed):
            replica.forget_before(monotonic_ns)
        self._departed = [replica for replica in self._departed if replica.ran_after(monotonic_ns)]

    def _metered(self, registration: ReplicaRegistration) -> MeteredReplica:
        missing = self._counters.uncounted(registration.device_ids)
        unavailable = f"no energy counter for {', '.join(missing)}" if missing else None
        if not registration.device_ids and not self._sensors.host:
            unavailable = host_unavailable(self._sensors)
        return MeteredReplica(
            registration, weights=self._calibration.weights_of(registration.model), unavailable=unavailable
        )
