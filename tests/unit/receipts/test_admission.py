"""Who is let in beside the balance: by a live key, with an idempotency key once, within the energy budgets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opened_ledger import NOW_NS, opened

from receipts.api_keys import key_hash
from receipts.budgets import Budget
from receipts.errors import LedgerUnavailable
from receipts.holds import HoldAnswer, HoldBook, HoldWanted, Renewal
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_holds import LedgerHolds
from receipts.ledger_writer import LedgerWriter

_S = 10**9
_REPEAT = "ab" * 32
_EARLIER = {"start_unix_ns": NOW_NS - _S, "placement": None}


class WatchedLedger:
    """A ledger that counts the look-ups of idempotency keys, and can fail them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.lookups = 0
        self.fails_with: Exception | None = None

    def receipt_of_repeat(self, account: str, idempotency_sha256: str) -> str | None:
        self.lookups += 1
        if self.fails_with is not None:
            raise self.fails_with
        return self.ledger.receipt_of_repeat(account, idempotency_sha256)

    def __getattr__(self, name: str):
        return getattr(self.ledger, name)


class Desk:
    """A ledger's holds, with a key of acme's."""

    def __init__(self, path: Path) -> None:
        self.now_ns = NOW_NS
        self.ledger = WatchedLedger(opened(f"sqlite:///{path}/l.db", wall_clock_ns=lambda: self.now_ns))
        self.new_key = self.ledger.create_key("acme", "")
        self.book = HoldBook(monotonic_ns=lambda: self.now_ns)

    async def open(self) -> None:
        self.writer = await LedgerWriter.open(lambda: self.ledger, holds=self.book)  # type: ignore[arg-type, return-value]
        self.holds = LedgerHolds(self.writer, self.book, most_unsigned=1000)

    async def place(self, number: int, **changes: Any) -> HoldAnswer:
        wanted = HoldWanted(
            account="acme",
            request_id=f"{number:032x}",
            usd_picos=10**9,
            lease_s=30,
            key_sha256=key_hash(self.new_key.secret),
            api_key_id=self.new_key.key.key_id,
            workload=None,
            idempotency_sha256=None,
        )
        return await self.holds.place(replace(wanted, **changes))


@asynccontextmanager
async def desk_at(path: Path) -> AsyncIterator[Desk]:
    desk = Desk(path)
    await desk.open()
    yield desk
    await desk.writer.close()


