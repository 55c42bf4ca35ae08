"""The division of one closed interval's energy among what ran in it. Pure: values in, values out.

Shares are counted in grains, 2^32 to the microjoule. Divisions round down to grains and what is left over
is the mesh's own, so a split always sums to its energy exactly, doesn't depend on any order, and gives equal
work equal grains for as long as it lasts. Rounding every interval to whole microjoules instead would favour the
oldest request each time: equal requests would drift apart by a microjoule an interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from metering.calibration import Weights
from metering.cpu_shares import CpuUse
from metering.replica_steps import StepSpan

GRAINS_PER_MICROJOULE = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Energy of one or more counters between two readings.

    ``floor_microjoules``, at most the energy, would have been drawn with nothing running; ``None`` when unknown.
    """

    begin_ns: int
    end_ns: int
    energy_microjoules: int
    floor_microjoules: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A request that holds memory on its replica: from its first step until it was settled, if it was.

    ``serial`` names this attempt at the request, for its whole life.
    """

    serial: int
    from_ns: int
    until_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """A replica in an interval: its steps, clipped to it, and its residents by request id."""

    replica: str
    weights: Weights
    steps: Sequence[StepSpan]
    residents: Mapping[str, Resident]

    @property
    def steps_ns(self) -> int:
        """Time in steps."""
        return sum(step.end_ns - step.begin_ns for step in self.steps)


@dataclass(slots=True, kw_only=True)
class RequestShare:
    """Grains of one request."""

    active_grains: int = 0
    floor_grains: int = 0

    @property
    def sum_grains(self) -> int:
        """Active and floor."""
        return self.active_grains + self.floor_grains

    def add(self, other: "RequestShare") -> None:
        """Add another share to this one."""
        self.active_grains += other.active_grains
        self.floor_grains += other.floor_grains


@dataclass(slots=True, kw_only=True)
class Shares:
    """Who gets how many grains of an interval; requests by serial. The sum is the interval's energy.

    ``step_grains`` is what each replica's steps were given, requested or not: parts of the others, not of the sum.
    """

    requests: dict[int, RequestShare] = field(default_factory=dict)
    step_grains: dict[str, int] = field(default_factory=dict)
    idle_grains: int = 0
    foreign_grains: int = 0
    overhead_grains: int = 0

    def of(self, serial: int) -> RequestShare:
        """This request's share, nothing at first."""
        share = self.requests.get(serial)
        if share is None:
            share = self.requests[serial] = RequestShare()
        return share

    def sum_grains(self) -> int:
        """All that was given."""
        requests = sum(share.sum_grains for share in self.requests.values())
        return requests + self.idle_grains + self.foreign_grains + self.overhead_grains


