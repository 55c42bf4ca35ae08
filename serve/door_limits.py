"""What one ingress takes on at a time, and how long it waits for a client that doesn't read its answer."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.request_body import BODY_WITHIN_S

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """``most_requests`` are under way in one ingress; ``slow_reader_s`` is what a client may take to read on, and
    ``body_s`` to send all of a body.
    """

    most_requests: int
    slow_reader_s: float
    body_s: float = BODY_WITHIN_S


class LimitedDoor:
    """ASGI middleware: refuses what is more than the limit, and gives up answers that nobody reads.

    An answer is given up by an error inside the application's sending, as if the client had gone: what ran until then
    is its account's, and its place in an engine is free. The server below must make its sender wait while the client's
    connection is full, as uvicorn does. Ray's own proxy takes all of an answer in; with it no reader is slow here, and
    none holds up an engine.
    """

    def __init__(self, app: ASGIApp, limits: DoorLimits, refuse: Callable[[Scope], ASGIApp]) -> None:
        """``refuse`` makes the answer to a request for which there is no room."""
        self._app = app
        self._limits = limits
        self._refuse = refuse
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._limits.most_requests:
            await self._refuse(scope)(scope, receive, send)
            return

        async def timely_send(message: Message) -> None:
            try:
                async with asyncio.timeout(self._limits.slow_reader_s) as waiting:
                    await send(message)
            except TimeoutError:
                if waiting.expired():
                    raise _ReaderTooSlow from None
                raise

        self._under_way += 1
        try:
            await self._app(scope, receive, timely_send)
        except _ReaderTooSlow:
            _LOG.warning(
                "request %s: its client did not read on within %g s (deadlines.slow_reader_s)",
                scope.get("state", {}).get("request_id"),
                self._limits.slow_reader_s,
            )
        finally:
            self._under_way -= 1


class _ReaderTooSlow(Exception):
    """The client's connection stayed full."""
