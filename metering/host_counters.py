"""All counters of a host in their groups, with the CPU times and floors that their division needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from metering.attribution import Interval, ReplicaLoad, Shares, split_device, split_host
from metering.calibration import Calibration
from metering.counter_group import ClosedInterval, CounterGroup
from metering.counters.detect import Sensors
from metering.cpu_shares import CpuUse
from metering.errors import CounterLost

# Settlements closer together than this share one reading of the counters.
_SHORTEST_INTERVAL_NS = 1_000_000


class HostProcesses(Protocol):
    """CPU time of the host by replica. What a dead replica used is kept until it is removed."""

    def add(self, replica: str, pid: int) -> None:
        """Count this process tree to a replica; raises `metering.errors.ProcessGone`."""

    def remove(self, replica: str) -> None:
        """Forget the replica, if it is known."""

    def dead(self) -> frozenset[str]:
        """Replicas whose process was gone at the last `since_last`."""

    def started_ticks(self, pid: int) -> int | None:
        """When the process started, or ``None`` when it is gone."""

    def since_last(self) -> CpuUse:
        """CPU time since the last call; raises `metering.errors.CounterLost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInterval:
    """A group's closed interval; its ``lost`` covers the CPU times that the division of a host interval needs."""

    group: CounterGroup
    closed: ClosedInterval
    lost: str | None


class HostCounters:
    """Owns each counter of the host once, and closes their intervals."""

    def __init__(
        self,
        sensors: Sensors,
        processes: HostProcesses,
        *,
        calibration: Calibration,
        interval_ns: int,
        now_ns: int,
    ) -> None:
        """Take every counter's first reading."""
        self.host = CounterGroup(sensors.host, power_window_ns=interval_ns, now_ns=now_ns)
        self.devices = {
            counter.facts.device_id: CounterGroup((counter,), power_window_ns=interval_ns, now_ns=now_ns)
            for counter in sensors.devices
        }
        self._processes = processes
        self._floor_milliwatts = calibration.floor_milliwatts
        self._interval_ns = interval_ns
        self._cpu_use = CpuUse(replicas_ns={}, overhead_ns=0, foreign_ns=0)

    @property
    def groups(self) -> tuple[CounterGroup, ...]:
        """The host's counters, and each GPU."""
        return (self.host, *self.devices.values())

    @property
    def closed_until_ns(self) -> int:
        """No open interval begins before this."""
        return min(group.begin_ns for group in self.groups)

    def close_due(self, now_ns: int) -> list[GroupInterval]:
        """Close the intervals whose time has come; a tick that is a tenth early needn't wait for the next."""
        due = [
            group
            for group in self.groups
            if now_ns - group.begin_ns >= max(self._interval_ns, group.period_ns) * 9 // 10
        ]
        return self._close(due, now_ns)

    def close_at_will(self, now_ns: int) -> list[GroupInterval]:
        """Close what may be closed now, unless that was done a moment ago."""
        open_long_enough = [
            group for group in self.groups if group.closes_at_will and now_ns - group.begin_ns >= _SHORTEST_INTERVAL_NS
        ]
        return self._close(open_long_enough, now_ns)

    def divide(
        self, group: CounterGroup, begin_ns: int, end_ns: int, energy_microjoules: int, loads: Sequence[ReplicaLoad]
    ) -> Shares:
        """Divide this much of the group's energy; a host's by the CPU times of the interval closed last."""
        interval = Interval(
            begin_ns=begin_ns,
            end_ns=end_ns,
            energy_microjoules=energy_microjoules,
            floor_microjoules=self._floor_microjoules(group, end_ns - begin_ns, energy_microjoules),
        )
        if group is self.host:
            return split_host(interval, self._cpu_use, loads)
        return split_device(interval, loads)

    def _close(self, groups: Sequence[CounterGroup], now_ns: int) -> list[GroupInterval]:
        closed = [(group, group.close(now_ns)) for group in groups]
        cpu_lost = self._sample_cpu() if self.host in groups else None
        return [
            GroupInterval(
                group=group,
                closed=interval,
                lost=interval.lost or (cpu_lost if group is self.host else None),
            )
            for group, interval in closed
        ]

    def _sample_cpu(self) -> str | None:
        """CPU times of the interval that was just closed; the reason when they aren't known."""
        try:
            self._cpu_use = self._processes.since_last()
        except CounterLost as why:
            self._cpu_use = CpuUse(replicas_ns={}, overhead_ns=0, foreign_ns=0)
            return str(why) if self.host.facts else None
        return None

    def _floor_microjoules(self, group: CounterGroup, elapsed_ns: int, energy_microjoules: int) -> int | None:
        known = self._floor_milliwatts
        if any(facts.device_id not in known for facts in group.facts):
            return None
        milliwatts = sum(known[facts.device_id] for facts in group.facts)
        return min(energy_microjoules, milliwatts * elapsed_ns // 1_000_000)
