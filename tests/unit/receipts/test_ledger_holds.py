"""Holds beside a real ledger's balances, and how they end with what is committed."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metering.settlement import Settlement
from receipts.api_keys import key_hash
from receipts.errors import LedgerUnavailable, SettlementRefused
from receipts.holds import HoldAnswer, HoldBook, HoldsReport, HoldWanted, Renewal
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_holds import LedgerHolds
from receipts.ledger_writer import LedgerWriter
from receipts.stored_receipt import StoredReceipt

_LEASE_S = 30.0
_NOTHING = HoldsReport(count=0, held_usd_picos=0)


class HeldDisk:
    """A ledger whose commits wait for the test and can fail."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.key = ledger.create_key("acme", "")
        self.may_commit = threading.Event()
        self.may_commit.set()
        self.is_committing = threading.Event()
        self.fails_with: Exception | None = None

    def settle(self, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        self.is_committing.set()
        self.may_commit.wait(10)
        if self.fails_with is not None:
            raise self.fails_with
        return self.ledger.settle(settlements)

    def __getattr__(self, name: str):
        return getattr(self.ledger, name)


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10**18

    def __call__(self) -> int:
        return self.now_ns


class Desk:
    def __init__(self, writer: LedgerWriter, disk: HeldDisk, holds: LedgerHolds) -> None:
        self.writer, self.disk, self.holds = writer, disk, holds

    async def place(self, number: int, usd_picos: int, account: str = "acme", **changes: Any) -> HoldAnswer:
        wanted = HoldWanted(
            account=account,
            request_id=f"{number:032x}",
            usd_picos=usd_picos,
            lease_s=_LEASE_S,
            key_sha256=key_hash(self.disk.key.secret),
            api_key_id=self.disk.key.key.key_id,
            workload=None,
            idempotency_sha256=None,
        )
        return await self.holds.place(replace(wanted, **changes))


@asynccontextmanager
async def opened(
    path: Path, most_unsigned: int = 1000, wall_clock_ns: Callable[[], int] = time.time_ns
) -> AsyncIterator[Desk]:
    disks: list[HeldDisk] = []

    def open_held() -> HeldDisk:
        ledger = Ledger.open(f"sqlite:///{path}", wall_clock_ns=time.time_ns, random_bytes=os.urandom, key_id="0" * 16)
        disks.append(HeldDisk(ledger))
        return disks[0]

    book = HoldBook(monotonic_ns=lambda: 0)
    writer = await LedgerWriter.open(open_held, wall_clock_ns=wall_clock_ns, holds=book)  # type: ignore[arg-type]
    try:
        yield Desk(writer, disks[0], LedgerHolds(writer, book, most_unsigned=most_unsigned))
    finally:
        disks[0].may_commit.set()
        await writer.close()


async def test_the_balance_is_the_ledgers_and_holds_are_off_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "l.db") as desk:
        assert (await desk.place(1, OPENING_CREDIT_USD_PICOS - 1)).outcome == "placed"
        answer = await desk.place(2, 2)
        assert answer == HoldAnswer(
            outcome="insufficient",
            book_began_ns=0,
            balance_usd_picos=OPENING_CREDIT_USD_PICOS,
            held_usd_picos=OPENING_CREDIT_USD_PICOS - 1,
        )
        desk.holds.release("acme", f"{1:032x}")
        assert desk.holds.report() == _NOTHING


