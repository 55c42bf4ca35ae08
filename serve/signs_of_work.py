"""Signs that an answer makes progress while nothing of it can be shown yet."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from serve.messages import Working

_Event = TypeVar("_Event")

SIGN_EVERY_S = 1.0


async def signs(
    awaited: asyncio.Future[Any], count: Callable[[], int], every_s: float = SIGN_EVERY_S
) -> AsyncGenerator[Working, None]:
    """Until it is there: one for each ``every_s`` seconds in which ``count``, the tokens made so far, has changed."""
    produced = count()
    while not (await asyncio.wait((awaited,), timeout=every_s))[0]:
        before, produced = produced, count()
        if produced != before:
            yield Working()


async def with_signs(
    events: AsyncGenerator[_Event, None], count: Callable[[], int], every_s: float = SIGN_EVERY_S
) -> AsyncGenerator[_Event | Working, None]:
    """The events, and signs in the silence between them."""
    async with aclosing(events):
        while True:
            following = asyncio.ensure_future(anext(events, None))
            async with ended(following):
                async for sign in signs(following, count, every_s):
                    yield sign
            if (event := following.result()) is None:
                return
            yield event


@asynccontextmanager
async def ended(task: asyncio.Future[Any]) -> AsyncIterator[None]:
    """Nothing of the task runs on after the block."""
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
