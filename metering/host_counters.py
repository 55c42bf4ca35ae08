"""All counters of a host in their groups, with the CPU times and floors that their division needs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from metering.attribution import Interval, ReplicaLoad, Shares, split_device, split_host, split_open
from metering.calibration import Calibration
from metering.checkpoint import Checkpoint, CounterMark
from metering.clock import Clock, SuspendWatch
from metering.counter_group import ClosedInterval, CounterGroup
from metering.counters.detect import Sensors
from metering.cpu_shares import CpuUse
from metering.errors import CounterLost
from metering.meter_report import DeviceReport
from metering.watched_counter import Movement, WatchedCounter

# Settlements closer together than this share one reading of the counters.
_SHORTEST_INTERVAL_NS = 1_000_000
# The part of a step's time that a replica must spend on the CPU before a host counter is expected to move.
_TELLING_CPU_SHARE = 10


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

    def pids(self, replica: str) -> frozenset[int]:
        """The processes of the replica's tree, as far as they have been found."""

    def since_last(self) -> CpuUse:
        """CPU time since the last call; raises `metering.errors.CounterLost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInterval:
    """A group's closed interval; its ``lost`` covers the CPU times that the division of a host interval needs."""

    group: CounterGroup
    closed: ClosedInterval
    lost: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Away:
    """What the counters counted while there was no meter, and lines for the operator."""

    stray_microjoules: int
    quarantine_microjoules: int
    news: tuple[str, ...]