class TestKeys:
    async def test_a_live_key_lets_in_and_a_revoked_one_no_more(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            assert (await desk.place(1)).outcome == "placed"
            key_id = desk.new_key.key.key_id
            await desk.writer.call(lambda ledger: ledger.revoke_key("acme", key_id))
            answer = await desk.place(2)
            assert (answer.outcome, answer.balance_usd_picos) == ("unknown key", None)
            assert desk.book.report().count == 1

    async def test_neither_does_one_that_has_expired_or_never_was(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            soon = await desk.writer.call(lambda ledger: ledger.create_key("acme", "", expires_unix_ns=NOW_NS + _S))
            assert (await desk.place(1, key_sha256=key_hash(soon.secret))).outcome == "placed"
            desk.now_ns += _S
            assert (await desk.place(2, key_sha256=key_hash(soon.secret))).outcome == "unknown key"
            assert (await desk.place(3, key_sha256=bytes(32))).outcome == "unknown key"

    async def test_nor_another_accounts(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            await desk.writer.call(lambda ledger: ledger.create_key("other", ""))
            assert (await desk.place(1, account="other")).outcome == "unknown key"


class TestIdempotency:
    async def test_while_the_first_is_under_way_it_is_named(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            assert (await desk.place(1, idempotency_sha256=_REPEAT)).outcome == "placed"
            answer = await desk.place(2, idempotency_sha256=_REPEAT)
            assert (answer.outcome, answer.first_receipt_id) == ("repeated", f"rcpt_{1:032x}")
            assert desk.book.report().count == 1
            assert (await desk.place(3, idempotency_sha256="cd" * 32)).outcome == "placed"

    async def test_of_many_at_once_one_comes_in(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            answers = await asyncio.gather(*(desk.place(each, idempotency_sha256=_REPEAT) for each in range(1, 21)))
            assert sorted(each.outcome for each in answers) == ["placed", *["repeated"] * 19]
            assert len({each.first_receipt_id for each in answers if each.first_receipt_id}) == 1

    async def test_with_its_receipt_it_is_known_for_ever(self, tmp_path: Path, make_settlement) -> None:
        async with desk_at(tmp_path) as desk:
            await desk.place(1, idempotency_sha256=_REPEAT)
            await desk.writer.settle(make_settlement(1, idempotency_sha256=_REPEAT, **_EARLIER))
            desk.now_ns += 10**6 * _S
            answer = await desk.place(2, idempotency_sha256=_REPEAT)
            assert (answer.outcome, answer.first_receipt_id) == ("repeated", f"rcpt_{1:032x}")
            assert desk.book.report().count == 0
            broke = await desk.place(3, idempotency_sha256=_REPEAT, usd_picos=OPENING_CREDIT_USD_PICOS)
            assert broke.outcome == "repeated", "also where it could not be paid now"
        async with desk_at(tmp_path) as desk:
            assert (await desk.place(4, idempotency_sha256=_REPEAT)).outcome == "repeated"

    async def test_after_one_that_cost_nothing_the_key_is_free(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            await desk.place(1, idempotency_sha256=_REPEAT)
            desk.holds.release("acme", f"{1:032x}")
            assert (await desk.place(2, idempotency_sha256=_REPEAT)).outcome == "placed"
            desk.now_ns += 31 * _S
            assert (await desk.place(3, idempotency_sha256=_REPEAT)).outcome == "placed", "its ingress died"

    async def test_another_accounts_key_is_another(self, tmp_path: Path, make_settlement) -> None:
        async with desk_at(tmp_path) as desk:
            theirs = await desk.writer.call(lambda ledger: ledger.create_key("other", ""))
            await desk.place(1, idempotency_sha256=_REPEAT)
            await desk.writer.settle(make_settlement(1, idempotency_sha256=_REPEAT, **_EARLIER))
            answer = await desk.place(
                2, account="other", key_sha256=key_hash(theirs.secret), idempotency_sha256=_REPEAT
            )
            assert answer.outcome == "placed"

    async def test_a_request_is_no_repeat_of_itself(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            for _ in range(2):
                assert (await desk.place(1, idempotency_sha256=_REPEAT)).outcome == "placed"

    async def test_both_are_charged_where_the_first_ones_hold_lapsed(self, tmp_path: Path, make_settlement) -> None:
        async with desk_at(tmp_path) as desk:
            for number in (1, 2):
                assert (await desk.place(number, idempotency_sha256=_REPEAT)).outcome == "placed"
                desk.now_ns += 31 * _S
            for number in (2, 1):
                settled = make_settlement(number, idempotency_sha256=_REPEAT, **_EARLIER)
                assert await desk.writer.settle(settled) is not None
            answer = await desk.place(3, idempotency_sha256=_REPEAT)
            assert answer.first_receipt_id == f"rcpt_{2:032x}", "that which was settled first"

    async def test_after_a_restart_a_renewal_tells_whose_it_is(self, tmp_path: Path) -> None:
        """Also where somebody repeated it before the renewal came."""
        async with desk_at(tmp_path) as desk:
            assert (await desk.place(2, idempotency_sha256=_REPEAT)).outcome == "placed"
            desk.holds.renew([Renewal("acme", f"{1:032x}", 10**9, _REPEAT)], 30)
            for again in (2, 3):
                answer = await desk.place(again, idempotency_sha256=_REPEAT)
                assert (answer.outcome, answer.first_receipt_id) == ("repeated", f"rcpt_{1:032x}")
            desk.holds.release("acme", f"{2:032x}")
            desk.holds.renew([Renewal("acme", f"{1:032x}", 2 * 10**9)], 30)  # by its replica
            assert (await desk.place(3, idempotency_sha256=_REPEAT)).outcome == "repeated"
            desk.holds.release("acme", f"{1:032x}")
            assert (await desk.place(3, idempotency_sha256=_REPEAT)).outcome == "placed"

    async def test_nothing_is_looked_up_without_a_key_and_no_hold_leaks_where_it_fails(self, tmp_path: Path) -> None:
        async with desk_at(tmp_path) as desk:
            await desk.place(1)
            assert desk.ledger.lookups == 0
            desk.ledger.fails_with = LedgerUnavailable("away")
            with pytest.raises(LedgerUnavailable):
                await desk.place(2, idempotency_sha256=_REPEAT)
            assert desk.book.report().count == 1
            desk.ledger.fails_with = None
            assert (await desk.place(3, idempotency_sha256=_REPEAT)).outcome == "placed"


class TestBudgets:
    async def test_a_drawn_one_keeps_out_until_its_window_ends(self, tmp_path: Path, make_settlement) -> None:
        async with desk_at(tmp_path) as desk:
            budget = Budget(account="acme", kind="workload", subject="etl", window="hour", microjoules=310_000)
            await desk.writer.call(lambda ledger: ledger.set_budget(budget))
            assert (await desk.place(1, workload="etl")).outcome == "placed"
            await desk.writer.settle(make_settlement(1, workload_name="etl", **_EARLIER))
            answer = await desk.place(2, workload="etl")
            assert (answer.outcome, desk.book.report().count) == ("over budget", 0)
            assert answer.reason == "the workload etl has drawn 0.31 J of its 0.31 J for this hour"
            assert answer.retry_after_s is not None
            assert (await desk.place(3)).outcome == "placed"
            desk.now_ns += answer.retry_after_s * _S - 1
            assert (await desk.place(4, workload="etl")).outcome == "over budget"
            desk.now_ns += 1
            assert (await desk.place(5, workload="etl")).outcome == "placed"

    async def test_a_repeat_is_told_as_one_all_the_same(self, tmp_path: Path, make_settlement) -> None:
        async with desk_at(tmp_path) as desk:
            budget = Budget(account="acme", kind="key", subject=desk.new_key.key.key_id, window="month", microjoules=1)
            await desk.writer.call(lambda ledger: ledger.set_budget(budget))
            settled = make_settlement(1, api_key_id=desk.new_key.key.key_id, idempotency_sha256=_REPEAT, **_EARLIER)
            await desk.place(1, idempotency_sha256=_REPEAT)
            await desk.writer.settle(settled)
            assert (await desk.place(2)).outcome == "over budget"
            assert (await desk.place(3, idempotency_sha256=_REPEAT)).outcome == "repeated"
