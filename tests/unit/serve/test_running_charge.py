"""Requests that cost more than was held for them: extended while their account can pay, then ended."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sleeper import Sleeper

from receipts.holds import HoldBook, Renewal
from serve.messages import Allowance
from serve.running_charge import LOOK_EVERY_S, RunningCharges

_LEASE_S = 30.0
# At this price a microjoule is a pico-USD.
_USD_PER_KWH = 3.6


def allowance(usd_picos: int, account: str = "acme") -> Allowance:
    return Allowance(account=account, usd_picos=usd_picos, usd_per_kwh=_USD_PER_KWH, lease_s=_LEASE_S)


class FakeLedger:
    """A `HoldBook` beside balances; raises or hangs as told."""

    def __init__(self, balance: int) -> None:
        self.balances = {"acme": balance}
        self.now_ns = 0
        self.book = HoldBook(monotonic_ns=lambda: self.now_ns)
        self.raises: Exception | None = None
        self.hangs = False
        self.extended: list[list[tuple[str, str, int]]] = []
        self.renewed: list[list[tuple[str, str, int]]] = []

    def place(self, request_id: str, usd_picos: int) -> None:
        answer = self.book.place("acme", request_id, usd_picos, balance_usd_picos=self.balances["acme"], lease_ns=10**9)
        assert answer.outcome == "placed"

    async def extend(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> Sequence[int]:
        self.extended.append(list(holds))
        await self._is_there()
        assert lease_s == _LEASE_S
        return [
            self.book.extend(account, request_id, usd_picos, balance_usd_picos=self.balances[account], lease_ns=10**9)
            for account, request_id, usd_picos in holds
        ]

    async def renew(self, holds: Sequence[Renewal], lease_s: float) -> None:
        self.renewed.append([each[:3] for each in holds])
        await self._is_there()
        for account, request_id, usd_picos, _ in holds:
            self.book.renew(account, request_id, usd_picos, lease_ns=10**9)

    async def _is_there(self) -> None:
        if self.raises is not None:
            raise self.raises
        if self.hangs:
            await asyncio.sleep(3600)


class Bench:
    def __init__(self, balance: int = 1000) -> None:
        self.ledger = FakeLedger(balance)
        self.drawn: dict[str, int] = {}
        self.meter_raises: Exception | None = None
        self.stopped: list[str] = []
        self.sleeper = Sleeper()
        self.now_s = 0.0
        self.charges = RunningCharges(
            self._running, self.ledger, self.stopped.append, sleep=self.sleeper, clock=lambda: self.now_s
        )
        self._watching = contextlib.ExitStack()

    async def _running(self) -> Mapping[str, int]:
        if self.meter_raises is not None:
            raise self.meter_raises
        return dict(self.drawn)

    def begin(self, request_id: str, usd_picos: int) -> contextlib.ExitStack:
        self.ledger.place(request_id, usd_picos)
        watching = contextlib.ExitStack()
        watching.enter_context(self.charges.watched(request_id, allowance(usd_picos)))
        return watching

    async def look(self, **drawn: int) -> None:
        self.drawn |= drawn
        await self.charges.look()

    def held(self) -> int:
        return self.ledger.book.held_usd_picos("acme")


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_hold_that_will_do_is_left_alone(bench: Bench) -> None:
    with bench.begin("a", 100):
        for drawn in (10, 20, 30, 40):  # 50 at the next look, which is half of it
            await bench.look(a=drawn)
    assert (bench.ledger.extended, bench.stopped, bench.held()) == ([], [], 100)


async def test_a_hold_is_doubled_when_it_may_soon_be_half_used(bench: Bench) -> None:
    with bench.begin("a", 100):
        await bench.look(a=26)
        assert bench.held() == 200
        await bench.look(a=52)
        assert bench.held() == 200
        await bench.look(a=400)
    assert bench.held() == 1000, "twice of what it may be at the next look, or all that there is"
    assert bench.stopped == []


async def test_a_hold_of_next_to_nothing_is_extended_to_what_the_request_draws(bench: Bench) -> None:
    with bench.begin("a", 1):
        await bench.look(a=90)
    assert (bench.held(), bench.stopped) == (360, [])


async def test_it_ends_before_the_look_that_may_pass_what_its_account_has(bench: Bench) -> None:
    with bench.begin("a", 100):
        for drawn in range(100, 901, 100):
            await bench.look(a=drawn)
        assert (bench.held(), bench.stopped) == (1000, [])
        await bench.look(a=1000)
        assert bench.stopped == ["a"]
        await bench.look(a=1001)
    assert bench.stopped == ["a", "a"], "it may not have ended yet: its answer may be made by several generations"


async def test_what_it_drew_at_once_may_come_again_but_not_for_ever(bench: Bench) -> None:
    """A prompt's step is large, and those after it are small: what is left is not kept for another prompt."""
    bench.ledger.balances["acme"] = 1000
    with bench.begin("a", 1000):
        await bench.look(a=600)
        assert bench.stopped == ["a"]
    bench.stopped.clear()
    bench.ledger.book.end("acme", "a")
    with bench.begin("b", 1000):
        await bench.look(b=400)
        for drawn in range(401, 850):
            await bench.look(b=drawn)
    assert bench.stopped == []


