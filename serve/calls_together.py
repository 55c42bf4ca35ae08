"""Calls of one remote method that go together, for each costs a millisecond of processor time whatever is in it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

MOST_TOGETHER: Final = 16
"""Settlements and receipts of so many are below the 100 kB that Ray puts into a message itself."""
_MOST_UNDER_WAY: Final = 2
"""One at work over there, one on its way."""


class CallsTogether(Generic[_Asked, _Answer]):
    """Nothing waits for company: what comes while two calls are under way goes in the next, in the order in which it
    came. Belongs to one event loop.

    ``call`` gives an answer to each of what it is asked, in order; an exception among them is raised where it belongs,
    one that it raises everywhere.
    """

    def __init__(self, call: Callable[[Sequence[_Asked]], Awaitable[Sequence[_Answer | BaseException]]]) -> None:
        self._call = call
        self._waiting: deque[tuple[_Asked, asyncio.Future[_Answer]]] = deque()
        self._under_way = 0
        self._calling: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: _Asked) -> _Answer:
        """The answer to this one. Whoever is cancelled before it was sent has not asked."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._under_way < _MOST_UNDER_WAY:
            self._under_way += 1
            calling = asyncio.create_task(self._call_for_all())
            self._calling.add(calling)
            calling.add_done_callback(self._calling.discard)
        return await answer

    async def _call_for_all(self) -> None:
        try:
            while batch := self._next():
                await self._call_for(batch)
        finally:
            self._under_way -= 1  # at once: whoever comes before this task counts as done would be left waiting

    async def _call_for(self, batch: Sequence[tuple[_Asked, "asyncio.Future[_Answer]"]]) -> None:
        futures = [answer for _, answer in batch]
        answers: list[tuple[asyncio.Future[_Answer], _Answer | BaseException]]
        try:
            answers = list(zip(futures, await self._call([asked for asked, _ in batch]), strict=True))
        except Exception as error:  # noqa: BLE001 - each caller gets it raised
            answers = [(answer, error) for answer in futures]
        for answer, given in answers:
            if answer.done():
                continue
            if isinstance(given, BaseException):
                answer.set_exception(given)
            else:
                answer.set_result(given)

    def _next(self) -> list[tuple[_Asked, asyncio.Future[_Answer]]]:
        batch: list[tuple[_Asked, asyncio.Future[_Answer]]] = []
        while self._waiting and len(batch) < MOST_TOGETHER:
            asked, answer = self._waiting.popleft()
            if not answer.cancelled():
                batch.append((asked, answer))
        return batch
