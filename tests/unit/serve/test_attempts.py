"""The attempts of one request, on a dispatch that plays what it is given."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pool import make_pool

from clusters.grid import YearlyMeansFeed
from placement.pins import Pins
from placement.plan import Candidate, ExchangeRates, Plan
from placement.tiers import Tier
from receipts.draft import RequestContext
from receipts.holds import Admission, HoldAnswer, HoldWanted
from serve.answer import with_energy
from serve.attempts import Attempts, Begun, Job, Tried, next_pool
from serve.chat_request import parse_chat
from serve.deadlines import Deadlines, LimitAfter
from serve.errors import AttemptFailed, RequestRefused, SeamBroken
from serve.holds import LEASE_S, Holds
from serve.messages import DONE, Allowance, EngineTask, Payload, Refused, ReplicaItem, Settled, Started, Working
from serve.pool_health import PoolHealth
from serve.pools import Pool
from serve.request_context import AskedRequest, Placed
from serve.shapes import Shape

_REQUEST = "0" * 32
_ENERGY = {
    "total_joules": 0.5,
    "method": "util-tdp",
    "method_confidence": "derived",
    "estimated_joules": 0.0,
    "scope": ["cpu"],
    "counter_period_ms": 10.0,
    "mean_batch": 1.0,
    "errors": {"conservation_percent": 0.0, "counter_percent": 30.0, "allocation_percent": None},
}
_RECEIPT = Settled(
    json.dumps(
        {
            "receipt_id": "rcpt_x",
            "energy": _ENERGY,
            "carbon": {"gco2eq_total": None},
            "workload": {"tokens": {"input": 9, "cached": 6, "output": 4}},
        }
    ).encode()
)
_WORDS = ("one ", "two ", "three ", "four ")
_TOKENS = (11, 22, 33, 44)


def _started(pool: str) -> Started:
    return Started(replica=pool, silicon="cpu", energy_method=None)


def _event(text: str, *, created: int, is_first: bool = False, finish: str | None = None) -> bytes:
    delta = {"role": "assistant", "content": text} if is_first else {"content": text}
    chunk = {
        "id": "chatcmpl-x",
        "object": "chat.completion.chunk",
        "created": created,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _stream(created: int, delivered: Sequence[int]) -> list[Payload]:
    """A whole answer, as an engine gives it after ``delivered`` tokens; ``created`` differs with each attempt."""
    assert tuple(delivered) == _TOKENS[: len(delivered)]
    payloads = [Payload(_event("", created=created, is_first=True))]
    for index, (word, token) in enumerate(zip(_WORDS, _TOKENS, strict=True)):
        finish = "stop" if index == len(_WORDS) - 1 else None
        tokens = (token,) if index >= len(delivered) else ()
        payloads.append(Payload(_event(word, created=created, finish=finish), tokens))
    usage = {"id": "chatcmpl-x", "created": created, "choices": [], "usage": {"completion_tokens": len(_WORDS)}}
    payloads.append(Payload(b"data: " + json.dumps(usage, separators=(",", ":")).encode() + b"\n\n"))
    return [*payloads, Payload(DONE)]


_BODY = Payload(b'{"id":"chatcmpl-x","choices":[{"message":{"content":"one two three four "}}]}')
_DIED = AttemptFailed("replica died", "killed", energy_microjoules=7)
_FULL = AttemptFailed("queue full", "full", is_full=True, energy_microjoules=0)


def admitted(account: str) -> Admission:
    """By a key of the account's."""
    return Admission(account=account, api_key_id=f"key_{'0' * 16}", key_sha256=bytes(32))


@dataclass
class Call:
    pool: str
    context: RequestContext
    body: Mapping[str, Any]
    delivered: tuple[int, ...]
    first_limit_s: float
    allowance: Allowance | None


Script = Callable[[Call, int], Sequence[ReplicaItem | Exception]]


def answers(call: Call, number: int) -> Sequence[ReplicaItem | Exception]:
    if not call.body.get("stream"):
        return [_started(call.pool), Working(), _BODY, _RECEIPT]
    return [_started(call.pool), *_stream(number, call.delivered), _RECEIPT]


def fails(failure: Exception = _DIED, after: int = 0) -> Script:
    """Fails when it has given so many items."""
    return lambda call, number: [*answers(call, number)[:after], failure]


