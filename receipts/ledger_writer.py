"""The ledger for many tasks at once: one thread writes, and concurrent settlements share its commits."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from metering.settlement import Settlement
from receipts.api_keys import ApiKey
from receipts.errors import LedgerError, LedgerInUse, LedgerUnavailable, SettlementRefused
from receipts.holds import HoldBook
from receipts.ledger import Ledger
from receipts.standing import Standing
from receipts.stored_receipt import StoredReceipt

MAX_COMMIT: Final = 64
"""Settlements in one commit. Past this, rows cost as much as the sync to disk that they share."""

_FAILS_FOR_NS: Final = 30 * 10**9

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Receipts that wait for their signature, and when the oldest of them was stored; None when none waits."""

    count: int
    oldest_unix_ns: int | None


@dataclass(slots=True)
class _Queued:
    settlement: Settlement
    stored: "asyncio.Future[StoredReceipt | None]"


@dataclass(slots=True)
class _Arrival:
    """A signature that tasks wait for."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0


class LedgerWriter:
    """Owns a `Ledger` and the one thread that calls it; belongs to one event loop.

    No settlement waits for company: a commit takes what queued up while the one before was on its way to the disk.
    """

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        ledger: Ledger,
        waiting: dict[str, int],
        wall_clock_ns: Callable[[], int],
        holds: HoldBook | None,
    ) -> None:
        """``waiting`` are the receipts without a signature: by id, when each was stored, the oldest first."""
        self._thread = thread
        self._ledger = ledger
        self._wall_clock_ns = wall_clock_ns
        # Changed in the writer's thread only, in which receipts are stored and signatures attached one after the other.
        self._waiting = waiting
        self._must_recount = False
        self._backlog = _backlog(waiting)
        self._queue: deque[_Queued] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._arrivals: dict[str, _Arrival] = {}
        self._stored = asyncio.Event()
        self._holds = holds
        self._failed_ns: int | None = None

    @classmethod
    async def open(
        cls,
        open_ledger: Callable[[], Ledger],
        *,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        holds: HoldBook | None = None,
    ) -> Self:
        """Open the ledger in the thread that will write; raises what ``open_ledger`` does.

        In ``holds`` the hold of a request ends with its receipt's commit.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger-writer")
        try:
            ledger, waiting = await asyncio.get_running_loop().run_in_executor(thread, _opened, open_ledger)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(thread, ledger, waiting, wall_clock_ns, holds)

    @property
    def backlog(self) -> Backlog:
        """The receipts that wait for their signature, as of the last commit; no I/O."""
        return self._backlog

    @property
    def is_storing(self) -> bool:
        """False once the database did not take a commit, until it takes one.

        Or until none was tried for half a minute, which no meter lets pass that has a settlement to deliver.
        """
        return self._failed_ns is None or self._wall_clock_ns() - self._failed_ns > _FAILS_FOR_NS

    async def call(self, work: Callable[[Ledger], _Result]) -> _Result:
        """Do ``work`` in the writer's thread, after what it is doing now; raises what ``work`` does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._ledger)

    async def balance_usd_picos(self, account: str) -> int:
        """As `Ledger.balance_usd_picos`; after the first time without a wait for the writer's thread.

        A charge is off it from its commit on, a moment before `settle` returns and the request's hold ends.
        """
        balance = self._ledger.cached_balance_usd_picos(account)
        if balance is not None:
            return balance
        read = await self.call(lambda ledger: ledger.balance_usd_picos(account))
        # A commit may have come since: what is cached has it.
        balance = self._ledger.cached_balance_usd_picos(account)
        return read if balance is None else balance

    async def key_of(self, secret: str) -> ApiKey | None:
        """As `Ledger.key_of`; after the first time without a wait for the writer's thread."""
        are_known, key = self._ledger.cached_key_of(secret)
        return key if are_known else await self.call(lambda ledger: ledger.key_of(secret))

    async def standing(self, account: str, key_sha256: bytes, api_key_id: str, workload: str | None) -> Standing:
        """As `Ledger.standing`; without a wait for the writer's thread where all of it is remembered.

        A charge is off the balance, and drawn of the budgets, from its commit on, a moment before `settle` returns and
        the request's hold ends.
        """
        about = (account, key_sha256, api_key_id, workload)
        standing = self._ledger.cached_standing(*about)
        if standing is not None:
            return standing
        read = await self.call(lambda ledger: ledger.standing(*about))
        # A commit may have come since: what is remembered has it.
        return self._ledger.cached_standing(*about) or read

    async def settle(self, settlement: Settlement) -> StoredReceipt | None:
        """As `Ledger.settle` for one settlement; durable when it returns. A caller that gives up changes nothing.

        Raises:
            SettlementRefused: this settlement cannot be stored; those in the same commit are not affected.
            LedgerError: the commit failed; nothing of it was stored.
        """
        loop = asyncio.get_running_loop()
        queued = _Queued(settlement, loop.create_future())
        self._queue.append(queued)
        if self._committing is None:
            self._committing = loop.create_task(self._commit_all())
        return await queued.stored

    async def receipt(
        self, receipt_id: str, account: str, *, wait_for_signature_s: float = 0.0
    ) -> StoredReceipt | None:
        """As `Ledger.receipt`; while the receipt is unsigned, wait at most so long for its signature."""
        with self._arrival(receipt_id) as signed:
            stored = await self.call(lambda ledger: ledger.receipt(receipt_id, account))
            if stored is None or stored.signature is not None or wait_for_signature_s <= 0:
                return stored
            try:
                async with asyncio.timeout(wait_for_signature_s):
                    await signed.wait()
            except TimeoutError:
                return stored
            return await self.call(lambda ledger: ledger.receipt(receipt_id, account))

    async def attach_signatures(self, signatures: Mapping[str, bytes]) -> Sequence[int]:
        """As `Ledger.attach_signatures`; wakes those who wait for one of them.

        Gives how long the receipts had waited for them, in nanoseconds.
        """
        waited_ns = await self.call(lambda ledger: self._attach(ledger, signatures))
        for receipt_id in signatures:
            if receipt_id in self._arrivals:
                self._arrivals[receipt_id].event.set()
        return waited_ns

    async def new_receipts(self, wait_s: float | None) -> None:
        """Return once receipts were stored since the last call, or after ``wait_s``. For one task at a time."""
        try:
            async with asyncio.timeout(wait_s):
                await self._stored.wait()
        except TimeoutError:
            return
        self._stored.clear()

    async def close(self) -> None:
        """Commit what is queued, then close the ledger."""
        if self._committing is not None:
            await self._committing
        await self.call(Ledger.close)
        self._thread.shutdown(wait=False)

    @contextmanager
    def _arrival(self, receipt_id: str) -> Iterator[asyncio.Event]:
        """Listen for a signature from before the receipt is read, so that none slips between."""
        arrival = self._arrivals.setdefault(receipt_id, _Arrival())
        arrival.waiting += 1
        try:
            yield arrival.event
        finally:
            arrival.waiting -= 1
            if not arrival.waiting:
                del self._arrivals[receipt_id]

    async def _commit_all(self) -> None:
        taken: list[_Queued] = []
        try:
            while self._queue:
                taken = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_COMMIT))]
                await self._commit(taken)
        finally:
            # Nobody is left without an answer, also where this was cancelled, or went wrong.
            self._committing = None
            _fail([*taken, *self._queue], LedgerUnavailable("the ledger stopped while it stored this; settle it again"))
            self._queue.clear()

    async def _commit(self, batch: list[_Queued]) -> None:
        """Give each its outcome; a settlement that is refused leaves the batch, and the rest is tried again."""
        while batch:
            settlements = [each.settlement for each in batch]
            try:
                outcomes = await self.call(lambda ledger, taken=settlements: self._settle(ledger, taken))  # type: ignore[misc]
            except SettlementRefused as refused:
                culprits = [each for each in batch if each.settlement.request_id == refused.request_id]
                assert culprits, "a settlement was refused that was not offered"
                _fail(culprits, refused)
                batch = [each for each in batch if each not in culprits]
            except Exception as error:  # noqa: BLE001 - each caller gets it raised
                if isinstance(error, LedgerUnavailable | LedgerInUse):
                    self._failed_ns = self._wall_clock_ns()
                _fail(batch, error)
                return
            else:
                self._failed_ns = None
                self._stored.set()
                for each, stored in zip(batch, outcomes, strict=True):
                    self._end_hold(each.settlement, stored)
                    if not each.stored.done():
                        each.stored.set_result(stored)
                return

    def _end_hold(self, settlement: Settlement, stored: StoredReceipt | None) -> None:
        """With its receipt, also that of an aborted request, a request has cost all that it ever will.

        A failed attempt makes none: the request may be on its way to another pool, under the same hold.
        """
        if self._holds is not None and stored is not None:
            self._holds.end(stored.account, settlement.request_id)

    def _settle(self, ledger: Ledger, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        self._recount(ledger)
        with self._counted_anew():
            outcomes = ledger.settle(settlements)
        now_ns = self._wall_clock_ns()
        for stored in outcomes:
            if stored is not None and stored.signature is None:
                self._waiting.setdefault(stored.receipt_id, now_ns)
        self._backlog = _backlog(self._waiting)
        return outcomes

    def _attach(self, ledger: Ledger, signatures: Mapping[str, bytes]) -> Sequence[int]:
        self._recount(ledger)
        with self._counted_anew():
            ledger.attach_signatures(signatures)
        now_ns = self._wall_clock_ns()
        stored_ns = [self._waiting.pop(each) for each in signatures if each in self._waiting]
        self._backlog = _backlog(self._waiting)
        return [max(0, now_ns - each) for each in stored_ns]

    @contextmanager
    def _counted_anew(self) -> Iterator[None]:
        """When it fails, the connection may have been lost after the commit: what was written is there, or isn't."""
        try:
            yield
        except LedgerError:
            self._must_recount = True
            raise

    def _recount(self, ledger: Ledger) -> None:
        """Before anything is written: a count that fails must not make a commit look as if it had."""
        if self._must_recount:
            self._waiting = ledger.waiting()
            self._must_recount = False


def _opened(open_ledger: Callable[[], Ledger]) -> tuple[Ledger, dict[str, int]]:
    ledger = open_ledger()
    try:
        return ledger, ledger.waiting()
    except BaseException:
        ledger.close()
        raise


def _backlog(waiting: Mapping[str, int]) -> Backlog:
    return Backlog(count=len(waiting), oldest_unix_ns=next(iter(waiting.values()), None))


def _fail(batch: list[_Queued], error: Exception) -> None:
    for each in batch:
        if not each.stored.done():
            each.stored.set_exception(error)