class HostCounters:
    """Owns each counter of the host once, and closes their intervals."""

    def __init__(
        self,
        sensors: Sensors,
        processes: HostProcesses,
        *,
        calibration: Calibration,
        interval_ns: int,
        clock: Clock,
        checkpoint: Checkpoint,
    ) -> None:
        """Take every counter's first reading, going on from an earlier meter's where that means anything.

        Every GPU is a group of its own until `pool` says otherwise. ``cpu_trouble`` is why CPU times, which the
        division of the host's energy needs, can't be read now.
        """
        self._host = tuple(WatchedCounter(counter, power_window_ns=interval_ns) for counter in sensors.host)
        self._devices = {
            counter.facts.device_id: WatchedCounter(counter, power_window_ns=interval_ns) for counter in sensors.devices
        }
        self._processes = processes
        self._floor_milliwatts = calibration.floor_milliwatts
        self._interval_ns = interval_ns
        self._clock = clock
        self._suspends = SuspendWatch(clock)
        self._suspended_ns = self._suspends.suspended_ns()
        self._cpu_use = CpuUse(replicas_ns={}, overhead_ns=0, foreign_ns=0)
        self.cpu_trouble: str | None = None
        own = {counter.facts.device_id for counter in self._counters()}
        self._missing = {device_id: mark for device_id, mark in checkpoint.counters.items() if device_id not in own}
        self.opening_microjoules = checkpoint.opening_microjoules
        self.away = self._resume(checkpoint)
        self.host = CounterGroup(self._host, begin_ns=clock.monotonic_ns())
        self._pools = self._grouped(())

    @property
    def groups(self) -> tuple[CounterGroup, ...]:
        """The host's counters, and each pool of GPUs."""
        return (self.host, *self._pools)

    @property
    def closed_until_ns(self) -> int:
        """No open interval begins before this."""
        return min(group.begin_ns for group in self.groups)

    @property
    def marks(self) -> Mapping[str, CounterMark]:
        """Where each counter stands; those that this machine once had keep their place."""
        return {**self._missing, **{counter.facts.device_id: counter.mark for counter in self._counters()}}

    @property
    def counted_microjoules(self) -> int:
        """What all counters say they have counted since the book began, its opening balance included."""
        return self.opening_microjoules + sum(mark.counted_microjoules for mark in self.marks.values())

    def devices_of(self, device_ids: Iterable[str]) -> tuple[CounterGroup, ...]:
        """The groups that these GPUs are in, as far as they have a counter."""
        wanted = set(device_ids)
        return tuple(group for group in self._pools if wanted.intersection(group.device_ids))

    def uncounted(self, device_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of the GPUs that have no counter."""
        return tuple(device_id for device_id in device_ids if device_id not in self._devices)

    def pool(self, owned: Iterable[tuple[str, ...]]) -> list[GroupInterval]:
        """Group the GPUs by the sets that replicas own; what this ends is closed.

        A set is one pool, unless another replica owns some of it but not all: then each GPU stays alone.
        """
        pools = _pools(owned)
        if {group.device_ids for group in self._grouped(pools)} == {group.device_ids for group in self._pools}:
            return []
        closed = self._close(self._pools, self._clock.monotonic_ns())
        self._pools = self._grouped(pools)
        return closed

    def close_due(self) -> list[GroupInterval]:
        """Close the intervals whose time has come; a tick that is a tenth early needn't wait for the next."""
        now_ns = self._clock.monotonic_ns()
        due = [
            group
            for group in self.groups
            if now_ns - group.begin_ns >= max(self._interval_ns, group.period_ns) * 9 // 10
        ]
        return self._close(due, now_ns)

    def close_at_will(self) -> list[GroupInterval]:
        """Close what may be closed now, unless that was done a moment ago."""
        now_ns = self._clock.monotonic_ns()
        open_long_enough = [
            group for group in self.groups if group.closes_at_will and now_ns - group.begin_ns >= _SHORTEST_INTERVAL_NS
        ]
        return self._close(open_long_enough, now_ns)

    def close_all(self) -> list[GroupInterval]:
        """Close every interval, also of a counter that has only just moved."""
        return self._close(self.groups, self._clock.monotonic_ns())

    def calibrate(self, calibration: Calibration) -> None:
        """Divide with these floors from now on."""
        self._floor_milliwatts = calibration.floor_milliwatts

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

    def divide_open(
        self, group: CounterGroup, until_ns: int, step_grains: int, load: ReplicaLoad, loads: Sequence[ReplicaLoad]
    ) -> Shares:
        """Divide what was probably drawn since the group's last reading: its floor, and a load's ``step_grains``."""
        elapsed_ns = until_ns - group.begin_ns
        floor_microjoules = (self._floor_milliwatts_of(group) or 0) * elapsed_ns // 1_000_000
        interval = Interval(
            begin_ns=group.begin_ns,
            end_ns=until_ns,
            energy_microjoules=floor_microjoules,
            floor_microjoules=floor_microjoules,
        )
        return split_open(interval, step_grains, load, loads)

    def stood_still(self, interval: GroupInterval, loads: Sequence[ReplicaLoad]) -> list[Movement]:
        """Which of the interval's counters haven't moved for too long, given what ran in it."""
        worked_ns = sum(load.steps_ns for load in loads)
        if interval.group is self.host:
            # A step on a GPU needs no CPU.
            used_ns = sum(self._cpu_use.replicas_ns.get(load.replica, 0) for load in loads)
            worked_ns = worked_ns if used_ns * _TELLING_CPU_SHARE >= worked_ns else 0
        if worked_ns == 0:
            return []
        elapsed_ns = interval.closed.end_ns - interval.closed.begin_ns
        moved = [counter.worked(min(worked_ns, elapsed_ns)) for counter in interval.group.counters]
        return [movement for movement in moved if movement.lost is not None]

    def woken(self) -> str | None:
        """A line for the operator when the machine was suspended since the last call."""
        before_ns, self._suspended_ns = self._suspended_ns, self._suspends.suspended_ns()
        if before_ns == self._suspended_ns:
            return None
        seconds = (self._suspended_ns - before_ns) / 1e9
        devices = ", ".join(counter.facts.device_id for counter in self._counters()) or "no counters"
        return f"{devices}: the machine was suspended for {seconds:.1f} s; what was counted over it is quarantined"

    def reports(self) -> tuple[DeviceReport, ...]:
        """All counters, GPUs first."""
        counters = (*self._devices.values(), *self._host)
        return tuple(counter.report(self._floor_milliwatts.get(counter.facts.device_id)) for counter in counters)

    def _counters(self) -> tuple[WatchedCounter, ...]:
        return (*self._host, *self._devices.values())

    def _resume(self, checkpoint: Checkpoint) -> Away:
        unusable = _rebooted(checkpoint.boot_id, self._clock.boot_id())
        moved = [
            counter.resume(
                checkpoint.counters.get(counter.facts.device_id), unusable=unusable, suspended_ns=self._suspended_ns
            )
            for counter in self._counters()
        ]
        stray = sum(movement.stray_microjoules for movement in moved)
        news = [movement.news for movement in moved if movement.news is not None]
        news += [f"{device_id}: this machine doesn't show its counter any more" for device_id in self._missing]
        if checkpoint.counters and unusable is None:
            away_s = (self._clock.monotonic_ns() - checkpoint.at_monotonic_ns) / 1e9
            news.insert(0, f"the meter was away for {away_s:.1f} s; {stray / 1e6:.3f} J counted meanwhile are overhead")
        elif checkpoint.totals.counted_microjoules and not checkpoint.counters:
            news.insert(0, "the journal is an earlier version's: what was drawn while the meter was away is unknown")
        return Away(
            stray_microjoules=stray,
            quarantine_microjoules=sum(movement.quarantine_microjoules for movement in moved),
            news=tuple(news),
        )

    def _grouped(self, pools: Iterable[frozenset[str]]) -> tuple[CounterGroup, ...]:
        pool_of = {device_id: pool for pool in pools for device_id in pool}
        together: dict[frozenset[str], list[WatchedCounter]] = {}
        for device_id, counter in self._devices.items():
            together.setdefault(pool_of.get(device_id, frozenset({device_id})), []).append(counter)
        now_ns = self._clock.monotonic_ns()
        return tuple(CounterGroup(counters, begin_ns=now_ns) for counters in together.values())

    def _close(self, groups: Sequence[CounterGroup], now_ns: int) -> list[GroupInterval]:
        suspended_ns = self._suspends.suspended_ns()
        # First: if this fails, no counter has been read, so that no energy is read and not booked.
        if self.host in groups:
            self._sample_cpu()
        closed = [(group, group.close(now_ns, suspended_ns)) for group in groups]
        return [
            GroupInterval(
                group=group,
                closed=interval,
                lost=interval.lost or (self.cpu_trouble if group is self.host else None),
            )
            for group, interval in closed
        ]

    def _sample_cpu(self) -> None:
        """CPU times of the interval that ends now, or why they aren't known."""
        try:
            self._cpu_use = self._processes.since_last()
            self.cpu_trouble = None
        except CounterLost as why:
            self._cpu_use = CpuUse(replicas_ns={}, overhead_ns=0, foreign_ns=0)
            self.cpu_trouble = str(why) if self.host.facts else None

    def _floor_microjoules(self, group: CounterGroup, elapsed_ns: int, energy_microjoules: int) -> int | None:
        milliwatts = self._floor_milliwatts_of(group)
        return None if milliwatts is None else min(energy_microjoules, milliwatts * elapsed_ns // 1_000_000)

    def _floor_milliwatts_of(self, group: CounterGroup) -> int | None:
        each = [self._floor_milliwatts.get(facts.device_id) for facts in group.facts]
        known = [milliwatts for milliwatts in each if milliwatts is not None]
        return sum(known) if len(known) == len(each) else None


def _rebooted(boot_before: str | None, boot_now: str | None) -> str | None:
    """Why readings of an earlier meter mean nothing any more, if that is so."""
    if boot_now is None or boot_before is None:
        return "this system has no name for its boots, so it may have been rebooted"
    return None if boot_now == boot_before else "the machine was rebooted meanwhile"


def _pools(owned: Iterable[tuple[str, ...]]) -> list[frozenset[str]]:
    """The sets that can be one pool each: nobody owns a part of them only."""
    sets = {frozenset(device_ids) for device_ids in owned}
    return [each for each in sets if not any(each != other and each & other for other in sets)]
