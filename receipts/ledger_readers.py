"""The ledger's reader for many tasks at once, in threads of its own: what is read never holds up a commit.

No account gets more than its part: what one asks for at once is bounded, so that the others' calls find room.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self, TypeVar

from receipts.errors import ReadersBusy
from receipts.ledger_reader import LedgerReader

MAX_READING: Final = 2
"""Reading at once. A page is some milliseconds of the same processor that commits; more threads are no faster."""
MAX_CALLS: Final = 64
"""Under way and waiting together; a client has one page under way at a time."""
MAX_CALLS_OF_ACCOUNT: Final = 4
"""Of those, one account's."""

_Result = TypeVar("_Result")


class LedgerReaders:
    """Owns a `LedgerReader` and the threads that call it; belongs to one event loop."""

    def __init__(self, threads: ThreadPoolExecutor, reader: LedgerReader) -> None:
        self._threads = threads
        # What holds up others while it reads does not stand in line with those who only read.
        self._prompt_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger-reader-prompt")
        self._reader = reader
        self._calls: Counter[str] = Counter()

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

    async def call(self, account: str, work: Callable[[LedgerReader], _Result]) -> _Result:
        """Do the account's ``work`` when its turn comes; raises what ``work`` does.

        Raises:
            ReadersBusy: `MAX_CALLS_OF_ACCOUNT` of the account, or `MAX_CALLS` of all, are under way or waiting.
        """
        if self._calls[account] >= MAX_CALLS_OF_ACCOUNT:
            raise ReadersBusy(
                f"the account is reading {MAX_CALLS_OF_ACCOUNT} times at once already; wait for an answer first"
            )
        if self._calls.total() >= MAX_CALLS:
            raise ReadersBusy("too many are reading receipts just now; try again in a moment")
        self._calls[account] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, self._reader)
        finally:
            self._calls[account] -= 1
            if not self._calls[account]:
                del self._calls[account]

    async def call_promptly(self, work: Callable[[LedgerReader], _Result]) -> _Result:
        """Do short ``work`` that others wait for, past all who wait in `call`; raises what ``work`` does."""
        return await asyncio.get_running_loop().run_in_executor(self._prompt_thread, work, self._reader)

    async def close(self) -> None:
        """Close the reader once nobody reads."""
        for threads in (self._threads, self._prompt_thread):
            await asyncio.to_thread(threads.shutdown)
        self._reader.close()
