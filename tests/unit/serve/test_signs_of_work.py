import asyncio
import contextlib

import pytest

from serve.messages import Working
from serve.signs_of_work import ended, signs, with_signs

_EVERY_S = 0.001


class Counter:
    """Tokens at each time of asking."""

    def __init__(self, *counts: int) -> None:
        self._counts = list(counts)
        self.is_through = asyncio.Event()

    def __call__(self) -> int:
        if len(self._counts) == 1:
            self.is_through.set()
        return self._counts[0] if self.is_through.is_set() else self._counts.pop(0)


async def test_signs_come_only_where_tokens_were_made():
    count = Counter(0, 0, 3, 3, 5, 5)
    awaited = asyncio.ensure_future(count.is_through.wait())
    assert [sign async for sign in signs(awaited, count, _EVERY_S)] == [Working(), Working()]


async def test_what_is_there_at_once_needs_no_sign():
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    assert [sign async for sign in signs(done, Counter(0, 1, 2), _EVERY_S)] == []


async def test_events_pass_in_order_with_signs_between():
    count = Counter(0, 0, 1, 1, 2, 2)

    async def events():
        yield "first"
        await count.is_through.wait()
        yield "second"

    passed = [event async for event in with_signs(events(), count, _EVERY_S)]
    assert passed == ["first", Working(), Working(), "second"]


async def test_closing_it_ends_the_events():
    ends: list[str] = []

    async def events():
        try:
            yield "first"
            await asyncio.sleep(60)
        finally:
            ends.append("ended")

    async with contextlib.aclosing(with_signs(events(), Counter(0, 1, 2, 3), _EVERY_S)) as passed:
        assert await anext(passed) == "first"
        assert await anext(passed) == Working()
    assert ends == ["ended"]


async def test_an_error_of_the_events_is_passed_on():
    async def events():
        yield "first"
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        [event async for event in with_signs(events(), Counter(0), _EVERY_S)]


async def test_a_task_is_over_after_its_block():
    task = asyncio.ensure_future(asyncio.sleep(60))
    async with ended(task):
        pass
    assert task.cancelled()
