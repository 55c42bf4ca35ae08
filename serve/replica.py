"""One replica of a pool: an engine, its place in the host meter's book, and the stream of one answer."""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import ray
import ray.serve as ray_serve
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError

from metering.metered_replica import ReplicaRegistration
from serve.deadlines import Deadlines, within
from serve.engine_spec import Engine, EngineSpec
from serve.errors import EngineBroke, NotBooked, RequestRefused
from serve.loopback import keep_to_loopback
from serve.messages import MeterCard, Payload, Refused, ReplicaItem, Settled, Started
from serve.meter_actor import meter_of_this_host

_Answer = TypeVar("_Answer")


class EngineReplica:
    """A Serve deployment's class: starts the engine, registers with the host meter, answers.

    The energy of everything before registration is the mesh's overhead, warm-up included.
    """

    async def __init__(  # type: ignore[misc]
        self, spec: EngineSpec, model: str, namespace: str, deadlines: Deadlines
    ) -> None:
        keep_to_loopback()
        self._deadlines = deadlines
        self._replica: str = ray_serve.get_replica_context().replica_id.unique_id
        self._meter: ActorHandle[Any] = meter_of_this_host(namespace)
        self._card: MeterCard = await self._meter.card.remote()
        await self._meter.register.remote(
            ReplicaRegistration(
                replica=self._replica,
                pid=os.getpid(),
                model=model,
                device_ids=self._card.gpus_of(ray.get_gpu_ids()),
            )
        )
        self._engine: Engine = await spec.start(self._card.socket_path, self._replica)

    async def check_health(self) -> None:
        """Ray Serve's probe: a dead engine gets the replica replaced."""
        await self._engine.check()

    async def chat(
        self, request_id: str, context: bytes, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[ReplicaItem, None]:
        """Answer one request: `Started`, then `Payload` items, then `Settled`; or `Refused` alone.

        However it ends (finished, cut off by the client, failed), the host meter settles the request, and delivers
        the settlement to the ledger itself when nobody is left here to wait for it.

        Raises:
            TimeoutError: the engine was silent past a deadline.
            EngineBroke: the engine failed.
            NotBooked: the meter or the ledger could not take the request in, or its end.
        """
        outcome, has_started = "aborted", False
        try:
            await _booked(self._meter.begin.remote(request_id, self._replica, context))
            limits = self._deadlines.limits(is_stream=bool(body.get("stream")))
            async with aclosing(self._engine.chat(request_id, body, delivered)) as payloads:
                async for payload in within(payloads, limits):
                    if not has_started:
                        # Not earlier: an engine that refuses has not started.
                        has_started = True
                        yield self._started()
                    yield Payload(payload)
            outcome = "finished"
        except RequestRefused as refusal:
            outcome = "failed" if has_started else "refused"
            if has_started:
                raise EngineBroke("the engine refused a request that it had begun to answer") from refusal
            yield Refused(status=refusal.status.value, message=refusal.message, param=refusal.param)
        except Exception:
            outcome = "failed"
            raise
        finally:
            # Not awaited here: a cancelled generator may not wait, and the settlement must happen all the same.
            settling: ObjectRef[bytes | None] = self._meter.settle.remote(request_id, self._replica, outcome)
        if outcome == "finished" and (receipt := await _booked(settling)) is not None:
            yield Settled(receipt)

    def _started(self) -> Started:
        return Started(replica=self._replica, silicon=self._card.silicon, energy_method=self._card.energy_method)

    async def __del__(self) -> None:
        """Ray Serve awaits this on a graceful stop."""
        if hasattr(self, "_engine"):
            await asyncio.to_thread(self._engine.stop)


async def _booked(answer: "ObjectRef[_Answer]") -> _Answer:
    """What the meter answers; its trouble and the ledger's must not look like the engine's or this replica's."""
    try:
        return await answer
    except RayError as trouble:
        raise NotBooked(type(getattr(trouble, "cause", None) or trouble).__name__) from trouble
