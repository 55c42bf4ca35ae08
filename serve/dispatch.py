"""Attempts on Ray Serve deployments: one deployment per pool."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve.deadlines import within
from serve.errors import AttemptFailed, NotBooked
from serve.messages import ReplicaItem

_LOG = logging.getLogger(__name__)
_REPLICA_HANGS_AFTER_S = 5.0
_METERS_ANSWER_WITHIN_S = 2.0


class ServeDispatch:
    """Sends an attempt to a pool's deployment and streams back what its replica says.

    ``handles`` are by pool key; ``meters`` finds the hosts' meters.
    """

    def __init__(
        self, handles: Mapping[str, DeploymentHandle[Any]], meters: Callable[[], Sequence[ActorHandle[Any]]]
    ) -> None:
        self._handles = {pool: handle.options(stream=True) for pool, handle in handles.items()}
        self._meters = meters

    async def __call__(
        self, pool: str, request_id: str, context: bytes, body: Mapping[str, Any], limits: Iterable[float]
    ) -> AsyncGenerator[ReplicaItem, None]:
        """Stream the attempt; however the iteration ends, the replica is told to stop.

        The replica keeps the limits itself and settles the attempt as failed; here it is for one that hangs, or was
        waited for too long. Its host's meter is told before it is, for it would settle what it ran as the client's.

        Raises:
            AttemptFailed: the replica died, is full or silent, or its engine broke.
        """
        items = cast(
            "DeploymentResponseGenerator[ReplicaItem]", self._handles[pool].chat.remote(request_id, context, body)
        )
        try:
            async with aclosing(within(items, (each + _REPLICA_HANGS_AFTER_S for each in limits))) as timely:
                async for item in timely:
                    yield item
        except RayActorError as dead:
            raise AttemptFailed("replica died", str(dead).partition("\n")[0]) from dead
        except (BackPressureError, DeploymentUnavailableError) as full:
            raise AttemptFailed("unavailable", str(full)) from full
        except Exception as broken:
            # What a replica raises comes by Ray's own way in a RayTaskError, and by gRPC as it is.
            failure = _failure(broken.cause if isinstance(broken, RayTaskError) else broken)
            if failure.outcome == "timeout":
                failure.may_be_charged = not await self._give_up(request_id)
            raise failure from broken
        finally:
            items.cancel()

    async def _give_up(self, request_id: str) -> bool:
        """Tell every host, for which of them has the attempt isn't known; whether it will surely not be charged."""
        try:
            async with asyncio.timeout(_METERS_ANSWER_WITHIN_S):
                meters = await asyncio.to_thread(self._meters)
                return all(await asyncio.gather(*(meter.give_up.remote(request_id) for meter in meters)))
        except Exception as away:  # noqa: BLE001 - whatever it is, the request must go on
            _LOG.warning(
                "not every meter heard that an attempt at %s was given up: %s", request_id, type(away).__name__
            )
            return False


def _failure(cause: BaseException) -> AttemptFailed:
    if isinstance(cause, TimeoutError):
        return AttemptFailed("timeout", "the engine was silent past its deadline")
    if isinstance(cause, NotBooked):
        return AttemptFailed("its receipt cannot be stored now", str(cause), may_be_charged=True)
    return AttemptFailed("engine error", type(cause).__name__)
