"""The host meter as a Ray actor: one process per physical host, found by the machine's boot id.

It owns delivery: a settlement is handed to the ledger before the replica hears of it, and handed over again
until the ledger has acknowledged it, whoever has died meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metering.book import BookTotals
from metering.host_meter import HostMeter
from metering.metered_replica import ReplicaRegistration
from metering.settlement import Settlement
from receipts.ledger_actor import ledger_of
from serve.messages import MeterCard

_LOG = logging.getLogger(__name__)
_TICK_S = 0.1
_REDELIVER_EVERY_S = 2.0
_REDELIVER_AFTER_NS = 2_000_000_000


BuildMeter = Callable[[], tuple[HostMeter, MeterCard]]


class MeterActor:
    """Ticks a `HostMeter`, answers replicas, and delivers settlements to the ledger.

    Args:
        build: makes the meter inside this process, where its counters are.
        namespace: where the ledger is found by name.
    """

    async def __init__(self, build: BuildMeter, namespace: str) -> None:  # type: ignore[misc]
        self._meter, self._card = build()
        self._ledger = ledger_of(namespace)
        # Started here, since nobody tells a restarted actor to go on.
        self._loops = [asyncio.create_task(self._tick_forever()), asyncio.create_task(self._redeliver_forever())]

    def card(self) -> MeterCard:
        """How a replica reaches and describes this meter."""
        return self._card

    def notes(self) -> tuple[str, ...]:
        """How energy is measured on this host and why not better, a line each."""
        return self._meter.notes

    def register(self, replica: ReplicaRegistration) -> None:
        """Count the replica's process tree, and the GPUs it names, as its own."""
        self._meter.register(replica)

    def begin(self, request_id: str, replica: str, context: bytes) -> None:
        """Open a request; ``context`` comes back with the settlement."""
        self._meter.begin(request_id, replica, context)

    async def settle(self, request_id: str, replica: str, outcome: str) -> bytes | None:
        """Close this replica's attempt, store its receipt durably, and return the receipt's signed bytes.

        None where there is no receipt: the engine refused the request and ran nothing, or the attempt failed.
        """
        if outcome == "refused":
            self._meter.settle(request_id, "aborted", replica=replica)
            self._meter.acknowledge(request_id)
            return None
        return await self._deliver(self._meter.settle(request_id, outcome, replica=replica))

    def totals(self) -> BookTotals:
        """The book's microjoules by account."""
        return self._meter.totals()

    async def _deliver(self, settlement: Settlement) -> bytes | None:
        """Hand over one settlement; the ledger books a failed attempt as the mesh's overhead, without a receipt."""
        stored = await self._ledger.settle.remote(settlement)
        self._meter.acknowledge(settlement.request_id)
        return None if stored is None else bytes(stored.signed_bytes)

    async def _tick_forever(self) -> None:
        while True:
            try:
                self._meter.tick()
            except Exception:  # noqa: BLE001 - one bad tick must not end metering
                _LOG.exception("the host meter's tick failed; the next one goes on")
            await asyncio.sleep(_TICK_S)

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


def boot_id() -> str:
    """What names a physical host whatever container or Ray node asks (Linux); elsewhere the host name does."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ray.util.get_node_ip_address()


def meter_name(host: str) -> str:
    """The actor name of a host's meter."""
    return f"meter-{host}"


def meter_of_this_host(namespace: str) -> ActorHandle[Any]:
    """The running meter of the host that this process is on; ValueError when there is none."""
    return ray.get_actor(meter_name(boot_id()), namespace=namespace)


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
