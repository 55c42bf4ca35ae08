"""Readers for many tasks at once: bounded, and none waits for a commit."""

import asyncio
import threading

import pytest

from receipts.errors import LedgerUnavailable, ReadersBusy
from receipts.ledger_readers import MAX_CALLS, MAX_CALLS_OF_ACCOUNT, MAX_READING, LedgerReaders


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

    calls = [asyncio.create_task(readers.call(str(number % 16), read)) for number in range(MAX_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(ReadersBusy, match="try again"):
        await readers.call("another", read)
    go_on.set()
    names = await asyncio.gather(*calls)
    assert max(most) <= MAX_READING
    assert all(name.startswith("ledger-reader") for name in names)
    assert await readers.call("0", lambda reader: reader.is_closed) is False, "there is room again"
    await readers.close()


async def test_one_account_takes_no_more_than_its_part() -> None:
    readers = await LedgerReaders.open(FakeReader)
    go_on = threading.Event()
    calls = [asyncio.create_task(readers.call("acme", lambda _: go_on.wait(30))) for _ in range(MAX_CALLS_OF_ACCOUNT)]
    await asyncio.sleep(0)
    with pytest.raises(ReadersBusy, match="4 times at once already"):
        await readers.call("acme", lambda _: "read")
    other = asyncio.create_task(readers.call("other", lambda _: "read"))
    await asyncio.sleep(0)
    assert not other.done(), "it waits for its turn, and has one"
    go_on.set()
    assert await other == "read"
    await asyncio.gather(*calls)
    assert await readers.call("acme", lambda _: "read") == "read", "there is room again"
    await readers.close()


async def test_what_others_wait_for_does_not_stand_in_line() -> None:
    readers = await LedgerReaders.open(FakeReader)
    go_on = threading.Event()
    calls = [
        asyncio.create_task(readers.call(str(number % 16), lambda _: go_on.wait(30))) for number in range(MAX_CALLS)
    ]
    await asyncio.sleep(0)
    assert await readers.call_promptly(lambda _: "read") == "read"
    assert not any(call.done() for call in calls)
    go_on.set()
    await asyncio.gather(*calls)
    await readers.close()


async def test_what_the_work_raises_comes_to_the_caller_and_leaves_room() -> None:
    readers = await LedgerReaders.open(FakeReader)

    def broken(_reader: FakeReader) -> None:
        raise LedgerUnavailable("gone")

    for _ in range(MAX_CALLS + 1):
        with pytest.raises(LedgerUnavailable, match="gone"):
            await readers.call("acme", broken)
    await readers.close()


async def test_a_caller_that_gives_up_leaves_room() -> None:
    readers = await LedgerReaders.open(FakeReader)
    go_on = threading.Event()
    calls = [asyncio.create_task(readers.call("acme", lambda _: go_on.wait(30))) for _ in range(MAX_CALLS_OF_ACCOUNT)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    go_on.set()
    assert await readers.call("acme", lambda _: "read") == "read"
    await readers.close()


async def test_closing_waits_for_what_is_read() -> None:
    reader = FakeReader()
    readers = await LedgerReaders.open(lambda: reader)
    go_on = threading.Event()
    call = asyncio.create_task(readers.call("acme", lambda each: go_on.wait(30) and each.is_closed))
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
