"""The host meter as a Ray actor: one process per physical host, found by the machine's boot id.

It owns delivery: a settlement is handed to the ledger before the replica hears of it, and handed over again
until the ledger has acknowledged it, whoever has died meanwhile.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
import ray.util
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metering.calibration import CalibrationRecord, ReplicaWork
from metering.host_meter import HostMeter
from metering.meter_report import MeterReport
from metering.metered_replica import ReplicaRegistration
from metering.settlement import Settlement
from receipts.errors import LedgerInUse, LedgerUnavailable, ReceiptsError
from receipts.ledger_actor import ledger_of
from receipts.stored_receipt import StoredReceipt
from serve.calls_together import CallsTogether
from serve.energy_metrics import EnergyMetrics
from serve.messages import GivenUp, MeterCard
from serve.meter_line import MeterLines

_LOG = logging.getLogger(__name__)
# Ray hands metrics on every ten seconds; finer ones would be lost.
_SHOW_METRICS_EVERY_S = 5.0
_ACTOR_PREFIX = "meter-"
_REDELIVER_EVERY_S = 2.0
_REDELIVER_AFTER_NS = 2_000_000_000
# An answer is held back that long for a ledger that restarts or is locked; then it fails, and its receipt comes later.
_WAITS_FOR_LEDGER_S = 20.0
_LEDGER_RETRY_S = 0.2


BuildMeter = Callable[[], tuple[HostMeter, MeterCard]]


class MeterActor:
    """Ticks a `HostMeter`, answers replicas, and delivers settlements to the ledger.

    Args:
        build: makes the meter inside this process, where its counters are.
        namespace: where the ledger is found by name.
    """

    async def __init__(self, build: BuildMeter, namespace: str) -> None:  # type: ignore[misc]
        self._meter, self._card = build()
        self._store: CallsTogether[Settlement, StoredReceipt | None] = CallsTogether(ledger_of(namespace).settle.remote)
        self._metrics = EnergyMetrics(self._meter.silicon.node)
        self._lines = await MeterLines.open(Path(self._card.line_socket), self)
        # Started here, since nobody tells a restarted actor to go on.
        loops = (self._tick_forever(), self._redeliver_forever(), self._show_metrics_forever())
        self._loops = [asyncio.create_task(loop) for loop in loops]

    def card(self) -> MeterCard:
        """How a replica reaches and describes this meter."""
        return self._card

    def detected(self) -> tuple[str, str]:
        """The id of the Ray node that it is on, and the silicon of its host."""
        return str(ray.get_runtime_context().get_node_id()), self._card.silicon

    def notes(self) -> tuple[str, ...]:
        """How energy is measured on this host and why not better, a line each."""
        return self._meter.notes

    def register(self, replica: ReplicaRegistration) -> None:
        """Count the replica's process tree, and the GPUs it names, as its own."""
        self._meter.register(replica)

    def begin(self, request_id: str, replica: str, context: bytes) -> None:
        """Open a request; ``context`` comes back with the settlement."""
        self._meter.begin(request_id, replica, context)

    async def settle(self, request_id: str, replica: str, outcome: str, context: bytes | None = None) -> bytes | None:
        """Close this replica's attempt, store its receipt durably, and return the receipt's signed bytes.

        ``context`` is the one that it began with: a later attempt on the same replica goes on. Waits a while for a
        ledger that is away; the settlement is delivered later whatever is raised then.

        None where there is no receipt: the engine refused the request, or the attempt failed. What an engine ran before
        it refused, as for an answer that it then couldn't put into its form, is the mesh's overhead.
        """
        word = "failed" if outcome == "refused" else outcome
        settlement = self._meter.settle(request_id, word, replica=replica, context=context)
        if outcome == "refused" and settlement.tokens.input == 0:
            self._meter.acknowledge(settlement)  # it ran nothing: there is nothing to book
            return None
        give_up = time.monotonic() + _WAITS_FOR_LEDGER_S
        while True:
            try:
                return await self._deliver(settlement)
            except (RayError, ReceiptsError) as error:
                if not _is_away(error) or time.monotonic() > give_up:
                    raise
            await asyncio.sleep(_LEDGER_RETRY_S)

    def give_up(self, request_id: str, context: bytes | None = None) -> GivenUp:
        """The door waits no longer for an attempt at this request: what runs of it here has failed, at the mesh's cost.

        ``context`` is the one that the attempt was sent with: then another attempt is left alone, one that failed
        before is told of too, and its own beginning is refused if it comes late. Asking again is nothing new.
        """
        return given_up(self._meter.give_up(request_id, context))

    def report(self) -> MeterReport:
        """The book, the counters and the replicas as of now."""
        return self._meter.report()

    def running(self, replica: str) -> dict[str, int]:
        """As `HostMeter.running`."""
        return self._meter.running(replica)

    def work(self, replica: str) -> ReplicaWork:
        """What a replica has computed since it was registered, and the energy of it."""
        return self._meter.work(replica)

    def calibrate(self, record: CalibrationRecord) -> None:
        """Split by these weights and floors from now on; `metering.errors.CalibrationRefused` if they aren't ours."""
        self._meter.calibrate(record)

    async def _deliver(self, settlement: Settlement) -> bytes | None:
        """Hand over one settlement; the ledger books a failed attempt as the mesh's overhead, without a receipt."""
        stored = await self._store(settlement)
        is_news = self._meter.acknowledge(settlement)
        if stored is None:
            return None
        if is_news and stored.statement == settlement.statement:  # else another attempt has the receipt
            self._metrics.settled(settlement, self._meter.model_of(settlement.replica) or "unknown")
        return bytes(stored.signed_bytes)

    async def _tick_forever(self) -> None:
        while True:
            try:
                self._meter.tick()
            except Exception:  # noqa: BLE001 - one bad tick must not end metering
                _LOG.exception("the host meter's tick failed; the next one goes on")
            await asyncio.sleep(self._card.interval_s)

    async def _show_metrics_forever(self) -> None:
        while True:
            await asyncio.sleep(_SHOW_METRICS_EVERY_S)
            try:
                self._metrics.show(self._meter.report())
            except Exception:  # noqa: BLE001 - metrics must not end, and must end nothing else
                _LOG.exception("the host meter's metrics were not brought up to date; the next time they are")

    async def _redeliver_forever(self) -> None:
        while True:
            await asyncio.sleep(_REDELIVER_EVERY_S)
            for settlement in self._meter.unacknowledged(_REDELIVER_AFTER_NS):
                try:
                    await self._deliver(settlement)
                except RayActorError as away:
                    _LOG.warning("the ledger is away, %s", type(away).__name__)
                    break
                except Exception as refused:  # noqa: BLE001 - whatever it is, it must not hold up the others
                    # One that the ledger refuses stays, for an operator to see.
                    reason = str(refused).strip().rpartition("\n")[2]
                    _LOG.error("settlement %s is not delivered: %s", settlement.request_id, reason)


