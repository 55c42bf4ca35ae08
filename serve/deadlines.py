"""How long an attempt may be silent."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from serve.messages import Payload, ReplicaItem, Working
from serve.signs_of_work import SIGN_EVERY_S

_Item = TypeVar("_Item")

LimitAfter = Callable[[ReplicaItem | None], float]
"""Seconds that an attempt has for the item after this one; None stands before the first."""

BOOKED_WITHIN_S = 30.0
"""How long a whole answer may wait for its receipt: longer than a meter waits for a ledger that is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds until an attempt is given up: without a first token, and between tokens, also of a unary answer."""

    first_token_s: float
    between_tokens_s: float

    @property
    def stalled_s(self) -> float:
        """Past this, an engine that gives nothing and computes nothing while it has requests has stalled."""
        return max(self.first_token_s, self.between_tokens_s)

    def limit(self, last: ReplicaItem | None, *, is_stream: bool, wake_s: float) -> float:
        """Seconds for the item after ``last``; the first one's include what its pool needs to wake up.

        A sign of work tells of its tokens up to `SIGN_EVERY_S` late.
        """
        if last is None:
            return self.first_token_s + wake_s
        if isinstance(last, Payload) and last.is_last(is_stream=is_stream):
            return BOOKED_WITHIN_S
        by_signs = not is_stream or isinstance(last, Working)
        return self.between_tokens_s + (SIGN_EVERY_S if by_signs else 0.0)


async def within(
    items: AsyncIterator[_Item], limit_after: Callable[[_Item | None], float], give_up: Callable[[], Awaitable[None]]
) -> AsyncGenerator[_Item, None]:
    """Pass items on, each within so many seconds after the one before it (None before the first).

    Where one is late, ``give_up`` is awaited first and the waiting cancelled only then: a source may take that for
    its client's going, and tell others so.

    Raises:
        TimeoutError: one did not come in time, or while it was given up.
    """
    loop = asyncio.get_running_loop()
    item: _Item | None = None
    while True:
        giving_up: list[asyncio.Task[None]] = []
        async with asyncio.timeout(None) as waiting:

            def is_late(waiting: asyncio.Timeout = waiting, giving_up: list[asyncio.Task[None]] = giving_up) -> None:
                giving_up.append(loop.create_task(_end(waiting, give_up)))

            timer = loop.call_later(limit_after(item), is_late)
            try:
                item = await anext(items, None)
                if giving_up:
                    await giving_up[0]
            finally:
                timer.cancel()
        if giving_up:
            raise TimeoutError
        if item is None:
            return
        yield item


async def _end(waiting: asyncio.Timeout, give_up: Callable[[], Awaitable[None]]) -> None:
    try:
        await give_up()
    finally:
        with suppress(RuntimeError):  # the waiting ended meanwhile
            waiting.reschedule(asyncio.get_running_loop().time())
