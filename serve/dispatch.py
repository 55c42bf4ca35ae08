"""Attempts on Ray Serve deployments: one deployment per pool."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve.errors import AttemptFailed, NotBooked
from serve.messages import ReplicaItem


class ServeDispatch:
    """Sends an attempt to a pool's deployment and streams back what its replica says.

    ``handles`` are by pool key.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = {pool: handle.options(stream=True) for pool, handle in handles.items()}

    async def __call__(
        self, pool: str, request_id: str, context: bytes, body: Mapping[str, Any]
    ) -> AsyncGenerator[ReplicaItem, None]:
        """Stream the attempt; however the iteration ends, the replica is told to stop.

        Raises:
            AttemptFailed: the replica died, is full, or its engine broke.
        """
        items = cast(
            "DeploymentResponseGenerator[ReplicaItem]", self._handles[pool].chat.remote(request_id, context, body)
        )
        try:
            async for item in items:
                yield item
        except RayActorError as dead:
            raise AttemptFailed("replica died", str(dead).partition("\n")[0]) from dead
        except (BackPressureError, DeploymentUnavailableError) as full:
            raise AttemptFailed("unavailable", str(full)) from full
        except Exception as broken:
            # What a replica raises comes by Ray's own way in a RayTaskError, and by gRPC as it is.
            raise _failure(broken.cause if isinstance(broken, RayTaskError) else broken) from broken
        finally:
            items.cancel()


def _failure(cause: BaseException) -> AttemptFailed:
    if isinstance(cause, TimeoutError):
        return AttemptFailed("timeout", "the engine was silent past its deadline")
    if isinstance(cause, NotBooked):
        return AttemptFailed("its receipt cannot be stored now", str(cause))
    return AttemptFailed("engine error", type(cause).__name__)
