"""The host meter: one for each physical machine, owner of its counters and of its book.

Nothing here waits, starts a thread or knows Ray: the caller ticks it and asks it to settle. One tick reads the
counters that are due, takes in what the engines reported, divides each closed interval and books it.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from metering.attribution import RequestShare
from metering.book import Book, BookTotals, Charge
from metering.calibration import Calibration, CalibrationRecord, ReplicaWork
from metering.checkpoint import Checkpoint
from metering.clock import Clock
from metering.counters.detect import Sensors
from metering.engine_steps import StepEvent
from metering.errors import (
    CalibrationRefused,
    JournalUnwritable,
    RequestAlreadySettled,
    SettlementBacklogFull,
    UnknownRequest,
)
from metering.figures import Stay, figures, unknown_figures
from metering.given_up import GivenUpAttempts
from metering.host_counters import GroupInterval, HostCounters, HostProcesses
from metering.host_silicon import check_record, metered_silicon, unmeterable
from metering.incidents import IncidentLog
from metering.journal import BegunRequest, Journal
from metering.meter_report import MeterReport
from metering.metered_replica import MeteredReplica, ReplicaRegistration
from metering.open_part import open_part_of, open_parts, part_of
from metering.open_requests import OpenRequests
from metering.replica_roster import ReplicaRoster
from metering.request_account import RequestAccount
from metering.settlement import EnergyFigures, MeteredSilicon, Outcome, Settlement, checked_outcome
from metering.settlement_shelf import SettlementShelf
from metering.sharing_watch import SharingWatch
from metering.statements import ChainHead, MeterKey, StatementChain

_LOG = logging.getLogger(__name__)
_INTERVAL_NS = 100_000_000
_MOST_UNACKNOWLEDGED = 100_000
_NO_STEP_POWER = "no counter has closed an interval with its replica's steps yet, so what it drew can't be estimated"


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
        signing_key: MeterKey,
        calibration: Calibration | None = None,
        interval_ns: int = _INTERVAL_NS,
        most_unacknowledged: int = _MOST_UNACKNOWLEDGED,
    ) -> None:
        """Read every counter once, which is where the book goes on, and take over what the journal holds.

        What was counted since the earlier meter's last record is overhead, as far as it can be known. Requests that
        were open then can still be settled; their energy is unknown.
        """
        self._sensors = sensors
        self._inbox = inbox
        self._journal = journal
        self._clock = clock
        self._node = node
        self._calibration = calibration or Calibration()
        self._most_unacknowledged = most_unacknowledged
        self._boot_id = clock.boot_id()
        self._key = signing_key
        checkpoint = journal.state.checkpoint
        self._incidents = IncidentLog(journal, clock)
        self._counters = HostCounters(
            sensors,
            processes,
            calibration=self._calibration,
            interval_ns=interval_ns,
            clock=clock,
            checkpoint=checkpoint,
        )
        self._book = Book(
            checkpoint.totals,
            trueup_magnitude_microjoules=checkpoint.trueup_magnitude_microjoules,
            settled_requests=checkpoint.settled_requests,
        )
        self._chain = StatementChain(signing_key, self._chain_head(checkpoint))
        self._sharing = SharingWatch(sensors.sharing, processes)
        self._shelf = SettlementShelf(journal)
        self._replicas = ReplicaRoster(sensors, processes, self._counters, self._calibration, node)
        self._open = OpenRequests()
        self._given_up = GivenUpAttempts()
        self._warn_of_unmeterable()
        self._departures: list[str] = []
        self._book_away()
        self._recover()

    @property
    def silicon(self) -> MeteredSilicon:
        """The host's main silicon: its GPUs, or its CPU where it has none."""
        return metered_silicon(self._sensors, [each.facts.device_id for each in self._sensors.devices], self._node)

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
        entry = self._replicas.entry(registration)
        if registration.replica in self._replicas.live:
            if self._journal.state.replicas.get(registration.replica) == entry:
                return
            self._close_at_will()
            self._bury(registration.replica)
        try:
            self._journal.registered(entry)
        except JournalUnwritable:
            self._regroup()
            raise
        # Recorded later, the old one's departure would be taken for this one's.
        self._departures = [name for name in self._departures if name != registration.replica]
        self._replicas.add(registration)
        self._regroup()

    def begin(self, request_id: str, replica: str, context: bytes) -> None:
        """Open a request's account, before the engine gets it. The same attempt twice is nothing new.

        Replica and context make an attempt. A request may begin again after one that failed; one still open fails.

        Raises:
            UnknownReplica: nobody registered it.
            RequestAlreadySettled: the request has its answer, or this attempt failed or was given up.
            SettlementBacklogFull: too many settlements wait to be acknowledged.
            JournalUnwritable: the beginning couldn't be recorded; nothing has begun.
        """
        self._replicas.get(replica)
        if self._given_up.has(request_id, context):
            raise RequestAlreadySettled(f"this attempt at request {request_id} was given up before it began")
        running = self._open.get(request_id)
        if running is not None:
            if (running.replica, running.context) == (replica, context):
                return
            self.settle(request_id, "failed")
        earlier = self._shelf.get(request_id)
        if earlier and (earlier.outcome != "failed" or (earlier.replica, earlier.context) == (replica, context)):
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
        # Recorded after the beginning, the failed attempt's settlement would end this one at a restart.
        self._shelf.write(self._checkpoint())
        self._journal.begun(begun)
        self._shelf.supersede(request_id)
        if len(self._open) == 0:
            # What was drawn before the first request isn't part of the interval that it shares.
            self._close_at_will()
        self._book.open(self._open.open(begun).serial)

    def tick(self) -> None:
        """Take in reported steps and close the intervals that are due; to be called every 100 ms.

        Open requests of a replica whose process died are settled as failed, and wait in `unacknowledged`.

        Raises:
            JournalUnwritable: the tick is done, but not all of it is recorded.
        """
        self._book_intervals(self._counters.close_due())
        self._sharing.ask(tuple(self._replicas.live.values()), self._clock.monotonic_ns())
        self._open.observe(self._replicas.live)
        dead = self._replicas.dead
        for replica in dead:
            self._bury(replica)
        if dead:
            self._regroup()
        self._record()

    def settle(
        self, request_id: str, outcome: str, *, replica: str | None = None, context: bytes | None = None
    ) -> Settlement:
        """Close a request's account; final, and the same again however often it is asked for.

        With ``replica`` only that replica's attempt, with ``context`` only the one that began with it: a late word
        from an earlier one must not end a later one.

        Raises:
            UnknownRequest: it never began here, or began on another replica, or was acknowledged long ago.
            ValueError: ``outcome`` is not "finished", "aborted" or "failed".
            JournalUnwritable: it is settled but not yet recorded; asking again tries again.
        """
        word = checked_outcome(outcome)
        known = self._shelf.get(request_id) or self._open.get(request_id)
        if known is None or replica not in (None, known.replica) or context not in (None, known.context):
            raise UnknownRequest(f"no request {request_id} of {replica or 'any replica'} on {self._node}")
        if isinstance(known, RequestAccount):
            self._close_at_will()
            known = self._settle(known, word)
        self._shelf.write(self._checkpoint())
        return known

    def give_up(self, request_id: str, context: bytes | None = None) -> Settlement | None:
        """Nobody waits for this attempt: it has failed if it runs here, and won't begin any more if it hasn't yet.

        Its settlement, also if it had failed before; None where it never began or isn't remembered. One that hasn't
        failed is what the account is charged for, whichever attempt that was. Without ``context``: whatever runs here.

        Raises:
            JournalUnwritable: as for `settle`.
        """
        if context is not None:
            self._given_up.add(request_id, context)
        running = self._open.get(request_id)
        if running is not None and context in (None, running.context):
            return self.settle(request_id, "failed")
        self._shelf.write(self._checkpoint())
        known = self._shelf.get(request_id)
        return known if known is not None and (known.outcome != "failed" or known.context == context) else None

    def unacknowledged(self, older_than_ns: int) -> tuple[Settlement, ...]:
        """Settlements at least this old that the ledger hasn't acknowledged, oldest first."""
        return tuple(self._shelf.unacknowledged(self._clock.monotonic_ns() - older_than_ns))

    def acknowledge(self, settlement: Settlement) -> bool:
        """The ledger has this settlement; whether that is new. For one that isn't kept, it changes nothing.

        Raises:
            JournalUnwritable: it may be delivered again.
        """
        return self._shelf.acknowledge(settlement)

    def running(self, replica: str) -> dict[str, int]:
        """What each open request of a replica has drawn until now, in microjoules, as its settlement would say it.

        No counter is read: what no closed interval stands behind is an estimate, and nothing while there can be none.
        A request whose energy isn't known whole is left out: it won't be billed.
        """
        metered = self._replicas.live.get(replica)
        if metered is None or metered.unavailable is not None:
            return {}
        now_ns = self._clock.monotonic_ns()
        parts = open_parts(metered, now_ns, roster=self._replicas, counters=self._counters) or ()
        return {
            account.request_id: self._book.running_microjoules(account.serial, part_of(account.serial, parts))
            for account in self._open.on(replica)
            if account.spoiled is None
        }

    def model_of(self, replica: str) -> str | None:
        """The model that a registered replica serves."""
        metered = self._replicas.live.get(replica)
        return None if metered is None else metered.registration.model

    def work(self, replica: str) -> ReplicaWork:
        """What a replica has computed and drawn since it was registered with this meter, as of now.

        Raises:
            UnknownReplica: nobody registered it.
        """
        metered = self._replicas.get(replica)
        self._close_at_will()
        return metered.work

    def calibrate(self, record: CalibrationRecord) -> None:
        """Divide by this record's weights and floors, from the intervals that begin now on.

        Raises:
            CalibrationRefused: it was made for a model that no replica here serves, on other silicon, or with other
                counters; nothing has changed.
        """
        check_record(record, self._sensors, self.silicon.model)
        if record.model not in self._replicas.models:
            served = ", ".join(sorted(self._replicas.models)) or "none"
            raise CalibrationRefused(f"{self._node} serves no model {record.model}; it serves {served}")
        self._book_intervals(self._counters.close_all())
        self._calibration = self._calibration.with_record(record)
        self._counters.calibrate(self._calibration)
        self._replicas.calibrate(self._calibration)

    def report(self) -> MeterReport:
        """Everything that is shown of this meter, as of now."""
        self._close_at_will()
        head = self._chain.head
        return MeterReport(
            node=self._node,
            silicon=self.silicon,
            notes=self.notes,
            devices=self._counters.reports(),
            replicas=tuple(replica.report() for replica in self._replicas.live.values()),
            totals=self._book.totals(),
            counters_microjoules=self._counters.counted_microjoules,
            trueup_magnitude_microjoules=self._book.trueup_magnitude_microjoules,
            settled_requests=self._book.settled_requests,
            open_requests=len(self._open),
            unacknowledged=self._shelf.waiting,
            meter_key=self._key.public_key.hex(),
            statement_sequence=head.sequence if head else 0,
            incidents=self._incidents.newest,
        )

    def totals(self) -> BookTotals:
        """The accounts; the identity holds exactly."""
        return self._book.totals()

    def _warn_of_unmeterable(self) -> None:
        lines = unmeterable(self._sensors)
        if lines:
            _LOG.error("%s: requests on this silicon are NOT BILLED: %s", self._node, "; ".join(lines))
        for line in lines:
            self._incidents.note(line)

    def _chain_head(self, checkpoint: Checkpoint) -> ChainHead | None:
        """Where the statements go on; a reboot may have cost the journal its end, and with it statements.

        The first ones of each start are forced to the disk: without a head there is no statement.
        """
        head = checkpoint.chain
        if head is None or (self._boot_id is not None and checkpoint.boot_id == self._boot_id):
            return head
        return head.after_a_loss()

    def _book_away(self) -> None:
        """Book what was counted while there was no meter."""
        away = self._counters.away
        self._book.post_stray(away.stray_microjoules)
        self._book.quarantine(away.quarantine_microjoules)
        for line in away.news:
            self._incidents.note(line)

    def _recover(self) -> None:
        """Go on where the journal ends: replicas that still run, and requests that hadn't been settled."""
        known = tuple(self._journal.state.replicas.values())
        gone = [entry.replica for entry in known if not self._replicas.resume(entry)]
        for begun in tuple(self._journal.state.begun.values()):
            account = self._open.open(begun)
            account.spoiled = "the host meter was restarted while the request ran"
            self._book.open(account.serial)
        for replica in gone:
            self._bury(replica)
        self._regroup()
        for account in self._open:
            if account.replica not in self._replicas.live:
                self._settle(account, "failed")
        try:
            self._record()
        except JournalUnwritable as why:
            _LOG.warning("%s: %s; the next tick tries again", self._node, why)

    def _regroup(self) -> None:
        self._book_intervals(self._replicas.regroup())
        self._replicas.take_groups()

    def _close_at_will(self) -> None:
        self._book_intervals(self._counters.close_at_will())

    def _book_intervals(self, intervals: Sequence[GroupInterval]) -> None:
        """Take in the steps after the readings: whatever began before them has been reported by now."""
        self._open.take_in(self._inbox.drain(), self._replicas.live)
        woken = self._counters.woken()
        if woken is not None:
            self._incidents.note(woken)
            self._open.spoil(tuple(self._replicas.live.values()), woken)
        for interval in intervals:
            self._book_interval(interval, self._replicas.on(interval.group))
        reached_ns = self._counters.closed_until_ns
        self._book.true_up(reached_ns)
        self._replicas.forget_before(reached_ns)

    def _book_interval(self, interval: GroupInterval, runners: Sequence[MeteredReplica]) -> None:
        closed = interval.closed
        loads = [replica.load(closed.begin_ns, closed.end_ns) for replica in runners]
        energy = closed.energy_microjoules
        shares = self._counters.divide(interval.group, closed.begin_ns, closed.end_ns, energy, loads)
        self._book.post(energy, shares)
        self._book.post_stray(closed.stray_microjoules)
        self._book.quarantine(closed.quarantine_microjoules)
        still = self._counters.stood_still(interval, loads)
        for replica, load in zip(runners, loads, strict=True):
            grains = shares.step_grains.get(replica.registration.replica, 0)
            replica.drew(grains)
            if still:
                replica.step_power.forget(interval.group)
            elif interval.lost is None:
                replica.step_power.add(interval.group, grains, load.steps_ns)
        for line in (*closed.news, *(movement.news for movement in still if movement.news is not None)):
            self._incidents.note(line)
        lost = interval.lost or next((movement.lost for movement in still), None)
        if lost is not None:
            self._open.spoil(runners, lost)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            totals=self._book.totals(),
            trueup_magnitude_microjoules=self._book.trueup_at_stake_microjoules,
            settled_requests=self._book.settled_requests,
            boot_id=self._boot_id,
            at_monotonic_ns=self._clock.monotonic_ns(),
            counters=self._counters.marks,
            opening_microjoules=self._counters.opening_microjoules,
            chain=self._chain.head,
        )

    def _record(self) -> None:
        """Record what happened and where the meter stands now.

        Raises:
            JournalUnwritable: not all of it could be; the next time tries again.
        """
        self._incidents.write()
        while self._departures:
            self._journal.left(self._departures[0])
            del self._departures[0]
        checkpoint = self._checkpoint()
        self._shelf.write(checkpoint)
        self._journal.checkpoint(checkpoint)

    def _bury(self, name: str) -> None:
        """The replica's process is gone: its open requests have failed."""
        self._replicas.get(name).died(self._clock.monotonic_ns())
        for account in self._open.on(name):
            self._settle(account, "failed")
        self._replicas.remove(name)
        self._departures.append(name)

    def _settle(self, account: RequestAccount, outcome: Outcome) -> Settlement:
        """Close the account on what the closed intervals gave and an estimate of the open ones."""
        replica = self._replicas.live.get(account.replica)
        closed_ns = [group.begin_ns for group in self._counters.groups if group.closes_at_will]
        until_ns = max([self._clock.monotonic_ns(), *closed_ns])
        open_part = (
            open_part_of(account, replica, until_ns, roster=self._replicas, counters=self._counters)
            if replica
            else RequestShare()
        )
        stay = replica.end_stay(account, until_ns) if replica else Stay.never(steps_lost=account.steps_lost)
        unknown = self._unknown(replica, account) or (_NO_STEP_POWER if open_part is None else None)
        is_billed = outcome != "failed" and unknown is None
        charge = self._book.settle(account.serial, open_part or RequestShare(), billed=is_billed, settled_ns=until_ns)
        settlement = Settlement(
            request_id=account.request_id,
            replica=account.replica,
            outcome=outcome,
            start_unix_ns=account.start_unix_ns,
            duration_ns=max(0, until_ns - account.begun_monotonic_ns),
            energy=_energy(replica, charge, stay, unknown),
            tokens=account.tokens,
            silicon=metered_silicon(self._sensors, replica.registration.device_ids if replica else (), self._node),
            context=account.context,
            statement=self._chain.state(
                request_id=account.request_id,
                outcome=outcome,
                microjoules=charge.total_microjoules if is_billed else None,
                counted_microjoules=self._book.counted_microjoules,
                open_ns=max(0, until_ns - self._counters.closed_until_ns),
            ),
        )
        self._open.close(account)
        self._shelf.put(settlement, until_ns)
        return settlement

    def _unknown(self, replica: MeteredReplica | None, account: RequestAccount) -> str | None:
        """Why the request's energy isn't known, if it isn't.

        While a counter is in trouble nothing is known of the open part; who was never resident has none.
        """
        if replica is None:
            return f"the replica {account.replica} is not metered any more"
        trouble = replica.trouble or self._counters.cpu_trouble
        return replica.unavailable or account.spoiled or (trouble if account.resident_from_ns is not None else None)


def _energy(replica: MeteredReplica | None, charge: Charge, stay: Stay, unknown: str | None) -> EnergyFigures:
    if unknown is not None or replica is None:
        return unknown_figures(unknown or "not metered")
    return figures(charge, replica.facts, stay, allocation_percent=replica.weights.allocation_percent)
