"""Attempts on Ray Serve deployments: one deployment per pool."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve.deadlines import LimitAfter, within
from serve.errors import AttemptFailed, NotBooked, SeamBroken
from serve.messages import (
    EngineTask,
    GivenUp,
    Opening,
    Payload,
    Refused,
    ReplicaItem,
    ReplicaMessage,
    Settled,
    Started,
)

_LOG = logging.getLogger(__name__)
_METERS_ANSWER_WITHIN_S = 2.0


class ServeDispatch:
    """Sends an attempt to a pool's deployment and streams back what its replica says.

    ``handles`` are by pool key; ``meters`` finds the hosts' meters, each of which is waited for no longer than
    ``meters_answer_within_s``.
    """

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        meters: Callable[[], Sequence[ActorHandle[Any]]],
        *,
        meters_answer_within_s: float = _METERS_ANSWER_WITHIN_S,
    ) -> None:
        # What passes are plain values: pickle takes less than half the time of Ray's own way, for each chunk.
        self._handles = {
            pool: handle.options(stream=True, request_serialization="pickle", response_serialization="pickle")
            for pool, handle in handles.items()
        }
        self._meters = meters
        self._meters_answer_within_s = meters_answer_within_s

    async def __call__(
        self,
        pool: str,
        task: EngineTask,
        limit_after: LimitAfter,
    ) -> AsyncGenerator[ReplicaItem, None]:
        """Stream the attempt; however the iteration ends, the replica is told to stop.

        An attempt that failed is given up at the meters first: told of its end by its replica, a meter would settle
        what it ran as the client's. One whose answer was whole, and only its receipt is missing, is settled by them.

        Raises:
            AttemptFailed: the replica died, is full or silent, or its engine broke.
        """
        items = cast(
            "DeploymentResponseGenerator[ReplicaMessage]",
            self._handles[pool].answer.remote(task),
        )
        attempt = _Attempt(task.request_id, task.context)
        ends: list[Settled | AttemptFailed] = []

        async def give_up() -> None:
            ends.append(await self._end(attempt, TimeoutError()))

        try:
            async with aclosing(_each(items)) as each, aclosing(within(each, limit_after, give_up)) as timely:
                async for item in timely:
                    yield item
                    if isinstance(item, Payload):
                        attempt.is_whole = item.is_last(is_stream=task.is_stream)
                    elif isinstance(item, Started):
                        attempt.replica = item.replica
                    elif isinstance(item, Settled | Refused):
                        return
        except Exception as broken:
            end = ends[0] if ends else await self._end(attempt, broken)
            if isinstance(end, AttemptFailed):
                raise end from broken
            yield end
        else:
            raise await self._given_up(attempt, _CutShort())
        finally:
            items.cancel()

    async def _end(self, attempt: "_Attempt", broken: Exception) -> Settled | AttemptFailed:
        """What becomes of an attempt that gives no more."""
        if isinstance(broken, BackPressureError):
            return AttemptFailed("queue full", str(broken), is_full=True, energy_microjoules=0)
        if attempt.is_whole:
            receipt = await self._settle(attempt.request_id, attempt.replica, attempt.context)
            if receipt is not None:
                _LOG.warning("the receipt of %s came from its meter: %s", attempt.request_id, type(broken).__name__)
                return Settled(receipt)
        return await self._given_up(attempt, broken)

    async def _given_up(self, attempt: "_Attempt", broken: Exception) -> AttemptFailed:
        """The failure, with what became of the attempt; every host is asked, for which of them has it isn't known."""
        outcome, message = _failure(broken)
        request_id, context = attempt.request_id, attempt.context
        answers = await self._ask(lambda meter: meter.give_up.remote(request_id, context))
        told = [each for each in answers or () if isinstance(each, GivenUp)]
        drawn = [each.energy_microjoules for each in told if each.energy_microjoules is not None]
        was_heard = answers is not None and len(told) == len(answers)
        if not was_heard:
            _LOG.warning("not every meter heard that an attempt at %s was given up", request_id)
        return AttemptFailed(
            outcome,
            message,
            is_charged=any(each.is_charged for each in told),
            may_be_charged=not was_heard,
            energy_microjoules=sum(drawn) if drawn else None,
            is_whole=attempt.is_whole,
        )

    async def _settle(self, request_id: str, replica: str, context: bytes) -> bytes | None:
        """The receipt of an answer that was whole when its replica was lost; None where no meter can make it now."""
        answers = await self._ask(lambda meter: meter.settle.remote(request_id, replica, "finished", context))
        return next((each for each in answers or () if isinstance(each, bytes)), None)

    async def _ask(self, question: Callable[[ActorHandle[Any]], Awaitable[object]]) -> list[object] | None:
        """Every meter's answer, or the error that it was too late or raised; None when they couldn't be found."""

        async def answer(meter: ActorHandle[Any]) -> object:
            async with asyncio.timeout(self._meters_answer_within_s):
                return await question(meter)

        try:
            async with asyncio.timeout(self._meters_answer_within_s):
                meters = await asyncio.to_thread(self._meters)
        except Exception as away:  # noqa: BLE001 - whatever it is, the request must go on
            _LOG.warning("the meters were not found: %s", type(away).__name__)
            return None
        return list(await asyncio.gather(*map(answer, meters), return_exceptions=True))


async def _each(messages: AsyncIterator[ReplicaMessage]) -> AsyncGenerator[ReplicaItem, None]:
    async for message in messages:
        if isinstance(message, Opening):
            yield message.started
            yield message.first
        else:
            yield message


@dataclass(slots=True)
class _Attempt:
    """How far an attempt has come; ``is_whole``: only its receipt is missing."""

    request_id: str
    context: bytes
    replica: str = ""
    is_whole: bool = False


class _CutShort(Exception):
    """A replica stopped before the receipt."""


def _failure(broken: Exception) -> tuple[str, str]:
    """The word for it on the receipt, and a line for the log.

    What a replica raises comes by Ray's own way in a RayTaskError, and by gRPC as it is.
    """
    cause = broken.cause if isinstance(broken, RayTaskError) else broken
    if isinstance(cause, RayActorError):
        return "replica died", str(cause).partition("\n")[0]
    if isinstance(cause, DeploymentUnavailableError):
        return "unavailable", str(cause)
    if isinstance(cause, TimeoutError):
        return "timeout", "it was silent past its deadline"
    if isinstance(cause, NotBooked):
        return "its receipt cannot be stored now", str(cause)
    if isinstance(cause, SeamBroken):
        return "went on differently", str(cause)
    if isinstance(cause, _CutShort):
        return "cut short", "the replica stopped before the receipt"
    return "engine error", type(cause).__name__
