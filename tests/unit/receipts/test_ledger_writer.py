"""Many tasks, one writer: commits are shared, outcomes are not."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from metering.settlement import Settlement
from receipts.errors import LedgerUnavailable, LedgerUnusable, SettlementRefused
from receipts.ledger import Ledger
from receipts.ledger_writer import MAX_COMMIT, LedgerWriter
from receipts.stored_receipt import StoredReceipt


class SlowDisk:
    """A ledger whose commits wait for the test; it notes how many settlements each had."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.commits: list[int] = []
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.fails_with: Exception | None = None
        self.threads: set[int] = set()

    def settle(self, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        self.may_commit.wait(10)
        self.threads.add(threading.get_ident())
        self.commits.append(len(settlements))
        if self.fails_with is not None:
            raise self.fails_with
        return self.ledger.settle(settlements)

    def __getattr__(self, name: str):
        return getattr(self.ledger, name)


def open_ledger(path: Path) -> Ledger:
    ledger = Ledger.open(f"sqlite:///{path}", wall_clock_ns=time.time_ns, random_bytes=os.urandom, key_id="0" * 16)
    ledger.create_key("acme", "")
    return ledger


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[LedgerWriter, SlowDisk]]:
    disks: list[SlowDisk] = []

    def open_slow() -> SlowDisk:
        disks.append(SlowDisk(open_ledger(path)))
        return disks[0]

    writer = await LedgerWriter.open(open_slow)  # type: ignore[arg-type]
    try:
        yield writer, disks[0]
    finally:
        await writer.call(lambda disk: disk.close())


async def gather(writer: LedgerWriter, settlements: Sequence[Settlement]) -> list:
    return await asyncio.gather(*map(writer.settle, settlements), return_exceptions=True)