def refuses(call: Call, number: int) -> Sequence[ReplicaItem | Exception]:
    return [Refused(status=400, message="no", param="messages")]


class FakeDispatch:
    """Plays scripts in turn; an error that is thrown into it makes the attempt fail, as the real one has it."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.calls: list[Call] = []
        self.open = 0
        self.aborted: list[str] = []

    async def __call__(
        self,
        pool: str,
        task: EngineTask,
        limit_after: LimitAfter,
    ) -> AsyncGenerator[ReplicaItem, None]:
        assert self.open == 0, "two attempts at once"
        context, first_limit_s = RequestContext.from_json(task.context), limit_after(None)
        call = Call(pool, context, task.body, task.delivered, first_limit_s, task.allowance)
        self.calls.append(call)
        self.open += 1
        try:
            for item in self.scripts[len(self.calls) - 1](call, len(self.calls)):
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                yield item
        except SeamBroken as broken:
            raise AttemptFailed("went on differently", "") from broken
        except GeneratorExit:
            self.aborted.append(pool)
            raise
        finally:
            self.open -= 1

    @property
    def pools(self) -> list[str]:
        return [call.pool for call in self.calls]


class FakeLoad:
    def __init__(self, asleep: Sequence[str] = ()) -> None:
        self.asleep = asleep
        self.in_flight: dict[str, int] = {}
        self.service_s: list[float | None] = []
        self.learned: list[tuple[object, ...]] = []
        self.lengths: list[int] = []

    def took(self, pool: str) -> None:
        self.in_flight[pool] = self.in_flight.get(pool, 0) + 1

    def gave_back(self, pool: str, service_s: float | None) -> None:
        self.in_flight[pool] -= 1
        self.service_s.append(service_s)

    def is_asleep(self, pool: str) -> bool:
        return pool in self.asleep

    def wake_s(self, pool: str) -> float:
        return 30.0

    def learn(self, pool: str, tokens_in: int, tokens_out: int, microjoules: int | None) -> None:
        self.learned.append((pool, tokens_in, tokens_out, microjoules))

    def learn_length(self, tier: Tier, tokens_out: int, max_tokens: int | None) -> None:
        self.lengths.append(tokens_out)


class FakeLedger:
    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        return HoldAnswer(outcome="placed", book_began_ns=1, balance_usd_picos=None, held_usd_picos=None, reason=None)

    async def renew(self, holds: object, lease_s: float) -> None:
        raise AssertionError("no hold of these tests lives so long")

    def release(self, account: str, request_id: str) -> None:
        return


_A, _B, _OTHER = "m@o/a", "m@o/b", "big@o/c"


@dataclass
class Bench:
    """One request on these pools, by these scripts."""

    scripts: Sequence[Script]
    pools: Sequence[str] = (_A, _OTHER, _B)
    most: int = 3
    most_kept_bytes: int = 10**6
    body: Mapping[str, Any] = field(default_factory=dict)
    load: FakeLoad = field(default_factory=FakeLoad)
    shape: Shape = Shape.CHAT
    usd_per_kwh: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dispatch = FakeDispatch(*self.scripts)
        self.health = PoolHealth(lambda: 0.0)
        self.pauses: list[float] = []
        ticks = itertools.count()
        self.attempts = Attempts(
            dispatch=self.dispatch,
            load=self.load,
            lessons=self.load,
            health=self.health,
            deadlines=Deadlines(first_token_s=5.0, between_tokens_s=2.0),
            most=self.most,
            most_kept_bytes=self.most_kept_bytes,
            clock=lambda: float(next(ticks)),
            pause=self._pause,
        )

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def items(self, *, stream: bool) -> AsyncGenerator[Begun | Payload | Settled, None]:
        body = {"model": "auto", "messages": [{"role": "user", "content": "count"}], "stream": stream, **self.body}
        request = replace(parse_chat(body, len(json.dumps(body))), shape=self.shape)
        pools = [make_pool(key, simulated=True, usd_per_kwh=self.usd_per_kwh.get(key, 0.5)) for key in self.pools]
        plan = Plan(candidates=[_candidate(pool.key) for pool in pools], rejections=[])
        rates = ExchangeRates(usd_per_kgco2=0.2, usd_per_hour_waited=0.01)
        asked = AskedRequest(
            request_id=_REQUEST,
            admission=Admission(account="acme", api_key_id="key_" + "1" * 16, key_sha256=b"k" * 32),
            shape=self.shape,
            customer_tag=None,
            tier=Tier.L1,
            placed=Placed.by(plan, Pins(), rates, accepted_unix_ns=5),
            price_version="1",
            carbon=YearlyMeansFeed(),
        )
        hold = await Holds(FakeLedger()).place("acme", _REQUEST, 1, admitted("acme"))
        return self.attempts.items(Job(asked=asked, request=request, pools=pools, hold=hold))

    async def run(self, *, stream: bool) -> list[Begun | Payload | Settled]:
        return [item async for item in await self.items(stream=stream)]

    async def refusal(self, *, stream: bool) -> RequestRefused:
        with pytest.raises(RequestRefused) as refused:
            await self.run(stream=stream)
        assert set(self.load.in_flight.values()) <= {0}
        return refused.value


def _candidate(pool: str) -> Candidate:
    return Candidate(
        pool=pool,
        expected_microjoules=10.4,
        energy_usd=1e-9,
        facility_usd=2e-9,
        carbon_usd=3e-9,
        wait_usd=4e-9,
        network_usd=5e-9,
        wait_s=0.0,
        is_set_aside=False,
    )


def _begun(items: Sequence[object]) -> Begun:
    first = items[0]
    assert isinstance(first, Begun)
    return first


async def _seen(items: Sequence[Begun | Payload | Settled], *, include_usage: bool = False) -> list[Any]:
    """The chunks that a client gets, parsed; the last is the string [DONE]."""

    async def answer() -> AsyncGenerator[Payload | Settled, None]:
        for item in items:
            if not isinstance(item, Begun):
                yield item

    sent = [event async for event in with_energy(answer(), Shape.CHAT, include_usage=include_usage)]
    assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in sent)
    texts = [event.removeprefix(b"data: ").strip() for event in sent]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in texts]


def _text(chunks: Sequence[Any]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks[:-1] for choice in chunk["choices"])


async def test_a_unary_answer_is_given_by_the_first_candidate():
    bench = Bench([answers])
    items = await bench.run(stream=False)
    assert (_begun(items).pool.key, items[1:]) == (_A, [_BODY, _RECEIPT])
    assert bench.load.learned == [(_A, 3, 4, 500_000)]
    assert bench.load.lengths == [4]
    assert bench.load.service_s == [1.0]


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_unary_answer_that_fails_before_it_is_settled_is_given_by_the_next_one(after: int):
    """Of any model: nothing of the first attempt goes out, be it whole."""
    bench = Bench([fails(after=after), answers])
    items = await bench.run(stream=False)
    assert (_begun(items).pool.key, _begun(items).started.replica) == (_OTHER, _OTHER)
    assert items[1:] == [_BODY, _RECEIPT]
    second = bench.dispatch.calls[1].context
    assert [each.model_dump() for each in second.attempts] == [
        {"pool": _A, "outcome": "replica died", "energy_microjoules": 7}
    ]
    assert (second.model, second.operator_name, second.region, second.simulated) == ("big", "o", "c", True)
    assert bench.health.is_set_aside(_A)
    assert not bench.health.is_set_aside(_OTHER)
    assert set(bench.load.in_flight.values()) == {0}


async def test_every_attempt_may_cost_what_is_held_at_its_own_pools_price():
    bench = Bench([fails(after=0), answers], usd_per_kwh={_A: 0.25, _OTHER: 0.75})
    await bench.run(stream=False)
    assert [call.allowance for call in bench.dispatch.calls] == [
        Allowance(account="acme", usd_picos=1, usd_per_kwh=price, lease_s=LEASE_S) for price in (0.25, 0.75)
    ]


async def test_an_embeddings_charge_is_not_looked_at():
    """All of its tokens are its prompt's, which its hold is of: there is nothing to end sooner."""
    bench = Bench([answers], shape=Shape.EMBEDDING)
    await bench.run(stream=False)
    assert bench.dispatch.calls[0].allowance is None


