"""The ledger's reader for many tasks at once, in threads of its own: what is read never holds up a commit."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar

from receipts.errors import ReadersBusy
from receipts.ledger_reader import LedgerReader

MAX_READING: Final = 2
"""Reading at once. A page is some milliseconds of the same processor that commits; more threads are no faster."""
MAX_CALLS: Final = 64
"""Under way and waiting together; a client has one page under way at a time."""

_Result = TypeVar("_Result")


class LedgerReaders:
    """Owns a `LedgerReader` and the threads that call it; belongs to one event loop."""

    def __init__(self, threads: ThreadPoolExecutor, reader: LedgerReader) -> None:
        self._threads = threads
        self._reader = reader
        self._calls = 0

    @classmethod
    async def open(cls, open_reader: Callable[[], LedgerReader]) -> Self:
        """Open the reader; raises what ``open_reader`` does."""
        threads = ThreadPoolExecutor(max_workers=MAX_READING, thread_name_prefix="ledger-reader")
        try:
            reader = await asyncio.get_running_loop().run_in_executor(threads, open_reader)
        except BaseException:
            threads.shutdown(wait=False)
            raise
        return cls(threads, reader)

    async def call(self, work: Callable[[LedgerReader], _Result]) -> _Result:
        """Do ``work`` when its turn comes; raises what ``work`` does.

        Raises:
            ReadersBusy: `MAX_CALLS` are under way or waiting.
        """
        if self._calls >= MAX_CALLS:
            raise ReadersBusy("too many want to read receipts at once; try again in a moment")
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, self._reader)
        finally:
            self._calls -= 1

    async def close(self) -> None:
        """Close the reader once nobody reads."""
        await asyncio.to_thread(self._threads.shutdown)
        self._reader.close()
