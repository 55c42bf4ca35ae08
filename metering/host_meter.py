"""The host meter: one for each physical machine, owner of its counters and of its book.

Nothing here waits, starts a thread or knows Ray: the caller ticks it and asks it to settle. One tick reads the
counters that are due, takes in what the engines reported, divides each closed interval and books it.
"""

from collections.abc import Sequence
from typing import Protocol

from metering.attribution import RequestShare
from metering.book import Book, BookTotals, Charge
from metering.calibration import Calibration
from metering.clock import Clock
from metering.counters.detect import Sensors
from metering.engine_steps import StepBegan, StepEnded, StepEvent, StepsLost
from metering.errors import (
    ProcessGone,
    RequestAlreadySettled,
    SettlementBacklogFull,
    UnknownReplica,
    UnknownRequest,
)
from metering.figures import Stay, figures, unknown_figures
from metering.host_counters import GroupInterval, HostCounters, HostProcesses
from metering.journal import BegunRequest, Journal, RegisteredReplica
from metering.metered_replica import MeteredReplica, ReplicaRegistration
from metering.request_account import RequestAccount
from metering.settlement import (
    EnergyFigures,
    MeteredSilicon,
    Outcome,
    Settlement,
    checked_outcome,
)
from metering.settlement_shelf import SettlementShelf

_INTERVAL_NS = 100_000_000
_MOST_UNACKNOWLEDGED = 100_000


class StepSource(Protocol):
    """Where engine steps come from. `drain` never blocks or fails, and forgets what it has given."""

    def drain(self) -> list[StepEvent]:
        """What has been reported since the last call."""


