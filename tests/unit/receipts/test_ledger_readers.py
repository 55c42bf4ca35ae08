"""Readers for many tasks at once: bounded, and none waits for a commit."""

import asyncio
import threading

import pytest

from receipts.errors import LedgerUnavailable, ReadersBusy
from receipts.ledger_readers import MAX_CALLS, MAX_READING, LedgerReaders


class FakeReader:
    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


async def test_so_many_read_at_once_and_so_many_wait_and_no_more() -> None:
    readers = await LedgerReaders.open(FakeReader)
    go_on, reading, most = threading.Event(), [], []

    def read(_reader: FakeReader) -> str:
        reading.append(1)
        most.append(len(reading))
        go_on.wait(30)
        reading.pop()
        return threading.current_thread().name

    calls = [asyncio.create_task(readers.call(read)) for _ in range(MAX_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(ReadersBusy, match="try again"):
        await readers.call(read)
    go_on.set()
    names = await asyncio.gather(*calls)
    assert max(most) <= MAX_READING
    assert all(name.startswith("ledger-reader") for name in names)
    assert await readers.call(lambda reader: reader.is_closed) is False, "there is room again"
    await readers.close()


async def test_what_the_work_raises_comes_to_the_caller_and_leaves_room() -> None:
    readers = await LedgerReaders.open(FakeReader)

    def broken(_reader: FakeReader) -> None:
        raise LedgerUnavailable("gone")

    for _ in range(MAX_CALLS + 1):
        with pytest.raises(LedgerUnavailable, match="gone"):
            await readers.call(broken)
    await readers.close()


async def test_a_caller_that_gives_up_leaves_room() -> None:
    readers = await LedgerReaders.open(FakeReader)
    go_on = threading.Event()
    calls = [asyncio.create_task(readers.call(lambda _: go_on.wait(30))) for _ in range(MAX_CALLS)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    go_on.set()
    assert await readers.call(lambda _: "read") == "read"
    await readers.close()


async def test_closing_waits_for_what_is_read() -> None:
    reader = FakeReader()
    readers = await LedgerReaders.open(lambda: reader)
    go_on = threading.Event()
    call = asyncio.create_task(readers.call(lambda each: go_on.wait(30) and each.is_closed))
    await asyncio.sleep(0)
    closing = asyncio.create_task(readers.close())
    await asyncio.sleep(0)  # it is waiting now
    go_on.set()
    assert await call is False
    await closing
    assert reader.is_closed


async def test_one_that_does_not_open_says_why() -> None:
    def broken() -> FakeReader:
        raise LedgerUnavailable("no such file")

    with pytest.raises(LedgerUnavailable, match="no such file"):
        await LedgerReaders.open(broken)