async def test_a_pool_that_failed_is_tried_again_only_after_a_pause_another_one_at_once():
    alone = Bench([fails(after=0), fails(after=0), answers], pools=(_A,))
    assert (await alone.run(stream=False))[1:] == [_BODY, _RECEIPT]
    assert alone.pauses == [2.0, 4.0]
    beside = Bench([fails(after=0), fails(after=0), answers])
    await beside.run(stream=False)
    assert beside.pauses == []


@pytest.mark.parametrize("after", [0, 1])
async def test_a_stream_that_fails_before_its_first_event_begins_on_the_next_one(after: int):
    bench = Bench([fails(after=after), answers])
    items = await bench.run(stream=True)
    assert _begun(items).pool.key == _OTHER
    assert bench.dispatch.calls[1].delivered == ()
    assert _text(await _seen(items)) == "one two three four "


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("after", range(2, 10))
async def test_a_stream_cut_anywhere_is_one_unbroken_stream_for_its_client(after: int, include_usage: bool):
    """Whatever was sent: the role, some words, the end, the usage, ``[DONE]``."""
    uncut = await _seen(await Bench([answers]).run(stream=True), include_usage=include_usage)
    bench = Bench([fails(after=after), answers])
    items = await bench.run(stream=True)
    assert await _seen(items, include_usage=include_usage) == uncut
    assert bench.dispatch.pools == [_A, _B], "only where the same model runs"
    assert bench.dispatch.calls[1].delivered == _TOKENS[: max(0, min(after - 2, 4))]
    placement = bench.dispatch.calls[1].context.placement
    assert placement is not None
    assert placement.resumed_after_tokens == len(bench.dispatch.calls[1].delivered)
    assert len([chunk for chunk in uncut[:-1] if "energy" in chunk]) == 1


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 9))
async def test_a_stream_cut_twice_is_one_unbroken_stream_too(first: int, second: int):
    uncut = await _seen(await Bench([answers]).run(stream=True))
    bench = Bench([fails(after=first), fails(after=second), answers], pools=(_A, _B))
    assert await _seen(await bench.run(stream=True)) == uncut
    delivered = [len(call.delivered) for call in bench.dispatch.calls]
    assert delivered == sorted(delivered)
    assert bench.dispatch.pools == [_A, _B, _A]