class HostMeter:
    """Measures one host and settles requests. Not for use by several threads at once."""

    def __init__(
        self,
        *,
        sensors: Sensors,
        processes: HostProcesses,
        inbox: StepSource,
        journal: Journal,
        clock: Clock,
        node: str,
        calibration: Calibration | None = None,
        interval_ns: int = _INTERVAL_NS,
        most_unacknowledged: int = _MOST_UNACKNOWLEDGED,
    ) -> None:
        """Read every counter once, which is where the book goes on, and take over what the journal holds.

        Requests that were open when an earlier meter ended can still be settled; their energy is unknown.
        """
        self._sensors = sensors
        self._processes = processes
        self._inbox = inbox
        self._journal = journal
        self._clock = clock
        self._node = node
        self._calibration = calibration or Calibration()
        self._most_unacknowledged = most_unacknowledged
        self._counters = HostCounters(
            sensors,
            processes,
            calibration=self._calibration,
            interval_ns=interval_ns,
            now_ns=clock.monotonic_ns(),
        )
        self._book = Book(journal.state.totals)
        self._shelf = SettlementShelf(journal)
        self._replicas: dict[str, MeteredReplica] = {}
        self._departed: list[MeteredReplica] = []
        self._open: dict[str, RequestAccount] = {}
        self._serial = 0
        self._recover()

    @property
    def silicon(self) -> MeteredSilicon:
        """The host's main silicon: its GPUs, or its CPU where it has none."""
        return self._silicon(tuple(self._counters.devices))

    @property
    def notes(self) -> tuple[str, ...]:
        """How energy is measured here and why not better, in plain words."""
        return self._sensors.notes

    def register(self, registration: ReplicaRegistration) -> None:
        """Meter a replica from now on. A second registration of the same process is nothing new.

        A new process under a known name replaces it; the old one's open requests have failed.

        Raises:
            ProcessGone: its process doesn't exist.
            JournalUnwritable: the registration couldn't be recorded; register again.
        """
        entry = self._entry(registration)
        if registration.replica in self._replicas:
            if self._journal.state.replicas.get(registration.replica) == entry:
                return
            self._close_at_will()
            self._bury(registration.replica)
        self._journal.registered(entry)
        self._processes.add(registration.replica, registration.pid)
        self._replicas[registration.replica] = self._metered(registration)

    def begin(self, request_id: str, replica: str, context: bytes) -> None:
        """Open a request's account, before the engine gets it. The same attempt twice is nothing new.

        A request may begin again after an attempt that failed, also on another replica: the failed attempt's
        settlement is replaced, and an attempt that is still open fails.

        Raises:
            UnknownReplica: nobody registered it.
            RequestAlreadySettled: the request has its answer.
            SettlementBacklogFull: too many settlements wait to be acknowledged.
            JournalUnwritable: the beginning couldn't be recorded; nothing has begun.
        """
        if replica not in self._replicas:
            raise UnknownReplica(f"no replica {replica!r} is registered on {self._node}")
        running = self._open.get(request_id)
        if running is not None:
            if running.replica == replica:
                return
            self.settle(request_id, "failed")
        earlier = self._shelf.get(request_id)
        if earlier is not None and earlier.outcome != "failed":
            raise RequestAlreadySettled(f"request {request_id} was settled as {earlier.outcome}")
        if self._shelf.waiting >= self._most_unacknowledged:
            raise SettlementBacklogFull(f"{self._shelf.waiting} settlements wait for the ledger on {self._node}")
        begun = BegunRequest(
            request_id=request_id,
            replica=replica,
            context=context,
            begun_monotonic_ns=self._clock.monotonic_ns(),
            start_unix_ns=self._clock.wall_ns(),
        )
        self._journal.begun(begun)
        self._shelf.discard(request_id)
        if not self._open:
            # What was drawn before the first request isn't part of the interval that it shares.
            self._close_at_will()
        self._open_account(begun)

    def tick(self) -> None:
        """Take in reported steps and close the intervals that are due; to be called every 100 ms.

        Open requests of a replica whose process died are settled as failed, and wait in `unacknowledged`.

        Raises:
            JournalUnwritable: the tick is done, but not all of it is recorded.
        """
        self._book_intervals(self._counters.close_due(self._clock.monotonic_ns()))
        self._note_power()
        for replica in self._processes.dead():
            if replica in self._replicas:
                self._bury(replica)
        self._shelf.write(self._book.totals())
        self._journal.totals(self._book.totals())

    def settle(self, request_id: str, outcome: str, *, replica: str | None = None) -> Settlement:
        """Close a request's account; final, and the same again however often it is asked for.

        With ``replica`` only that replica's attempt: a late word from an earlier one must not end a later one.

        Raises:
            UnknownRequest: it never began here, or on another replica, or was acknowledged long ago.
            ValueError: ``outcome`` is not "finished", "aborted" or "failed".
            JournalUnwritable: it is settled but not yet recorded; asking again tries again.
        """
        word = checked_outcome(outcome)
        settlement = self._shelf.get(request_id)
        if settlement is None:
            account = self._open.get(request_id)
            if account is None or (replica is not None and account.replica != replica):
                raise UnknownRequest(f"no request {request_id} of {replica or 'any replica'} on {self._node}")
            self._close_at_will()
            settlement = self._settle(account, word)
        self._shelf.write(self._book.totals())
        return settlement

    def unacknowledged(self, older_than_ns: int) -> tuple[Settlement, ...]:
        """Settlements at least this old that the ledger hasn't acknowledged, oldest first."""
        return tuple(self._shelf.unacknowledged(self._clock.monotonic_ns() - older_than_ns))

    def acknowledge(self, request_id: str) -> None:
        """The ledger has this settlement; doing so twice, or for one that isn't kept, changes nothing.

        Raises:
            JournalUnwritable: it couldn't be recorded; the settlement may be delivered again.
        """
        self._shelf.acknowledge(request_id)

    def totals(self) -> BookTotals:
        """The accounts; the identity holds exactly."""
        return self._book.totals()

    def _recover(self) -> None:
        """Go on where the journal ends: replicas that still run, and requests that hadn't been settled."""
        known = tuple(self._journal.state.replicas.values())
        for entry in known:
            self._replicas[entry.replica] = self._metered(
                ReplicaRegistration(
                    replica=entry.replica, pid=entry.pid, model=entry.model, device_ids=entry.device_ids
                )
            )
        for begun in tuple(self._journal.state.begun.values()):
            self._open_account(begun).spoiled = "the host meter was restarted while the request ran"
        for entry in known:
            if not self._resumes(entry):
                self._bury(entry.replica)
        for account in tuple(self._open.values()):
            if account.replica not in self._replicas:
                self._settle(account, "failed")

    def _resumes(self, entry: RegisteredReplica) -> bool:
        """Meter a replica of an earlier meter again, if its process still runs."""
        if self._processes.started_ticks(entry.pid) != entry.started_ticks:
            return False
        try:
            self._processes.add(entry.replica, entry.pid)
        except ProcessGone:
            return False
        return True

    def _entry(self, registration: ReplicaRegistration) -> RegisteredReplica:
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

    def _metered(self, registration: ReplicaRegistration) -> MeteredReplica:
        devices = self._counters.devices
        missing = [device for device in registration.device_ids if device not in devices]
        unavailable = f"no energy counter for {', '.join(missing)}" if missing else None
        if not registration.device_ids and not self._sensors.host:
            unavailable = self._sensors.host_unavailable or "this host has no energy counter"
        return MeteredReplica(
            registration,
            host=self._counters.host,
            devices=[devices[device] for device in registration.device_ids if device in devices],
            weights=self._calibration.weights_of(registration.model),
            unavailable=unavailable,
        )

    def _open_account(self, begun: BegunRequest) -> RequestAccount:
        self._serial += 1
        account = RequestAccount(
            serial=self._serial,
            request_id=begun.request_id,
            replica=begun.replica,
            context=begun.context,
            begun_monotonic_ns=begun.begun_monotonic_ns,
            start_unix_ns=begun.start_unix_ns,
        )
        self._book.open(account.serial)
        self._open[begun.request_id] = account
        return account

    def _close_at_will(self) -> None:
        self._book_intervals(self._counters.close_at_will(self._clock.monotonic_ns()))

    def _book_intervals(self, intervals: Sequence[GroupInterval]) -> None:
        """Take in the steps after the readings: whatever began before them has been reported by now."""
        self._take_in(self._inbox.drain())
        metered = (*self._replicas.values(), *self._departed)
        for interval in intervals:
            runners = [replica for replica in metered if interval.group in replica.groups]
            self._book_interval(interval, runners)
        reached_ns = self._counters.closed_until_ns
        for replica in metered:
            replica.forget_before(reached_ns)
        self._departed = [replica for replica in self._departed if replica.ran_after(reached_ns)]

    def _book_interval(self, interval: GroupInterval, runners: Sequence[MeteredReplica]) -> None:
        closed = interval.closed
        loads = [replica.load(closed.begin_ns, closed.end_ns) for replica in runners]
        energy = closed.energy_microjoules
        self._book.post(energy, self._counters.divide(interval.group, closed.begin_ns, closed.end_ns, energy, loads))
        self._book.quarantine(closed.quarantine_microjoules)
        if interval.lost is not None:
            self._spoil(runners, interval.lost)

    def _spoil(self, runners: Sequence[MeteredReplica], reason: str) -> None:
        """Energy of the residents isn't known whole any more: they keep their account, but aren't billed."""
        names = {replica.registration.replica for replica in runners}
        for account in self._open.values():
            if account.replica in names and account.resident_from_ns is not None:
                account.spoiled = account.spoiled or reason

    def _take_in(self, events: Sequence[StepEvent]) -> None:
        for event in events:
            replica = self._replicas.get(event.replica)
            if replica is None:
                continue
            match event:
                case StepBegan():
                    self._take_in_begin(replica, event)
                case StepEnded():
                    replica.ended(event)
                    self._take_in_tokens(event)
                case StepsLost():
                    self._take_in_loss(event)

    def _take_in_begin(self, replica: MeteredReplica, event: StepBegan) -> None:
        for work in replica.began(event):
            account = self._open_on(event.replica, work.request_id)
            if account is not None and account.resident_from_ns is None:
                replica.enter(account, account.saw_first_step(work, event.at_monotonic_ns))

    def _take_in_tokens(self, event: StepEnded) -> None:
        for request_id, tokens in event.produced.items():
            account = self._open_on(event.replica, request_id)
            if account is not None:
                account.output_tokens += tokens

    def _take_in_loss(self, event: StepsLost) -> None:
        for account in self._open.values():
            if account.replica == event.replica:
                account.steps_lost = True

    def _open_on(self, replica: str, request_id: str) -> RequestAccount | None:
        """The open attempt at a request, if it is this replica's."""
        account = self._open.get(request_id)
        return account if account is not None and account.replica == replica else None

    def _note_power(self) -> None:
        power = {name: replica.power_milliwatts for name, replica in self._replicas.items()}
        for account in self._open.values():
            if account.resident_from_ns is not None:
                account.saw_power(power.get(account.replica))

    def _bury(self, name: str) -> None:
        """The replica's process is gone: its open requests have failed."""
        replica = self._replicas[name]
        replica.died(self._clock.monotonic_ns())
        for account in tuple(self._open.values()):
            if account.replica == name:
                self._settle(account, "failed")
        del self._replicas[name]
        self._departed.append(replica)
        self._processes.remove(name)
        self._journal.left(name)

    def _settle(self, account: RequestAccount, outcome: Outcome) -> Settlement:
        """Close the account on what the closed intervals gave and an estimate of the open ones."""
        replica = self._replicas.get(account.replica)
        closed_ns = [group.begin_ns for group in self._counters.groups if group.closes_at_will]
        until_ns = max(self._clock.monotonic_ns(), *closed_ns)
        open_part = self._open_part(replica, account, until_ns)
        stay = self._end_stay(replica, account, until_ns)
        unknown = self._unknown(replica, account)
        charge = self._book.settle(account.serial, open_part, billed=outcome != "failed" and unknown is None)
        settlement = Settlement(
            request_id=account.request_id,
            replica=account.replica,
            outcome=outcome,
            start_unix_ns=account.start_unix_ns,
            duration_ns=max(0, until_ns - account.begun_monotonic_ns),
            energy=_energy(replica, charge, stay, unknown),
            tokens=account.tokens,
            silicon=self._silicon(replica.registration.device_ids if replica else ()),
            context=account.context,
        )
        del self._open[account.request_id]
        self._shelf.put(settlement, until_ns)
        return settlement

    def _open_part(self, replica: MeteredReplica | None, account: RequestAccount, until_ns: int) -> RequestShare:
        """The request's share of what its devices have probably drawn since their last closed interval."""
        estimate = RequestShare()
        for group in replica.groups if replica else ():
            milliwatts = group.power_milliwatts
            if milliwatts is None or group.begin_ns >= until_ns:
                continue
            energy = milliwatts * (until_ns - group.begin_ns) // 1_000_000
            loads = [
                runner.load(group.begin_ns, until_ns)
                for runner in (*self._replicas.values(), *self._departed)
                if group in runner.groups
            ]
            shares = self._counters.divide(group, group.begin_ns, until_ns, energy, loads)
            estimate.add(shares.of(account.serial))
        return estimate

    def _end_stay(self, replica: MeteredReplica | None, account: RequestAccount, until_ns: int) -> Stay:
        mean_batch = replica.leave(account, until_ns) if replica else None
        if account.resident_from_ns is None:
            return Stay(resident_ns=0, mean_batch_thousandths=None, peak_milliwatts=None, steps_lost=account.steps_lost)
        if replica is not None and account.peak_milliwatts is None:
            account.saw_power(replica.power_milliwatts)
        return Stay(
            resident_ns=until_ns - account.resident_from_ns,
            mean_batch_thousandths=mean_batch,
            peak_milliwatts=account.peak_milliwatts,
            steps_lost=account.steps_lost,
        )

    def _unknown(self, replica: MeteredReplica | None, account: RequestAccount) -> str | None:
        """Why the request's energy isn't known, if it isn't."""
        if replica is None:
            return f"the replica {account.replica} is not metered any more"
        return replica.unavailable or account.spoiled

    def _silicon(self, device_ids: tuple[str, ...]) -> MeteredSilicon:
        """These GPUs, or without any the CPU."""
        if device_ids:
            models = dict.fromkeys(self._sensors.gpu_models.get(device, "unknown") for device in device_ids)
            return MeteredSilicon(vendor="nvidia", model=" + ".join(models), device_ids=device_ids, node=self._node)
        cpu = self._sensors.cpu
        return MeteredSilicon(
            vendor=cpu.vendor,
            model=cpu.model,
            device_ids=tuple(f"cpu-package-{package}" for package in cpu.packages),
            node=self._node,
        )


def _energy(replica: MeteredReplica | None, charge: Charge, stay: Stay, unknown: str | None) -> EnergyFigures:
    if unknown is not None or replica is None:
        return unknown_figures(unknown or "not metered")
    return figures(charge, replica.facts, stay, allocation_percent=replica.weights.allocation_percent)