def split_host(interval: Interval, cpu: CpuUse, loads: Sequence[ReplicaLoad]) -> Shares:
    """Divide energy of the CPUs that all processes of the host share.

    Above the floor by CPU time: each replica's part goes to its steps, the mesh's own and any part of a replica
    without a step are overhead, the rest is foreign. CPU time of a replica that isn't among ``loads`` is overhead.
    """
    shares = Shares()
    active = _split_floor(interval, loads, shares)
    total_ns = sum(cpu.replicas_ns.values()) + cpu.overhead_ns + cpu.foreign_ns
    if total_ns == 0:
        _nobody_ran(active, loads, shares)
        return shares
    left = active
    shares.foreign_grains += (foreign := active * cpu.foreign_ns // total_ns)
    left -= foreign
    for load in loads:
        part = active * cpu.replicas_ns.get(load.replica, 0) // total_ns
        left -= _split_steps(part, (load,), shares)
    shares.overhead_grains += left
    return shares


def split_device(interval: Interval, loads: Sequence[ReplicaLoad]) -> Shares:
    """Divide energy of a device that only ``loads`` run on.

    Above the floor by steps; without a step it is idle when nothing is resident and the floor isn't known,
    overhead (loading, warm-up) when a replica owns the device, and else foreign.
    """
    shares = Shares()
    active = _split_floor(interval, loads, shares)
    left = active - _split_steps(active, loads, shares)
    if any(load.steps for load in loads):
        shares.overhead_grains += left
    elif interval.floor_microjoules is None:
        _nobody_ran(left, loads, shares)
    elif loads:
        shares.overhead_grains += left
    else:
        shares.foreign_grains += left
    return shares


def split_open(interval: Interval, step_grains: int, load: ReplicaLoad, loads: Sequence[ReplicaLoad]) -> Shares:
    """What will probably be given of an interval that no counter has closed yet, as far as it is this load's.

    The floor, which is the interval's energy, by residency, and ``step_grains`` by the load's steps.
    """
    shares = Shares()
    _split_floor(interval, loads, shares)
    _split_steps(step_grains, (load,), shares)
    return shares


def _nobody_ran(grains: int, loads: Sequence[ReplicaLoad], shares: Shares) -> None:
    if any(load.residents for load in loads):
        shares.overhead_grains += grains
    else:
        shares.idle_grains += grains


def _split_floor(interval: Interval, loads: Sequence[ReplicaLoad], shares: Shares) -> int:
    """Give the floor to residents by the time that they were there, and to idle for the rest; what is above it.

    The floor of the time in which anybody was resident is the residents'.
    """
    energy = interval.energy_microjoules * GRAINS_PER_MICROJOULE
    floor = (interval.floor_microjoules or 0) * GRAINS_PER_MICROJOULE
    if floor == 0:
        return energy
    stays = [(resident.serial, *_overlap(resident, interval)) for load in loads for resident in load.residents.values()]
    elapsed_ns = interval.end_ns - interval.begin_ns
    occupied_ns = _covered_ns((begin, end) for _, begin, end in stays)
    given = 0
    if occupied_ns:
        occupied = floor * occupied_ns // elapsed_ns
        total_ns = sum(end - begin for _, begin, end in stays)
        for serial, begin, end in stays:
            grains = occupied * (end - begin) // total_ns
            shares.of(serial).floor_grains += grains
            given += grains
    shares.idle_grains += floor - given
    return energy - floor


def _overlap(resident: Resident, interval: Interval) -> tuple[int, int]:
    begin = max(resident.from_ns, interval.begin_ns)
    end = interval.end_ns if resident.until_ns is None else min(resident.until_ns, interval.end_ns)
    return begin, max(begin, end)


def _covered_ns(stretches: Iterable[tuple[int, int]]) -> int:
    """Length of the union."""
    covered_ns = 0
    reached_ns = 0
    for begin, end in sorted(stretches):
        covered_ns += max(0, end - max(begin, reached_ns))
        reached_ns = max(reached_ns, end)
    return covered_ns


def _split_steps(grains: int, loads: Sequence[ReplicaLoad], shares: Shares) -> int:
    """Give energy to the requests of the steps by time and, inside a step, by weight; how much was given."""
    total_ns = sum(load.steps_ns for load in loads)
    if total_ns == 0 or grains == 0:
        return 0
    given = 0
    for load in loads:
        drawn = 0
        for step in load.steps:
            step_grains = grains * (step.end_ns - step.begin_ns) // total_ns
            drawn += step_grains
            given += _split_step(step_grains, step, load, shares)
        shares.step_grains[load.replica] = shares.step_grains.get(load.replica, 0) + drawn
    return given


def _split_step(grains: int, step: StepSpan, load: ReplicaLoad, shares: Shares) -> int:
    """Give one step's energy to those of its requests that are resident; the others' part is not given."""
    weighed, total = step.work.weighed(load.weights)
    if total == 0:
        return 0
    given = 0
    residents, requests = load.residents, shares.requests
    for request_id, weight in weighed.items():
        resident = residents.get(request_id)
        # A step that begins after the request was settled computes what nobody asked for any more.
        if resident is None or (resident.until_ns is not None and step.begin_ns >= resident.until_ns):
            continue
        share = requests.get(resident.serial) or shares.of(resident.serial)
        part = grains * weight // total
        share.active_grains += part
        given += part
    return given