def given_up(settlement: Settlement | None) -> GivenUp:
    """What the door is told of an attempt with this settlement; what is on a bill is no failed attempt's energy."""
    if settlement is None or settlement.outcome != "failed":
        return GivenUp(is_charged=settlement is not None, energy_microjoules=None)
    return GivenUp(is_charged=False, energy_microjoules=settlement.energy.total_microjoules)


def _is_away(error: Exception) -> bool:
    """Whether the ledger may take the same settlement in a moment.

    It restarts, its database is locked, full or out of reach, or is still held by the ledger's own session that died.
    """
    reasons = (error, getattr(error, "cause", None))  # of a call that failed as a whole, Ray's error has it
    return any(isinstance(each, LedgerUnavailable | LedgerInUse | RayActorError) for each in reasons)


def boot_id() -> str:
    """What names a physical host whatever container or Ray node asks (Linux); elsewhere the host name does."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ray.util.get_node_ip_address()


def meter_name(host: str) -> str:
    """The actor name of a host's meter."""
    return _ACTOR_PREFIX + host


def meter_of_this_host(namespace: str) -> ActorHandle[Any]:
    """The running meter of the host that this process is on; ValueError when there is none."""
    return ray.get_actor(meter_name(boot_id()), namespace=namespace)


def meters_of(namespace: str) -> list[ActorHandle[Any]]:
    """The running meters of a mesh, one for each physical host."""
    return list(meters_by_host(namespace).values())


def meters_by_host(namespace: str) -> dict[str, ActorHandle[Any]]:
    """The running meters of a mesh by their host, as `boot_id` names it."""
    named = cast("list[dict[str, str]]", ray.util.list_named_actors(all_namespaces=True))
    ours = sorted(
        each["name"] for each in named if each["namespace"] == namespace and each["name"].startswith(_ACTOR_PREFIX)
    )
    found = {}
    for name in ours:
        with contextlib.suppress(ValueError):  # it died since it was listed
            found[name.removeprefix(_ACTOR_PREFIX)] = ray.get_actor(name, namespace=namespace)
    return found


def start_meter(node_id: str, host: str, build: BuildMeter, namespace: str) -> ActorHandle[Any]:
    """Start a host's meter on one of its Ray nodes; it is restarted there when it dies."""
    actor = ray.remote(MeterActor).options(
        name=meter_name(host),
        namespace=namespace,
        num_cpus=0.05,
        max_restarts=-1,
        # Every call is idempotent, so one that the meter's death swallowed is made again.
        max_task_retries=-1,
        max_concurrency=1000,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return cast("ActorHandle[Any]", actor.remote(build, namespace))