async def test_several_requests_are_extended_in_one_call_and_share_what_there_is(bench: Bench) -> None:
    with bench.begin("a", 100), bench.begin("b", 100), bench.begin("c", 100):
        await bench.look(a=300, b=300, c=1)
        assert bench.ledger.extended == [[("acme", "a", 1200), ("acme", "b", 1200)]]
    assert bench.stopped == ["b"], "the first took all"


async def test_a_charge_that_is_settled_for_less_leaves_more_for_the_others(bench: Bench) -> None:
    with bench.begin("a", 800), bench.begin("b", 200):
        await bench.look(a=1, b=150)
        assert bench.stopped == ["b"]
        bench.stopped.clear()
        bench.ledger.book.end("acme", "a")
        await bench.look(b=151)
    assert (bench.held(), bench.stopped) == (452, [])


async def test_energy_that_costs_nothing_extends_and_stops_nothing(bench: Bench) -> None:
    free = Allowance(account="acme", usd_picos=0, usd_per_kwh=0.0, lease_s=_LEASE_S)
    with bench.charges.watched("a", free):
        await bench.look(a=10**9)
    assert (bench.ledger.extended, bench.stopped) == ([], [])


async def test_without_an_allowance_nothing_is_looked_at(bench: Bench) -> None:
    with bench.charges.watched("a", None):
        await bench.sleeper.pass_by()
        assert bench.sleeper.slept == []


async def test_a_request_that_the_meter_does_not_tell_of_goes_on(bench: Bench) -> None:
    """Its energy isn't known whole, so it won't be billed."""
    with bench.begin("a", 100), bench.begin("b", 100):
        await bench.look(b=1)
    assert (bench.ledger.extended, bench.stopped) == ([], [])


