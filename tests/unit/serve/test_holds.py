"""An ingress's holds: placed, renewed for as long as they are in use, and never longer."""

import asyncio
import dataclasses
import gc
from collections.abc import Sequence
from http import HTTPStatus

import pytest
from sleeper import Sleeper

from receipts.holds import Admission, HoldAnswer, HoldBook, HoldWanted, Renewal
from serve.errors import RequestRefused
from serve.holds import Hold, Holds

_PLACED = HoldAnswer(outcome="placed", book_began_ns=1, balance_usd_picos=100, held_usd_picos=0)


def admitted(account: str) -> Admission:
    """By a key of the account's."""
    return Admission(account=account, api_key_id=f"key_{'0' * 16}", key_sha256=bytes(32))


class FakeLedger:
    """Notes what it is asked; answers as told, or raises."""

    def __init__(self) -> None:
        self.answer = _PLACED
        self.raises: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.placed: list[tuple[str, str, int, float]] = []
        self.renewed: list[list[Renewal]] = []
        self.released: list[tuple[str, str]] = []

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        self.placed.append((wanted.account, wanted.request_id, wanted.usd_picos, wanted.lease_s))
        await self.may_answer.wait()
        if self.raises is not None:
            raise self.raises
        return self.answer

    async def renew(self, holds: list[Renewal], lease_s: float) -> None:
        self.renewed.append(sorted(holds))
        if self.raises is not None:
            raise self.raises

    def release(self, account: str, request_id: str) -> None:
        self.released.append((account, request_id))


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def sleeper() -> Sleeper:
    return Sleeper()


@pytest.fixture
def holds(ledger: FakeLedger, sleeper: Sleeper) -> Holds:
    return Holds(ledger, lease_s=30.0, sleep=sleeper)


async def test_open_holds_are_renewed_together_every_third_of_a_lease(
    ledger: FakeLedger, sleeper: Sleeper, holds: Holds
) -> None:
    kept = [await holds.place("acme", "a", 1, admitted("acme")), await holds.place("bolt", "b", 2, admitted("bolt"))]
    assert ledger.placed == [("acme", "a", 1, 30.0), ("bolt", "b", 2, 30.0)]
    await sleeper.pass_by()
    assert ledger.renewed == [[("acme", "a", 1, None), ("bolt", "b", 2, None)]]
    kept[0].release()
    await sleeper.pass_by()
    assert ledger.renewed[1:] == [[("bolt", "b", 2, None)]]
    assert sleeper.slept == [10.0] * 3
    assert ledger.released == [("acme", "a")]


async def test_with_nothing_open_nothing_runs_and_the_next_hold_is_renewed_again(
    ledger: FakeLedger, sleeper: Sleeper, holds: Holds
) -> None:
    (await holds.place("acme", "a", 1, admitted("acme"))).let_go()
    await sleeper.pass_by()
    assert ledger.renewed == []
    assert holds._renewing is not None
    assert holds._renewing.done()
    kept = await holds.place("acme", "b", 1, admitted("acme"))
    await sleeper.pass_by()
    assert ledger.renewed == [[("acme", "b", 1, None)]]
    kept.release()


async def test_a_hold_that_was_let_go_is_neither_renewed_nor_released(
    ledger: FakeLedger, sleeper: Sleeper, holds: Holds
) -> None:
    hold = await holds.place("acme", "a", 1, admitted("acme"))
    hold.let_go()
    hold.release()
    await sleeper.pass_by()
    assert (ledger.renewed, ledger.released) == ([], [])


async def test_it_is_released_once(ledger: FakeLedger, holds: Holds) -> None:
    hold = await holds.place("acme", "a", 1, admitted("acme"))
    hold.release()
    hold.let_go()
    hold.release()
    assert ledger.released == [("acme", "a")]


async def test_a_hold_that_was_dropped_without_a_word_is_not_renewed_for_ever(
    ledger: FakeLedger, sleeper: Sleeper, holds: Holds
) -> None:
    kept = await holds.place("acme", "a", 1, admitted("acme"))
    await holds.place("acme", "dropped", 1, admitted("acme"))
    gc.collect()
    await sleeper.pass_by()
    assert ledger.renewed == [[("acme", "a", 1, None)]]
    del kept
    gc.collect()
    await sleeper.pass_by()
    assert len(ledger.renewed) == 1


async def test_a_ledger_that_is_away_is_asked_again_soon_and_holds_are_kept(
    ledger: FakeLedger, sleeper: Sleeper, holds: Holds
) -> None:
    kept = await holds.place("acme", "a", 1, admitted("acme"))
    ledger.raises = ConnectionError("away")
    await sleeper.pass_by()
    ledger.raises = None
    await sleeper.pass_by()
    await sleeper.pass_by()
    assert ledger.renewed == [[("acme", "a", 1, None)]] * 3
    assert sleeper.slept == pytest.approx([10.0, 10 / 3, 10.0, 10.0])
    kept.release()


