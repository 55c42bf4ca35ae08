"""One replica of a pool: an engine, its place in the host meter's book, and the stream of one answer."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import ray
import ray.serve as ray_serve
from ray.actor import ActorHandle
from ray.exceptions import RayError

from clusters.silicon_kinds import SiliconKind, check_silicon
from metering.calibration import ReplicaWork
from metering.metered_replica import ReplicaRegistration
from receipts.ledger_actor import ledger_of
from serve.deadlines import Deadlines
from serve.engine_silence import EngineSilence
from serve.engine_spec import Engine, EngineSpec
from serve.errors import EngineBroke, NotBooked, RequestRefused
from serve.fault_place import fault_place
from serve.loopback import keep_to_loopback
from serve.messages import EngineTask, MeterCard, Opening, Refused, ReplicaMessage, Settled, Started
from serve.meter_actor import meter_of_this_host
from serve.meter_line import MeterLine
from serve.ray_hold_ledger import RayHoldLedger
from serve.routing_stats import RoutingStats
from serve.running_charge import RunningCharges

# Within the time that Ray Serve gives a look at the replica (`serve.application`), or a meter away would end it.
_METER_ANSWERS_WITHIN_S = 2.0


class EngineReplica:
    """A Serve deployment's class: starts the engine, registers with the host meter, answers.

    The energy of everything before registration is the mesh's overhead, warm-up included. Where the host's silicon is
    not what its pool names, it doesn't start (`SiliconMismatch`).
    """

    async def __init__(  # type: ignore[misc]
        self, spec: EngineSpec, model: str, namespace: str, deadlines: Deadlines, silicon: SiliconKind | None
    ) -> None:
        keep_to_loopback()
        self._stalled_s = deadlines.stalled_s
        self._silence = EngineSilence(time.monotonic)
        self._routing = RoutingStats(time.monotonic)
        self._replica: str = ray_serve.get_replica_context().replica_id.unique_id
        self._meter: ActorHandle[Any] = meter_of_this_host(namespace)
        self._card: MeterCard = await self._meter.card.remote()
        check_silicon(silicon, self._card.silicon)
        await self._meter.register.remote(
            ReplicaRegistration(
                replica=self._replica,
                pid=os.getpid(),
                model=model,
                device_ids=self._card.gpus_of(ray.get_gpu_ids()),
            )
        )
        self._line: MeterLine = MeterLine(self._card.line_socket)
        await self._line.connected()
        self._engine: Engine = await spec.start(self._card.steps_socket, self._replica)
        ledger = RayHoldLedger(ledger_of(namespace))
        self._charges: RunningCharges = RunningCharges(self._running, ledger, self._engine.stop_at_length)

    async def check_health(self) -> None:
        """Ray Serve's probe: a dead engine, or one that gives and computes nothing more, gets the replica replaced.

        Raises:
            EngineBroke: it is alive and silent; what a dead one raises is its own.
        """
        await self._engine.check()
        await self._silence.check(self._stalled_s, self._count_steps)

    async def _count_steps(self) -> int | None:
        """What the meter has seen the engine compute; None where it is away, which tells nothing of the engine."""
        try:
            async with asyncio.timeout(_METER_ANSWERS_WITHIN_S):
                work: ReplicaWork = await self._meter.work.remote(self._replica)
        except (RayError, TimeoutError):
            return None
        return work.steps

    async def _running(self) -> Mapping[str, int]:
        drawn: Mapping[str, int] = await self._meter.running.remote(self._replica)
        return drawn

    def record_routing_stats(self) -> dict[str, float]:
        """Ray Serve asks for it each second, and tells the pool's routers when it has changed."""
        return self._routing.snapshot()

    async def answer(self, task: EngineTask) -> AsyncGenerator[ReplicaMessage, None]:
        """Answer one request: `Opening`, then `Payload` and `Working` items, then `Settled`; or `Refused` alone.

        Where it would cost more than its account can have held, it ends with the finish reason "length". An answer
        that goes on after delivered tokens is said from its beginning all the same. How long it may be
        silent is the door's to judge, which then gives it up.

        However it ends (finished, cut off by the client, failed), the host meter settles the request, and delivers
        the settlement to the ledger itself when nobody is left here to wait for it.

        Raises:
            EngineBroke: the engine failed.
            NotBooked: the meter or the ledger could not take the request in, or its end.
        """
        outcome, has_started, began_at = "aborted", False, self._routing.begin()
        request_id, context = task.request_id, task.context
        try:
            await self._line.begin(request_id, self._replica, context)
            with self._silence.listened_to(), self._charges.watched(request_id, task.allowance):
                async with aclosing(self._engine.answer(request_id, task.shape, task.body, task.delivered)) as items:
                    async for item in items:
                        self._silence.end()
                        if has_started:
                            yield item
                        else:
                            # Not earlier: an engine that refuses has not started.
                            has_started = True
                            yield Opening(self._started(), item)
            outcome = "finished"
        except RequestRefused as refusal:
            self._silence.end()
            outcome = "failed" if has_started else "refused"
            if has_started:
                raise EngineBroke("the engine refused a request that it had begun to answer") from None
            yield Refused(status=refusal.status.value, message=refusal.message, param=refusal.param)
        except (EngineBroke, NotBooked):
            outcome = "failed"
            raise
        except Exception as fault:  # noqa: BLE001 - the boundary of a request
            # Ray Serve logs what is raised here with its text and its causes', which could quote the prompt.
            outcome = "failed"
            raise EngineBroke(fault_place(fault)) from None
        finally:
            self._routing.end()
            # Not awaited here: a cancelled generator may not wait, and the settlement must happen all the same.
            settling = self._line.settle(request_id, self._replica, outcome, context)
        if outcome == "finished" and (receipt := await settling) is not None:
            self._routing.learn(receipt, since=began_at)
            yield Settled(receipt)

    def _started(self) -> Started:
        return Started(replica=self._replica, silicon=self._card.silicon, energy_method=self._card.energy_method)

    async def __del__(self) -> None:
        """Ray Serve awaits this on a graceful stop."""
        if hasattr(self, "_engine"):
            await asyncio.to_thread(self._engine.stop)
            await self._line.close()