@pytest.mark.parametrize("error", [ConnectionError("away"), TimeoutError()])
async def test_while_the_meter_is_away_everything_goes_on(
    bench: Bench, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.begin("a", 1):
        bench.meter_raises = error
        await bench.look(a=500)
        await bench.look(a=501)
        assert (bench.stopped, bench.held()) == ([], 1)
        assert len(caplog.records) == 1, "said once"
        bench.meter_raises = None
        await bench.look(a=502)
    assert bench.stopped == ["a"]


async def test_while_the_ledger_is_away_a_request_goes_on_as_far_as_its_hold_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with bench.begin("a", 100):
        bench.ledger.raises = ConnectionError("away")
        for drawn in (30, 60, 80):
            await bench.look(a=drawn)
        assert bench.stopped == []
        assert len(caplog.records) == 1, "said once"
        bench.ledger.raises = None
        await bench.look(a=100)
        assert (bench.stopped, bench.held()) == ([], 240)
        bench.ledger.raises = ConnectionError("away")
        await bench.look(a=230)
    assert bench.stopped == ["a"]


async def test_a_ledger_that_hangs_holds_up_no_end(bench: Bench) -> None:
    bench.ledger.hangs = True
    with bench.begin("a", 100):
        async with asyncio.timeout(5):
            await bench.look(a=99)
    assert bench.stopped == ["a"]


async def test_what_the_ledger_says_has_ended_keeps_what_it_was_promised(bench: Bench) -> None:
    with bench.begin("a", 100):
        bench.ledger.book.end("acme", "a")
        await bench.look(a=50)
        assert (bench.stopped, bench.held()) == ([], 0)
        await bench.look(a=90)
    assert bench.stopped == ["a"]


async def test_a_restarted_ledger_learns_how_far_a_hold_was_extended(bench: Bench) -> None:
    with bench.begin("a", 100), bench.begin("b", 100):
        await bench.look(a=60, b=1)
        assert bench.held() == 240 + 100
        bench.ledger.book = HoldBook(monotonic_ns=lambda: 0)
        bench.ledger.book.renew("acme", "a", 100, lease_ns=10**9)  # by its ingress
        bench.now_s = _LEASE_S / 3 - 0.1
        await bench.look()
        assert bench.ledger.renewed == []
        bench.now_s = _LEASE_S / 3
        await bench.look()
        await bench.look()
        assert bench.ledger.renewed == [[("acme", "a", 240)]]
    assert bench.held() == 240


async def test_a_renewal_that_was_lost_is_tried_again(bench: Bench) -> None:
    with bench.begin("a", 100):
        await bench.look(a=60)
        bench.now_s = _LEASE_S
        bench.ledger.raises = ConnectionError("away")
        await bench.look()
        bench.ledger.raises = None
        await bench.look()
        await bench.look()
    assert len(bench.ledger.renewed) == 2


async def test_it_looks_while_requests_are_open_and_not_longer(bench: Bench) -> None:
    with bench.begin("a", 1):
        bench.drawn["a"] = 900
        await bench.sleeper.pass_by()
        assert bench.stopped == ["a"]
    await bench.sleeper.pass_by()
    assert bench.sleeper.slept == [LOOK_EVERY_S] * 2
    assert bench.charges._looking is not None
    assert bench.charges._looking.done()
    bench.ledger.book.end("acme", "a")
    with bench.begin("b", 1):
        bench.drawn["b"] = 900
        await bench.sleeper.pass_by()
        assert bench.stopped == ["a", "b"]


async def test_a_look_that_goes_wrong_is_not_the_last(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with bench.begin("a", 1):
        bench.drawn["a"] = None  # type: ignore[assignment]
        await bench.sleeper.pass_by()
        assert "the next look goes on" in caplog.text
        bench.drawn["a"] = 900
        await bench.sleeper.pass_by()
    assert bench.stopped == ["a"]


async def test_an_earlier_attempt_on_its_way_out_does_not_end_the_watch_of_a_later_one(bench: Bench) -> None:
    earlier = bench.begin("a", 1)
    with bench.charges.watched("a", allowance(1)):
        earlier.close()
        await bench.look(a=900)
        assert bench.stopped == ["a"]
    bench.stopped.clear()
    await bench.look(a=950)
    assert bench.stopped == []


_DRAWS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=30)


@settings(deadline=None)
@given(draws=_DRAWS, balance=st.integers(1, 600), ledger_is_away=st.sets(st.integers(0, 29)))
async def test_an_account_owes_no_more_than_one_looks_charge_for_each_request(
    draws: list[list[int]], balance: int, ledger_is_away: set[int]
) -> None:
    """Whatever they draw, whenever the ledger is away: each is stopped at most one look too late."""
    bench = Bench(balance)
    names = [f"r{number}" for number in range(max(map(len, draws)))]
    total, largest = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with contextlib.ExitStack() as watching:
        for name in names:
            watching.enter_context(bench.begin(name, 0))
        for number, look in enumerate(draws):
            bench.ledger.raises = ConnectionError() if number in ledger_is_away else None
            for name, drew in zip(names, look, strict=False):
                if name not in bench.stopped:
                    total[name] += drew
                    largest[name] = max(largest[name], drew)
            await bench.look(**total)
            assert bench.held() <= balance
    assert sum(total.values()) <= balance + sum(largest.values())


@settings(deadline=None)
@given(steps=st.integers(1, 40), balance=st.integers(200, 2000))
async def test_who_draws_evenly_never_owes_and_uses_nearly_all(steps: int, balance: int) -> None:
    bench = Bench(balance)
    with bench.begin("a", 1):
        drawn = 0
        while not bench.stopped:
            drawn += steps
            await bench.look(a=drawn)
    assert balance - 2 * steps < drawn <= balance