async def test_a_resumed_answer_teaches_no_length():
    bench = Bench([fails(after=4), answers])
    await bench.run(stream=True)
    assert bench.load.lengths == []
    assert len(bench.load.learned) == 1


async def test_what_cannot_be_resumed_breaks_off_and_says_why():
    bench = Bench([fails(after=4)], body={"n": 2})
    refusal = await bench.refusal(stream=True)
    assert refusal.message == "the answer broke off: replica died; it can't be resumed: n is above 1"
    assert refusal.status == HTTPStatus.BAD_GATEWAY


async def test_nothing_is_kept_of_a_stream_that_cannot_be_resumed():
    bench = Bench([answers], body={"n": 2})
    items = await bench.items(stream=True)
    await anext(items)
    await anext(items)
    course = items.ag_frame.f_locals["course"]
    assert (list(course.sent), course.delivered) == ([], [])
    await items.aclose()


async def test_past_its_bound_nothing_is_kept_of_a_stream_and_it_breaks_off():
    bench = Bench([fails(after=4)], most_kept_bytes=300)
    items = await bench.items(stream=True)
    assert isinstance(await anext(items), Begun)
    await anext(items)
    course = items.ag_frame.f_locals["course"]
    assert len(list(course.sent)) == 1
    await anext(items)
    assert not isinstance(await anext(items), Begun)
    assert (list(course.sent), course.delivered) == ([], [])
    with pytest.raises(RequestRefused, match="it can't be resumed: too much of it was sent"):
        await anext(items)


async def test_without_another_pool_of_the_model_the_same_one_is_asked_again():
    bench = Bench([fails(after=4), answers], pools=(_A, _OTHER))
    assert _text(await _seen(await bench.run(stream=True))) == "one two three four "
    assert bench.dispatch.pools == [_A, _A]


