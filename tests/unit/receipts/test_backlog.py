"""How many receipts wait for their signature, known without asking the database."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from metering.settlement import Settlement
from receipts.errors import LedgerUnavailable
from receipts.ledger import Ledger
from receipts.ledger_writer import Backlog, LedgerWriter
from receipts.stored_receipt import StoredReceipt


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1000

    def __call__(self) -> int:
        return self.now_ns


class LostAnswer:
    """A ledger over a connection that can break when a commit is done and its answer on the way back."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.loses_answers = False

    def attach_signatures(self, signatures: Mapping[str, bytes]) -> None:
        self.ledger.attach_signatures(signatures)
        if self.loses_answers:
            raise LedgerUnavailable("the connection was lost")

    def settle(self, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        outcomes = self.ledger.settle(settlements)
        if self.loses_answers:
            raise LedgerUnavailable("the connection was lost")
        return outcomes

    def __getattr__(self, name: str):
        return getattr(self.ledger, name)


@asynccontextmanager
async def opened(path: Path, clock: Clock) -> AsyncIterator[tuple[LedgerWriter, LostAnswer]]:
    ledgers: list[LostAnswer] = []

    def open_ledger() -> LostAnswer:
        ledger = Ledger.open(f"sqlite:///{path}", wall_clock_ns=clock, random_bytes=os.urandom, key_id="0" * 16)
        if not ledger.has_keys():
            ledger.create_key("acme", "")
        ledgers.append(LostAnswer(ledger))
        return ledgers[0]

    writer = await LedgerWriter.open(open_ledger, wall_clock_ns=clock)  # type: ignore[arg-type]
    try:
        yield writer, ledgers[0]
    finally:
        await writer.close()


def signatures(*numbers: int) -> dict[str, bytes]:
    return {f"rcpt_{number:032x}": bytes(64) for number in numbers}


async def test_it_is_kept_by_commits_and_signatures_and_counted_at_open(tmp_path: Path, make_settlement) -> None:
    clock = Clock()
    async with opened(tmp_path / "l.db", clock) as (writer, _):
        assert writer.backlog == Backlog(count=0, oldest_unix_ns=None)
        await writer.settle(make_settlement(1))
        clock.now_ns = 2000
        await asyncio.gather(*(writer.settle(make_settlement(n)) for n in (2, 3, 1)))
        assert writer.backlog == Backlog(count=3, oldest_unix_ns=1000)
        clock.now_ns = 2500
        assert await writer.attach_signatures(signatures(1)) == [1500]
        assert writer.backlog == Backlog(count=2, oldest_unix_ns=2000)
        await writer.settle(make_settlement(1))
        assert writer.backlog.count == 2, "a receipt that is signed does not wait again"
    async with opened(tmp_path / "l.db", clock) as (writer, _):
        assert writer.backlog == Backlog(count=2, oldest_unix_ns=2000)
        await writer.attach_signatures(signatures(2, 3, 1))
        assert writer.backlog == Backlog(count=0, oldest_unix_ns=None)


async def test_a_failed_attempt_does_not_wait(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db", Clock()) as (writer, _):
        await writer.settle(make_settlement(1, outcome="failed"))
        assert writer.backlog.count == 0


async def test_it_is_counted_anew_when_nobody_knows_whether_a_commit_was_made(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db", Clock()) as (writer, ledger):
        await writer.settle(make_settlement(1))
        ledger.loses_answers = True
        with pytest.raises(LedgerUnavailable):
            await writer.attach_signatures(signatures(1))
        ledger.loses_answers = False
        await writer.settle(make_settlement(2))
        assert writer.backlog.count == 1


async def test_a_clock_that_went_back_makes_no_negative_wait(tmp_path: Path, make_settlement) -> None:
    clock = Clock()
    async with opened(tmp_path / "l.db", clock) as (writer, _):
        await writer.settle(make_settlement(1))
        clock.now_ns = 1
        assert await writer.attach_signatures(signatures(1)) == [0]


async def test_receipts_of_a_commit_whose_answer_was_lost_are_counted_with_the_next_write(
    tmp_path: Path, make_settlement
) -> None:
    async with opened(tmp_path / "l.db", Clock()) as (writer, ledger):
        ledger.loses_answers = True
        with pytest.raises(LedgerUnavailable):
            await writer.settle(make_settlement(1))
        ledger.loses_answers = False
        await writer.settle(make_settlement(2))
        assert writer.backlog.count == 2
