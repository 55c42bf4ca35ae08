"""How long an attempt may be silent."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds until an attempt is given up: without a first token, between tokens, and for a whole unary answer."""

    first_token_s: float
    between_tokens_s: float
    unary_s: float

    def limits(self, *, is_stream: bool) -> Iterator[float]:
        """The limit of each item in turn, without end."""
        yield self.first_token_s if is_stream else self.unary_s
        yield from itertools.repeat(self.between_tokens_s)


async def within(items: AsyncIterator[_Item], limits: Iterable[float]) -> AsyncGenerator[_Item, None]:
    """Pass items on, each within its limit in seconds.

    Raises:
        TimeoutError: one did not come in time.
    """
    for limit_s in limits:
        async with asyncio.timeout(limit_s):
            item = await anext(items, None)
        if item is None:
            return
        yield item