async def test_attempts_are_bounded_and_the_last_failure_is_told():
    bench = Bench([fails(), fails(), fails(AttemptFailed("timeout", ""))])
    refusal = await bench.refusal(stream=False)
    assert bench.dispatch.pools == [_A, _OTHER, _B]
    assert refusal.message == "no attempt of 3 succeeded; the last: timeout"
    assert refusal.status == HTTPStatus.GATEWAY_TIMEOUT


async def test_a_stream_whose_every_resume_fails_breaks_off():
    bench = Bench([fails(after=4), fails(), fails()])
    refusal = await bench.refusal(stream=True)
    assert bench.dispatch.pools == [_A, _B, _A]
    assert refusal.message == "the answer broke off: replica died; 3 attempts failed"


async def test_what_the_client_got_wrong_is_tried_once():
    bench = Bench([refuses])
    refusal = await bench.refusal(stream=False)
    assert (refusal.status, refusal.message, refusal.param) == (HTTPStatus.BAD_REQUEST, "no", "messages")
    assert not bench.health.is_set_aside(_A)


async def test_an_engine_that_refuses_to_go_on_breaks_the_answer_off():
    bench = Bench([fails(after=4), refuses])
    refusal = await bench.refusal(stream=True)
    assert refusal.message == "the answer broke off: it can't be resumed; no"
    assert not bench.health.is_set_aside(_B)


async def test_a_full_pool_is_passed_over_and_not_set_aside_or_asked_again():
    bench = Bench([fails(_FULL), answers])
    await bench.run(stream=False)
    assert bench.dispatch.pools == [_A, _OTHER]
    assert not bench.health.is_set_aside(_A)
    attempt = bench.dispatch.calls[1].context.attempts[0]
    assert (attempt.outcome, attempt.energy_microjoules) == ("queue full", 0)


async def test_full_pools_use_up_no_attempts():
    more = tuple(f"m@o/{region}" for region in "cdef")
    bench = Bench([fails(_FULL)] * 4 + [fails(), answers], pools=(*more, _A, _B), most=2)
    await bench.run(stream=False)
    assert bench.dispatch.pools == [*more, _A, _B]
    assert [each.outcome for each in bench.dispatch.calls[-1].context.attempts] == ["queue full"] * 4 + ["replica died"]


@pytest.mark.parametrize("is_charged", [True, False])
async def test_a_ledger_that_is_away_when_an_answer_is_whole_sets_no_pool_aside(is_charged: bool):
    unbooked = AttemptFailed("its receipt cannot be stored now", "away", is_charged=is_charged, is_whole=True)
    bench = Bench([fails(unbooked, after=3)] * 3)
    await bench.refusal(stream=False)
    assert not any(map(bench.health.is_set_aside, bench.pools))


async def test_when_all_are_full_the_client_hears_when_to_come_back():
    bench = Bench([fails(_FULL), fails(_FULL)], pools=(_A, _OTHER))
    refusal = await bench.refusal(stream=False)
    assert refusal.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert refusal.retry_after_s is not None


@pytest.mark.parametrize("stream", [True, False])
async def test_what_its_account_is_charged_for_does_not_run_again(stream: bool):
    charged = AttemptFailed("replica died", "killed", is_charged=True)
    bench = Bench([fails(charged, after=2)])
    refusal = await bench.refusal(stream=stream)
    assert bench.dispatch.pools == [_A]
    assert refusal.message.startswith("the answer broke off: replica died; what it ran")


async def test_a_resumed_stream_that_contradicts_the_first_fails_and_is_not_the_clients_cost():
    def contradicts(call: Call, number: int) -> Sequence[ReplicaItem | Exception]:
        wrong = _event("quite ", created=number)
        return [_started(call.pool), _stream(number, call.delivered)[0], Payload(wrong), _RECEIPT]

    bench = Bench([fails(after=5), contradicts, answers])
    assert _text(await _seen(await bench.run(stream=True))) == "one two three four "
    assert bench.dispatch.calls[2].context.attempts[1].outcome == "went on differently"
    assert bench.dispatch.aborted == []


async def test_tokens_of_a_contradiction_are_not_gone_on_from():
    def contradicts(call: Call, number: int) -> Sequence[ReplicaItem | Exception]:
        return [_started(call.pool), _stream(number, call.delivered)[0], Payload(_event("quite ", created=2), (99,))]

    bench = Bench([fails(after=5), contradicts, answers])
    assert _text(await _seen(await bench.run(stream=True))) == "one two three four "
    assert bench.dispatch.calls[2].delivered == bench.dispatch.calls[1].delivered == _TOKENS[:3]