async def test_a_lone_settlement_does_not_wait(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as (writer, disk):
        stored = await writer.settle(make_settlement(1))
        assert stored is not None
        assert (stored.seq, disk.commits) == (1, [1])


async def test_what_queues_up_during_a_commit_shares_the_next(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as (writer, disk):
        disk.may_commit.clear()
        first = asyncio.create_task(writer.settle(make_settlement(1)))
        await asyncio.sleep(0.01)
        rest = asyncio.create_task(gather(writer, [make_settlement(n) for n in range(2, 152)]))
        await asyncio.sleep(0.01)
        disk.may_commit.set()
        assert (await first).seq == 1
        assert [each.seq for each in await rest] == list(range(2, 152))
        assert disk.commits == [1, MAX_COMMIT, MAX_COMMIT, 150 - 2 * MAX_COMMIT]
        assert len(disk.threads) == 1


async def test_the_same_settlement_twice_in_one_commit_is_one_receipt(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as (writer, _):
        first, second = await gather(writer, [make_settlement(1), make_settlement(1)])
        assert first == second


async def test_a_refused_settlement_fails_alone(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as (writer, _):
        wrong = make_settlement(2, "nobody"), make_settlement(4, context=b"")
        outcomes = await gather(
            writer, [make_settlement(1), wrong[0], make_settlement(3), wrong[1], make_settlement(5)]
        )
        assert [isinstance(each, SettlementRefused) for each in outcomes] == [False, True, False, True, False]
        assert [outcomes[n].seq for n in (0, 2, 4)] == [1, 2, 3]


@pytest.mark.parametrize("error", [LedgerUnavailable("disk full"), RuntimeError("a defect")])
async def test_a_failed_commit_is_raised_to_all_and_the_next_one_goes_on(
    tmp_path: Path, make_settlement, error: Exception
) -> None:
    async with opened(tmp_path / "l.db") as (writer, disk):
        disk.fails_with = error
        settlements = [make_settlement(n) for n in (1, 2, 3)]
        assert await gather(writer, settlements) == [error] * 3
        disk.fails_with = None
        assert [each.seq for each in await gather(writer, settlements)] == [1, 2, 3]


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_nobody_waits_for_a_writer_that_stopped_and_the_next_one_is_stored(
    tmp_path: Path, make_settlement, is_cancelled: bool
) -> None:
    async with opened(tmp_path / "l.db") as (writer, disk):
        disk.may_commit.clear()
        settling = [asyncio.create_task(writer.settle(make_settlement(n))) for n in range(1, MAX_COMMIT + 9)]
        await asyncio.sleep(0.01)
        committing = writer._committing
        assert committing is not None
        if is_cancelled:
            committing.cancel()
        else:
            disk.fails_with = SettlementRefused("nobody's", "a defect")
            disk.may_commit.set()
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*settling, return_exceptions=True)
        assert {type(each) for each in outcomes} == {LedgerUnavailable}
        with pytest.raises(asyncio.CancelledError if is_cancelled else AssertionError):
            await committing
        disk.fails_with = None
        disk.may_commit.set()
        assert (await asyncio.wait_for(writer.settle(make_settlement(1)), 5)).receipt_id == f"rcpt_{1:032x}"


async def test_a_caller_that_gives_up_loses_nothing(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as (writer, disk):
        disk.may_commit.clear()
        given_up = asyncio.create_task(writer.settle(make_settlement(1)))
        staying = asyncio.create_task(writer.settle(make_settlement(2)))
        await asyncio.sleep(0.01)
        given_up.cancel()
        disk.may_commit.set()
        assert (await staying).seq == 2
        assert (await writer.receipt(f"rcpt_{1:032x}", "acme")).seq == 1


async def test_closing_commits_what_is_queued_and_lets_go(tmp_path: Path, make_settlement) -> None:
    path = tmp_path / "l.db"
    writer = await LedgerWriter.open(lambda: open_ledger(path))
    tasks = [asyncio.create_task(writer.settle(make_settlement(n))) for n in (1, 2, 3)]
    await asyncio.sleep(0)
    await writer.close()
    assert [(await each).seq for each in tasks] == [1, 2, 3]
    with pytest.raises(RuntimeError):
        await writer.settle(make_settlement(4))
    ledger = open_ledger(path)
    assert len(ledger.waiting()) == 3
    ledger.close()


class TestWaitingForTheSignature:
    async def test_it_comes_while_waiting(self, tmp_path: Path, make_settlement) -> None:
        async with opened(tmp_path / "l.db") as (writer, _):
            stored = await writer.settle(make_settlement(1))
            waiting = [
                asyncio.create_task(writer.receipt(stored.receipt_id, "acme", wait_for_signature_s=10))
                for _ in range(3)
            ]
            await asyncio.sleep(0.02)
            assert not any(each.done() for each in waiting)
            await writer.attach_signatures({stored.receipt_id: bytes(64)})
            assert [(await each).signature for each in waiting] == [bytes(64)] * 3
            assert writer._arrivals == {}

    async def test_it_does_not_come(self, tmp_path: Path, make_settlement) -> None:
        async with opened(tmp_path / "l.db") as (writer, _):
            stored = await writer.settle(make_settlement(1))
            assert await writer.receipt(stored.receipt_id, "acme", wait_for_signature_s=0.02) == stored
            assert writer._arrivals == {}

    async def test_it_comes_between_reading_and_waiting(self, tmp_path: Path, make_settlement) -> None:
        async with opened(tmp_path / "l.db") as (writer, _):
            stored = await writer.settle(make_settlement(1))
            reading = asyncio.create_task(writer.receipt(stored.receipt_id, "acme", wait_for_signature_s=10))
            signing = asyncio.create_task(writer.attach_signatures({stored.receipt_id: bytes(64)}))
            assert (await asyncio.wait_for(reading, 2)).signature == bytes(64)
            await signing

    async def test_none_is_waited_for_where_there_is_no_receipt(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "l.db") as (writer, _):
            async with asyncio.timeout(2):
                assert await writer.receipt("rcpt_none", "acme", wait_for_signature_s=10) is None


async def test_an_error_of_opening_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    path.write_bytes(b"this is no database at all " * 100)
    with pytest.raises(LedgerUnusable):
        await LedgerWriter.open(lambda: open_ledger(path))