async def test_placing_waits_for_no_commit(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as desk:
        await desk.place(1, 10**9)
        desk.disk.may_commit.clear()
        settling = asyncio.create_task(desk.writer.settle(make_settlement(1)))
        await asyncio.to_thread(desk.disk.is_committing.wait, 10)
        async with asyncio.timeout(5):
            assert (await desk.place(2, 10**9)).outcome == "placed"
        assert not settling.done()
        assert desk.holds.report().held_usd_picos == 2 * 10**9, "the first one isn't charged yet, so it is held"
        desk.disk.may_commit.set()
        await settling


async def test_the_first_look_at_a_balance_during_a_commit_sees_what_it_charged(
    tmp_path: Path, make_settlement
) -> None:
    """Its answer is older than the commit's end: together with the hold that ended then, the charge would be free."""
    async with opened(tmp_path / "l.db") as desk:
        desk.disk.may_commit.clear()
        settling = asyncio.create_task(desk.writer.settle(make_settlement(1)))
        await asyncio.to_thread(desk.disk.is_committing.wait, 10)
        placing = asyncio.create_task(desk.place(2, OPENING_CREDIT_USD_PICOS))
        await asyncio.sleep(0)
        desk.disk.may_commit.set()
        await settling
        assert (await placing).outcome == "insufficient"


@pytest.mark.parametrize("outcome", ["finished", "aborted"])
async def test_a_hold_ends_with_the_requests_receipt(tmp_path: Path, make_settlement, outcome: str) -> None:
    async with opened(tmp_path / "l.db") as desk:
        await desk.place(1, 10**9)
        await desk.place(2, 10**9)
        stored = await desk.writer.settle(make_settlement(1, outcome=outcome))
        assert stored is not None
        assert desk.holds.report() == HoldsReport(count=1, held_usd_picos=10**9)
        charged = OPENING_CREDIT_USD_PICOS - await desk.writer.call(lambda ledger: ledger.balance_usd_picos("acme"))
        assert charged > 0
        answer = await desk.place(3, OPENING_CREDIT_USD_PICOS)
        assert (answer.balance_usd_picos, answer.held_usd_picos) == (OPENING_CREDIT_USD_PICOS - charged, 10**9)


async def test_a_failed_attempt_leaves_the_hold_for_the_next_one(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as desk:
        await desk.place(1, 10**9)
        assert await desk.writer.settle(make_settlement(1, outcome="failed")) is None
        assert desk.holds.report().count == 1
        await desk.writer.settle(make_settlement(1))
        assert desk.holds.report() == _NOTHING


async def test_energy_that_is_not_known_costs_nothing_and_ends_the_hold(tmp_path: Path, make_unavailable) -> None:
    async with opened(tmp_path / "l.db") as desk:
        await desk.place(1, 10**9)
        assert await desk.writer.settle(make_unavailable(1)) is not None
        assert desk.holds.report() == _NOTHING
        assert (await desk.place(2, OPENING_CREDIT_USD_PICOS)).outcome == "placed"


@pytest.mark.parametrize("error", [LedgerUnavailable("disk full"), RuntimeError("a defect")])
async def test_a_commit_that_failed_ends_no_hold(tmp_path: Path, make_settlement, error: Exception) -> None:
    async with opened(tmp_path / "l.db") as desk:
        await desk.place(1, 10**9)
        desk.disk.fails_with = error
        with pytest.raises(type(error)):
            await desk.writer.settle(make_settlement(1))
        assert desk.holds.report().count == 1
        desk.disk.fails_with = None
        await desk.writer.settle(make_settlement(1))
        assert desk.holds.report() == _NOTHING


async def test_a_refused_settlement_ends_no_hold_of_its_neighbour(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db") as desk:
        for number in (1, 2):
            await desk.place(number, 10**9)
        settlements = [make_settlement(1, context=b""), make_settlement(2)]
        refused, stored = await asyncio.gather(*map(desk.writer.settle, settlements), return_exceptions=True)
        assert isinstance(refused, SettlementRefused)
        assert isinstance(stored, StoredReceipt)
        assert desk.holds.report().count == 1


async def test_a_redelivered_settlement_ends_a_hold_that_came_back_after_a_restart(
    tmp_path: Path, make_settlement
) -> None:
    async with opened(tmp_path / "l.db") as desk:
        await desk.writer.settle(make_settlement(1))
    async with opened(tmp_path / "l.db") as desk:
        desk.holds.renew([Renewal("acme", f"{number:032x}", 10**9) for number in (1, 2)], _LEASE_S)
        assert desk.holds.report().count == 2
        await desk.writer.settle(make_settlement(1))
        assert desk.holds.report().count == 1


async def test_holds_are_extended_by_what_the_balance_leaves_and_by_the_charges_of_others(
    tmp_path: Path, make_settlement
) -> None:
    async with opened(tmp_path / "l.db") as desk:
        for number in (1, 2):
            await desk.place(number, 10**9)
        wanted = [("acme", f"{number:032x}", OPENING_CREDIT_USD_PICOS) for number in (2, 1)]
        assert await desk.holds.extend(wanted, _LEASE_S) == [OPENING_CREDIT_USD_PICOS - 10**9, 10**9]
        await desk.writer.settle(make_settlement(2))
        balance = await desk.writer.call(lambda ledger: ledger.balance_usd_picos("acme"))
        assert balance < OPENING_CREDIT_USD_PICOS
        assert await desk.holds.extend(wanted, _LEASE_S) == [0, balance], "the other has ended"
        assert desk.holds.report() == HoldsReport(count=1, held_usd_picos=balance)


async def test_what_has_begun_is_extended_while_nothing_new_is_let_in(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db", most_unsigned=1) as desk:
        await desk.place(1, 10**9)
        await desk.writer.settle(make_settlement(2))
        assert (await desk.place(3, 1)).outcome == "busy"
        assert await desk.holds.extend([("acme", f"{1:032x}", 2 * 10**9)], _LEASE_S) == [2 * 10**9]


async def test_while_nothing_is_stored_nothing_new_is_placed(tmp_path: Path, make_settlement) -> None:
    """What has run meanwhile is charged later, when its hold may be gone: so no more of it may run."""
    async with opened(tmp_path / "l.db") as desk:
        desk.disk.fails_with = LedgerUnavailable("disk full")
        with pytest.raises(LedgerUnavailable):
            await desk.writer.settle(make_settlement(1))
        answer = await desk.place(2, 1)
        assert (answer.outcome, answer.reason) == ("busy", "its database stores nothing now")
        desk.disk.fails_with = RuntimeError("another trouble")
        with pytest.raises(RuntimeError):
            await desk.writer.settle(make_settlement(1))
        assert (await desk.place(2, 1)).outcome == "busy"
        desk.disk.fails_with = None
        await desk.writer.settle(make_settlement(1))
        assert (await desk.place(2, 1)).outcome == "placed"


async def test_where_nobody_has_anything_to_store_any_more_requests_run_again(tmp_path: Path, make_settlement) -> None:
    """The meter whose settlement was not stored is gone with its host: nobody would ever store one again."""
    clock = Clock()
    async with opened(tmp_path / "l.db", wall_clock_ns=clock) as desk:
        desk.disk.fails_with = LedgerUnavailable("disk full")
        with pytest.raises(LedgerUnavailable):
            await desk.writer.settle(make_settlement(1))
        clock.now_ns += 30 * 10**9
        assert (await desk.place(2, 1)).outcome == "busy"
        clock.now_ns += 1
        assert (await desk.place(2, 1)).outcome == "placed"


async def test_past_the_bound_of_unsigned_receipts_nothing_new_is_placed(tmp_path: Path, make_settlement) -> None:
    async with opened(tmp_path / "l.db", most_unsigned=2) as desk:
        await desk.place(9, 5)
        stored = [await desk.writer.settle(make_settlement(number)) for number in (1, 2)]
        answer = await desk.place(3, 1)
        assert (answer.outcome, answer.reason) == ("busy", "2 receipts wait for their signatures")
        desk.holds.renew([Renewal("acme", f"{9:032x}", 5)], _LEASE_S)
        assert desk.holds.report().count == 1, "what is under way stays"
        assert stored[0] is not None
        await desk.writer.attach_signatures({stored[0].receipt_id: bytes(64)})
        assert (await desk.place(3, 1)).outcome == "placed"