async def test_a_ledger_that_was_restarted_is_told_at_once_what_is_under_way(ledger: FakeLedger, holds: Holds) -> None:
    kept = [await holds.place("acme", "a", 1, admitted("acme")), await holds.place("acme", "b", 2, admitted("acme"))]
    assert ledger.renewed == []
    ledger.answer = dataclasses.replace(_PLACED, book_began_ns=2)
    kept += [await holds.place("acme", "c", 3, admitted("acme")), await holds.place("acme", "d", 4, admitted("acme"))]
    assert ledger.renewed == [[("acme", "a", 1, None), ("acme", "b", 2, None)]]
    for hold in kept:
        hold.release()


class BookLedger:
    """A book that can be lost; of one account, whose balance is 100."""

    def __init__(self) -> None:
        self.renewed = 0
        self.restart(1)

    def restart(self, began_ns: int) -> None:
        self.book = HoldBook(monotonic_ns=lambda: began_ns)

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        first = self.book.under_way(wanted.account, wanted.idempotency_sha256)
        if first not in (None, wanted.request_id):
            return dataclasses.replace(_PLACED, outcome="repeated", book_began_ns=self.book.began_ns)
        return self.book.place(
            wanted.account,
            wanted.request_id,
            wanted.usd_picos,
            balance_usd_picos=100,
            lease_ns=10**9,
            idempotency_sha256=wanted.idempotency_sha256,
        )

    async def renew(self, holds: Sequence[Renewal], lease_s: float) -> None:
        self.renewed += 1
        for each in holds:
            self.book.renew(*each[:3], lease_ns=10**9, idempotency_sha256=each.idempotency_sha256)

    def release(self, account: str, request_id: str) -> None:
        self.book.end(account, request_id)


async def test_by_a_ledger_that_was_restarted_no_balance_is_held_twice_and_nothing_repeated(sleeper: Sleeper) -> None:
    ledger = BookLedger()
    holds = Holds(ledger, sleep=sleeper)
    once = dataclasses.replace(admitted("acme"), idempotency_sha256="ab" * 32)
    kept = await holds.place("acme", "a", 60, once)
    for began_ns, (admission, usd_picos, status) in enumerate(((once, 1, 409), (admitted("acme"), 41, 402)), start=2):
        ledger.restart(began_ns)
        with pytest.raises(RequestRefused) as refused:
            await holds.place("acme", f"b{began_ns}", usd_picos, admission)
        assert refused.value.status == status
        assert (ledger.book.report().count, ledger.book.held_usd_picos("acme")) == (1, 60)
    assert ledger.renewed == 2
    ledger.restart(9)
    placing = [holds.place("acme", f"d{number}", 30, admitted("acme")) for number in range(3)]
    outcomes = await asyncio.gather(*placing, return_exceptions=True)
    held = [each for each in outcomes if isinstance(each, Hold)]
    assert (len(held), ledger.book.held_usd_picos("acme"), ledger.renewed) == (1, 90, 3), "also of many at once"
    held[0].release()
    fits = await holds.place("acme", "c", 40, admitted("acme"))
    for hold in (kept, fits):
        hold.release()
    assert ledger.book.report().count == 0


async def test_too_little_is_402_and_says_what_is_needed_left_and_held(ledger: FakeLedger, holds: Holds) -> None:
    ledger.answer = dataclasses.replace(
        _PLACED, outcome="insufficient", balance_usd_picos=1_500_000_000_000, held_usd_picos=25
    )
    with pytest.raises(RequestRefused) as refused:
        await holds.place("acme", "a", 2 * 10**12, admitted("acme"))
    assert refused.value.status == HTTPStatus.PAYMENT_REQUIRED
    for amount in ("up to $2.00;", "balance of $1.50,", "$0.000000000025 is held"):
        assert amount in refused.value.message
    assert refused.value.retry_after_s is None
    assert ledger.released == []


async def test_a_debt_is_shown_as_one(ledger: FakeLedger, holds: Holds) -> None:
    ledger.answer = dataclasses.replace(_PLACED, outcome="insufficient", balance_usd_picos=-(10**12) // 4)
    with pytest.raises(RequestRefused, match=r"balance of -\$0\.25, of which \$0\.00 is held"):
        await holds.place("acme", "a", 1, admitted("acme"))


async def test_a_busy_ledger_is_503_with_a_time_to_come_back(ledger: FakeLedger, holds: Holds) -> None:
    ledger.answer = dataclasses.replace(_PLACED, outcome="busy", reason="7 receipts wait for their signatures")
    with pytest.raises(RequestRefused, match="7 receipts wait") as refused:
        await holds.place("acme", "a", 1, admitted("acme"))
    assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert refused.value.retry_after_s is not None


async def test_a_placing_without_an_answer_is_taken_back(ledger: FakeLedger, holds: Holds) -> None:
    ledger.raises = ConnectionError("away")
    with pytest.raises(ConnectionError):
        await holds.place("acme", "a", 1, admitted("acme"))
    assert ledger.released == [("acme", "a")]


async def test_a_client_that_goes_while_its_hold_is_placed_leaves_none(ledger: FakeLedger, holds: Holds) -> None:
    ledger.may_answer.clear()
    placing: asyncio.Task[Hold] = asyncio.create_task(holds.place("acme", "a", 1, admitted("acme")))
    await asyncio.sleep(0)
    placing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await placing
    assert ledger.released == [("acme", "a")]