async def test_the_first_limit_of_a_sleeping_pool_includes_its_waking():
    bench = Bench([fails(), answers], pools=(_A, _OTHER), load=FakeLoad(asleep=[_OTHER]))
    await bench.run(stream=False)
    assert [call.first_limit_s for call in bench.dispatch.calls] == [5.0, 35.0]


async def test_a_client_that_goes_aborts_the_attempt_and_says_nothing_of_the_pool():
    bench = Bench([fails(), answers])
    items = await bench.items(stream=True)
    await anext(items)
    await items.aclose()
    assert bench.dispatch.aborted == [_OTHER]
    assert set(bench.load.in_flight.values()) == {0}
    assert not bench.health.is_set_aside(_OTHER)


@settings(deadline=None)
@given(st.integers(0, 60), st.booleans())
async def test_whenever_a_client_goes_nothing_of_its_request_is_left(ticks: int, stream: bool):
    bench, now_s = Bench([fails(after=3), fails(_FULL), answers], pools=(_A, _B), most=3), 0.0
    bench.health = bench.attempts._health = PoolHealth(lambda: now_s)
    bench.health.failed(_A)
    now_s = 1.0
    request = asyncio.create_task(bench.run(stream=stream))
    for _ in range(ticks):
        await asyncio.sleep(0)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    now_s = 1000.0
    assert bench.dispatch.open == 0
    assert set(bench.load.in_flight.values()) <= {0}
    assert not any(map(bench.health.is_set_aside, (_A, _B)))


async def test_a_client_that_goes_before_the_answer_leaves_the_probe_to_the_next_request():
    now_s = 0.0
    bench = Bench([lambda *_: []])
    bench.health = bench.attempts._health = PoolHealth(lambda: now_s)
    bench.health.failed(_A)
    now_s = 1.0
    gone = asyncio.CancelledError()

    def hangs(call: Call, number: int) -> Sequence[ReplicaItem | Exception]:
        assert bench.health.is_set_aside(_A), "this is its probe"
        raise gone

    bench.dispatch.scripts = [hangs]
    with pytest.raises(asyncio.CancelledError):
        await bench.run(stream=False)
    assert not bench.health.is_set_aside(_A)
    assert bench.health.probe(_A)


async def test_an_engine_always_counts_usage_and_gets_the_pools_own_model():
    bench = Bench([answers])
    await bench.run(stream=True)
    body = bench.dispatch.calls[0].body
    assert (body["model"], body["stream_options"]) == ("m", {"include_usage": True})


_POOLS = [make_pool(key) for key in ("m@o/a", "m@o/b", "big@o/c", "m@o/d", "big@o/e")]
_TRIED = st.lists(st.builds(Tried, pool=st.sampled_from(_POOLS), is_full=st.booleans()), max_size=8)


@given(_TRIED, st.integers(1, 8), st.sampled_from([None, *_POOLS]), st.sets(st.sampled_from([p.key for p in _POOLS])))
def test_the_next_pool_is_the_first_of_those_tried_least_and_the_doubtful_ones_come_last(
    tried: list[Tried], most: int, answering: Pool | None, doubtful: set[str]
):
    chosen = next_pool(_POOLS, tried, most, answering, doubtful.__contains__)
    if not tried:
        assert chosen == _POOLS[0]
        return
    full = {each.pool.key for each in tried if each.is_full}
    allowed = [pool for pool in _POOLS if pool.key not in full and (answering is None or pool.model == answering.model)]
    if sum(not each.is_full for each in tried) >= most or not allowed:
        assert chosen is None
        return
    assert chosen in allowed
    ranks = [(sum(each.pool.key == pool.key for each in tried), pool.key in doubtful) for pool in allowed]
    assert allowed.index(chosen) == ranks.index(min(ranks))


async def test_a_retry_passes_over_a_pool_that_sleeps_while_another_is_awake():
    bench = Bench([fails(), answers], load=FakeLoad(asleep=[_OTHER]))
    await bench.run(stream=False)
    assert bench.dispatch.pools == [_A, _B]
