"""A registered replica: its steps, its residents, and the counters that its work shows on."""

from collections import deque
from dataclasses import dataclass, replace

from metering.attribution import GRAINS_PER_MICROJOULE, ReplicaLoad, Resident
from metering.calibration import ReplicaWork, Weights
from metering.counter_group import CounterGroup
from metering.counters.counter import CounterFacts
from metering.engine_steps import RequestWork, StepBegan, StepEnded
from metering.figures import Stay
from metering.meter_report import ReplicaReport
from metering.replica_steps import ReplicaSteps
from metering.request_account import Crowd, RequestAccount
from metering.step_power import StepPower


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRegistration:
    """A replica to meter: the root of its process tree, and the GPUs it owns by UUID (none: CPU only)."""

    replica: str
    pid: int
    model: str
    device_ids: tuple[str, ...]


class MeteredReplica:
    """What the meter keeps of one replica while it, or an interval that it ran in, is open."""

    def __init__(
        self,
        registration: ReplicaRegistration,
        *,
        weights: Weights,
        unavailable: str | None,
    ) -> None:
        """``unavailable`` is the reason when a counter that its energy needs doesn't exist.

        ``groups`` are the counters that its work shows on, devices first, and ``has_neighbours`` says whether another
        replica runs on one of its devices; whoever groups them sets both. ``shared`` is why its devices aren't the
        mesh's alone right now.
        """
        self.registration = registration
        self.weights = weights
        self.unavailable = unavailable
        self.groups: tuple[CounterGroup, ...] = ()
        self.has_neighbours = False
        self.shared: str | None = None
        self.step_power = StepPower()
        self._drawn_grains = 0
        self._gone_ns: int | None = None
        self._steps = ReplicaSteps()
        self._crowd = Crowd()
        self._residents: dict[str, Resident] = {}
        self._leaving: deque[str] = deque()

    @property
    def facts(self) -> tuple[CounterFacts, ...]:
        """The counters that a request's energy is the sum of, devices first."""
        return tuple(facts for group in self.groups for facts in group.facts)

    @property
    def power_milliwatts(self) -> int | None:
        """Power of all its devices and the host together; ``None`` while one's isn't known."""
        each = [group.power_milliwatts for group in self.groups if group.facts]
        known = [milliwatts for milliwatts in each if milliwatts is not None]
        return sum(known) if known and len(known) == len(each) else None

    @property
    def trouble(self) -> str | None:
        """Why one of its counters can't be read or trusted now."""
        return next((group.trouble for group in self.groups if group.trouble is not None), None)

    @property
    def work(self) -> ReplicaWork:
        """What it has computed and drawn since it was registered with this meter."""
        return replace(self._steps.computed, active_microjoules=self._drawn_grains // GRAINS_PER_MICROJOULE)

    def drew(self, grains: int) -> None:
        """Its steps were given this much of a closed interval."""
        self._drawn_grains += grains

    def report(self) -> ReplicaReport:
        """What is shown of it."""
        return ReplicaReport(
            replica=self.registration.replica,
            model=self.registration.model,
            device_ids=self.registration.device_ids,
            is_calibrated=self.weights.allocation_percent is not None,
            unavailable=self.unavailable,
            shared=self.shared,
            resident_requests=sum(resident.until_ns is None for resident in self._residents.values()),
            work=self.work,
        )

    def began(self, event: StepBegan) -> tuple[RequestWork, ...]:
        """Take in a step; its work of requests that weren't resident yet, and of prompts."""
        self._steps.began(event)
        return tuple(
            work
            for work in event.work
            if work.prefill_tokens
            or (resident := self._residents.get(work.request_id)) is None
            or resident.until_ns is not None
        )

    def ended(self, event: StepEnded) -> None:
        """Take in a step's end."""
        self._steps.ended(event)

    def died(self, now_ns: int) -> None:
        """Its process is gone: nothing runs on it from now on."""
        self._steps.cut(now_ns)
        self._gone_ns = now_ns

    def ran_after(self, monotonic_ns: int) -> bool:
        """Whether an interval that begins then can still ask for its steps."""
        return self._gone_ns is None or self._gone_ns > monotonic_ns

    def enter(self, account: RequestAccount, from_ns: int) -> None:
        """The request holds memory from now on."""
        account.came = self._crowd.enter(from_ns)
        self._residents[account.request_id] = Resident(serial=account.serial, from_ns=from_ns, until_ns=None)

    def leave(self, account: RequestAccount, now_ns: int) -> int | None:
        """The request is settled; its mean batch times 1000, if it ever was resident."""
        if account.came is None or account.resident_from_ns is None:
            return None
        until_ns = max(now_ns, account.resident_from_ns)
        self._residents[account.request_id] = Resident(
            serial=account.serial, from_ns=account.resident_from_ns, until_ns=until_ns
        )
        self._leaving.append(account.request_id)
        return self._crowd.leave(account.came, now_ns)

    def end_stay(self, account: RequestAccount, now_ns: int) -> Stay:
        """The request is settled: how its time here was."""
        mean_batch = self.leave(account, now_ns)
        if account.resident_from_ns is None:
            return Stay.never(steps_lost=account.steps_lost)
        if account.peak_milliwatts is None:
            account.saw_power(self.power_milliwatts)
        return Stay(
            resident_ns=now_ns - account.resident_from_ns,
            mean_batch_thousandths=mean_batch,
            peak_milliwatts=account.peak_milliwatts,
            steps_lost=account.steps_lost,
            shared=account.shared or self.shared is not None,
            has_neighbours=account.has_neighbours or self.has_neighbours,
        )

    def load(self, begin_ns: int, end_ns: int) -> ReplicaLoad:
        """What ran and who was resident in a window."""
        residents = {
            request_id: resident
            for request_id, resident in self._residents.items()
            if resident.until_ns is None or resident.until_ns > begin_ns
        }
        steps = self._steps.spans(begin_ns, end_ns)
        return ReplicaLoad(replica=self.registration.replica, weights=self.weights, steps=steps, residents=residents)

    def forget_before(self, monotonic_ns: int) -> None:
        """Drop what no open interval can ask for."""
        self._steps.forget_before(monotonic_ns)
        while self._leaving:
            resident = self._residents.get(self._leaving[0])
            if resident is not None and resident.until_ns is not None:
                if resident.until_ns > monotonic_ns:
                    return
                del self._residents[self._leaving[0]]
            self._leaving.popleft()
