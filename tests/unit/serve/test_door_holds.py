"""The door and its holds: none without a balance, none left behind, whatever becomes of the request."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from http import HTTPStatus

import pytest
from made_pool import make_pool

from clusters.grid import YearlyMeansFeed
from placement.energy_rates import prior_rates
from placement.pins import Pins
from placement.plan import ExchangeRates
from placement.tiers import Tier, TierSigns
from receipts.holds import Admission, HoldAnswer, HoldWanted
from serve.chat_request import parse_chat
from serve.deadlines import Deadlines, LimitAfter
from serve.door import Answer, Door, Price
from serve.errors import AttemptFailed, RequestRefused
from serve.holds import Holds
from serve.messages import DONE, EngineTask, Payload, Refused, ReplicaItem, Settled, Started
from serve.model_request import ModelRequest
from serve.planner import Planner
from serve.pool_health import PoolHealth

_STARTED = Started(replica="r", silicon="cpu", energy_method=None)
_RECEIPT = Settled(
    b'{"energy": {"total_joules": null}, "workload": {"tokens": {"input": 1, "cached": 0, "output": 1}}}'
)
_EVENT = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
_REQUEST = "0" * 32
_ADMISSION = Admission(account="acme", api_key_id="key_" + "1" * 16, key_sha256=b"k" * 32)

Attempt = Callable[[], AsyncGenerator[ReplicaItem, None]]


class FakeLedger:
    """Where the holds are: those placed, without those released; no receipt ends one."""

    def __init__(self, outcome: str = "placed", fails: Exception | None = None) -> None:
        self.outcome = outcome
        self.fails = fails
        self.amounts: list[int] = []
        self.live: set[str] = set()
        self.calls: list[str] = []
        self.has_run = asyncio.Event()

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        self.calls.append("place")
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        self.amounts.append(wanted.usd_picos)
        if self.outcome == "placed":
            self.live.add(wanted.request_id)
        return HoldAnswer(
            outcome=self.outcome,  # type: ignore[arg-type]
            book_began_ns=1,
            balance_usd_picos=7,
            held_usd_picos=3,
            reason="why",
        )

    async def renew(self, holds: object, lease_s: float) -> None:
        raise AssertionError("no hold of these tests lives so long")

    def release(self, account: str, request_id: str) -> None:
        self.calls.append("release")
        self.live.discard(request_id)


class FakePools:
    """Runs the given attempts in turn, whichever pool is asked."""

    def __init__(self, ledger: FakeLedger, *attempts: Attempt) -> None:
        self.ledger = ledger
        self.attempts = list(attempts)

    async def __call__(
        self,
        pool: str,
        task: EngineTask,
        limit_after: LimitAfter,
    ) -> AsyncGenerator[ReplicaItem, None]:
        self.ledger.calls.append("run")
        self.ledger.has_run.set()
        assert task.request_id in self.ledger.live, "work without a hold"
        async with aclosing(self.attempts.pop(0)()) as items:
            async for item in items:
                yield item


async def whole() -> AsyncGenerator[ReplicaItem, None]:
    yield _STARTED
    yield Payload(b"{}")
    yield _RECEIPT


async def dying() -> AsyncGenerator[ReplicaItem, None]:
    raise AttemptFailed("replica died", "killed")
    yield _STARTED


async def dying_later() -> AsyncGenerator[ReplicaItem, None]:
    yield _STARTED
    raise AttemptFailed("replica died", "killed")


async def dying_in_mid_stream() -> AsyncGenerator[ReplicaItem, None]:
    yield _STARTED
    yield Payload(_EVENT)
    raise AttemptFailed("replica died", "killed")


async def charged_later() -> AsyncGenerator[ReplicaItem, None]:
    raise AttemptFailed("timeout", "it hangs, and its meter could not be told", may_be_charged=True)
    yield _STARTED


async def answering_and_charged_later() -> AsyncGenerator[ReplicaItem, None]:
    yield _STARTED
    yield Payload(_EVENT)
    raise AttemptFailed("its receipt cannot be stored now", "disk full", is_charged=True)


async def streaming() -> AsyncGenerator[ReplicaItem, None]:
    yield _STARTED
    yield Payload(_EVENT)
    yield Payload(DONE)
    yield _RECEIPT


async def refusing() -> AsyncGenerator[ReplicaItem, None]:
    yield Refused(status=400, message="no", param=None)


async def hanging() -> AsyncGenerator[ReplicaItem, None]:
    await asyncio.sleep(3600)
    yield _STARTED


async def hanging_later() -> AsyncGenerator[ReplicaItem, None]:
    yield _STARTED
    yield Payload(_EVENT)
    await asyncio.sleep(3600)


async def broken() -> AsyncGenerator[ReplicaItem, None]:
    raise ZeroDivisionError
    yield _STARTED


class FakeTiers:
    def classify(self, signs: TierSigns) -> Tier:
        return Tier.L0


def make_door(ledger: FakeLedger, *attempts: Attempt, prices: tuple[float, float] = (0.5, 0.5)) -> Door:
    pools = {
        key: make_pool(key, context_tokens=2048, prior_microjoules_per_token=1e5, usd_per_kwh=price)
        for key, price in zip(("m@o/r/first", "m@o/r/second"), prices, strict=True)
    }
    carbon, health = YearlyMeansFeed(), PoolHealth(_clock)
    rates = ExchangeRates(usd_per_kgco2=0.0, usd_per_hour_waited=0.0)
    planner = Planner(pools, carbon, rates, health, _clock)
    replicas = dict.fromkeys(pools, 1)
    planner.see(replicas, {}, replicas)
    return Door(
        pools=pools,
        planner=planner,
        tiers=FakeTiers(),
        dispatch=FakePools(ledger, *attempts),
        holds=Holds(ledger),
        carbon=carbon,
        price=Price(usd_per_kwh=0.5, version="1"),
        deadlines=Deadlines(first_token_s=60, between_tokens_s=60),
        health=health,
        attempts=2,
        random_bytes=bytes,
        wall_clock_ns=lambda: 1,
        clock=_clock,
        pause=_no_pause,
    )


def _clock() -> float:
    return 0.0


async def _no_pause(seconds: float) -> None:
    """Between two tries of one pool."""


def chat(*, stream: bool = False) -> ModelRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    return parse_chat(body, len(json.dumps(body)))


async def ask(door: Door, *, stream: bool = False) -> Answer:
    return await door.answer(_REQUEST, _ADMISSION, None, chat(stream=stream), Pins())


def _most(usd_per_kwh: float) -> float:
    microjoules_per_token = prior_rates(1e5).larger_microjoules_per_token
    return 2048 * microjoules_per_token * 10 / 3.6e12 * usd_per_kwh * 1e12


@pytest.mark.parametrize("prices", [(0.5, 0.75), (0.75, 0.5)])
async def test_the_hold_comes_before_any_work_and_is_left_to_the_receipt_to_end(prices: tuple[float, float]):
    ledger = FakeLedger()
    answer = await ask(make_door(ledger, whole, prices=prices))
    assert [type(item) async for item in answer.items] == [Payload, Settled]
    assert ledger.calls == ["place", "run"]
    assert ledger.amounts == [pytest.approx(_most(0.75), abs=1)], "the dearest candidate's"


async def test_a_streams_hold_is_left_to_the_receipt_too():
    ledger = FakeLedger()
    door = make_door(ledger, streaming)
    answer = await ask(door, stream=True)
    assert set(door._holds._open) == {_REQUEST}
    assert [type(item) async for item in answer.items] == [Payload, Payload, Settled]
    assert ledger.calls == ["place", "run"]
    assert not door._holds._open


async def test_a_price_of_0_asks_for_a_hold_of_nothing():
    ledger = FakeLedger()
    await ask(make_door(ledger, whole, prices=(0.0, 0.0)))
    assert ledger.amounts == [0]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("insufficient", HTTPStatus.PAYMENT_REQUIRED), ("busy", HTTPStatus.SERVICE_UNAVAILABLE)],
)
async def test_without_a_hold_no_engine_is_asked(outcome: str, status: HTTPStatus):
    ledger = FakeLedger(outcome)
    with pytest.raises(RequestRefused) as refused:
        await ask(make_door(ledger))
    assert refused.value.status == status
    assert ledger.calls == ["place"]


async def test_what_no_pool_can_serve_places_no_hold():
    ledger = FakeLedger()
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{}]}
    with pytest.raises(RequestRefused, match="lacks tools"):
        await make_door(ledger).answer(_REQUEST, _ADMISSION, None, parse_chat(body, 10), Pins())
    assert ledger.calls == []


async def test_a_ledger_that_is_away_leaves_no_hold_and_no_engine_is_asked():
    ledger = FakeLedger(fails=ConnectionError("away"))
    with pytest.raises(ConnectionError):
        await ask(make_door(ledger))
    assert ledger.calls == ["place", "release"]


@pytest.mark.parametrize(
    ("attempts", "status"), [([refusing], HTTPStatus.BAD_REQUEST), ([dying, dying], HTTPStatus.BAD_GATEWAY)]
)
async def test_a_request_that_ran_nowhere_leaves_no_hold(attempts: list[Attempt], status: HTTPStatus):
    ledger = FakeLedger()
    with pytest.raises(RequestRefused) as refused:
        await ask(make_door(ledger, *attempts))
    assert refused.value.status == status
    assert ledger.live == set()


async def test_a_second_attempt_runs_under_the_first_ones_hold():
    ledger = FakeLedger()
    answer = await ask(make_door(ledger, dying, whole))
    assert [type(item) async for item in answer.items] == [Payload, Settled]
    assert ledger.calls == ["place", "run", "run"]


async def test_a_fault_of_ours_leaves_no_hold():
    ledger = FakeLedger()
    with pytest.raises(ZeroDivisionError):
        await ask(make_door(ledger, broken))
    assert ledger.live == set()


@pytest.mark.parametrize("attempt", [dying_later, dying_in_mid_stream])
async def test_an_answer_that_breaks_off_leaves_no_hold(attempt: Attempt):
    ledger = FakeLedger()
    answer = await ask(make_door(ledger, dying_in_mid_stream, attempt), stream=True)
    with pytest.raises(RequestRefused, match="the answer broke off: replica died"):
        _ = [item async for item in answer.items]
    assert ledger.live == set()


@pytest.mark.parametrize(
    "attempts", [[charged_later, charged_later], [charged_later, dying], [charged_later, refusing]]
)
async def test_an_attempt_that_may_be_charged_leaves_its_hold_to_the_receipt_or_the_lease(attempts: list[Attempt]):
    ledger = FakeLedger()
    door = make_door(ledger, *attempts)
    with pytest.raises(RequestRefused):
        await ask(door)
    assert ledger.live == {_REQUEST}
    assert not door._holds._open, "it isn't renewed any more"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_whose_receipt_comes_later_leaves_its_hold_to_it(stream: bool):
    ledger = FakeLedger()
    door = make_door(ledger, answering_and_charged_later)
    with pytest.raises(RequestRefused, match="the answer broke off: its receipt cannot be stored now"):
        _ = [item async for item in (await ask(door, stream=stream)).items]
    assert ledger.live == {_REQUEST}
    assert not door._holds._open, "it isn't renewed any more"


async def test_a_client_that_goes_before_the_answer_leaves_its_hold_to_the_receipt_or_the_lease():
    """What ran until then is charged: until it is, the hold covers it."""
    ledger = FakeLedger()
    door = make_door(ledger, hanging)
    asking = asyncio.create_task(ask(door))
    await asyncio.wait_for(ledger.has_run.wait(), 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert ledger.calls == ["place", "run"]
    assert not door._holds._open, "it isn't renewed any more"


@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_that_goes_after_the_start_leaves_its_hold_to_the_receipt_or_the_lease(has_begun: bool):
    ledger = FakeLedger()
    door = make_door(ledger, hanging_later)
    answer = await ask(door, stream=True)
    assert isinstance(await anext(answer.items), Payload)
    if has_begun:
        reading = asyncio.create_task(anext(answer.items))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await answer.items.aclose()
    del answer
    assert ledger.calls == ["place", "run"]
    assert not door._holds._open, "it isn't renewed any more"


class SeeingLedger(FakeLedger):
    """Sees, when a hold is placed, how many requests the pools are taken to have."""

    door: Door
    in_flight = 0

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        self.in_flight = sum(pool.in_flight for pool in self.door.planner.pools_now())
        return await super().place(wanted)


@pytest.mark.parametrize("outcome", ["placed", "insufficient"])
async def test_a_request_counts_at_its_pool_before_its_hold_is_placed_so_that_a_burst_is_spread(outcome: str):
    ledger = SeeingLedger(outcome)
    ledger.door = make_door(ledger, whole)
    with suppress(RequestRefused):
        _ = [item async for item in (await ask(ledger.door)).items]
    assert ledger.in_flight == 1
    assert not any(pool.in_flight for pool in ledger.door.planner.pools_now())
