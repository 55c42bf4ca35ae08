"""Attempts on deployments that are fakes: what becomes of one that fails, and of one whose client went."""

import asyncio
import warnings
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serve.errors import AttemptFailed, NotBooked, SeamBroken
from serve.messages import (
    DONE,
    EngineTask,
    GivenUp,
    Opening,
    Payload,
    Refused,
    ReplicaItem,
    ReplicaMessage,
    Settled,
    Started,
)
from serve.shapes import Shape

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
    from ray.serve.exceptions import BackPressureError

    from serve.dispatch import ServeDispatch

_REQUEST = "0" * 32
_CONTEXT = b"context"
_FAILED = GivenUp(is_charged=False, energy_microjoules=5)
_STARTED = Started(replica="r", silicon="cpu", energy_method=None)


def no_time(_last: ReplicaItem | None) -> float:
    return 0.0


def time_enough(_last: ReplicaItem | None) -> float:
    return 60.0


class FakeItems:
    """Says what it is given, then raises, ends or hangs."""

    def __init__(self, calls: list[str], items: Sequence[ReplicaMessage], then: Exception | None) -> None:
        self._calls = calls
        self._items = iter(items)
        self._then = then

    def __aiter__(self) -> "FakeItems":
        return self

    async def __anext__(self) -> ReplicaMessage:
        for item in self._items:
            return item
        if self._then is not None:
            raise self._then
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self._calls.append("waiting cancelled")  # Ray Serve's takes it for the client's going
            raise
        raise AssertionError

    def cancel(self) -> None:
        self._calls.append("cancel")


class Remote:
    """As Ray's actors have it: `something.remote(...)`."""

    def __init__(self, remote: Any) -> None:
        self.remote = remote


class FakeHandle:
    def __init__(self, items: FakeItems) -> None:
        self.answer = Remote(lambda *_: items)

    def options(self, *, stream: bool, request_serialization: str, response_serialization: str) -> "FakeHandle":
        assert stream
        assert request_serialization == response_serialization == "pickle"
        return self


class FakeMeter:
    """One that ``settles`` a whole answer gives its receipt; None: the attempt had failed, an error: it has it not."""

    def __init__(
        self,
        calls: list[str],
        asked: asyncio.Event,
        answer: GivenUp | Exception,
        settles: bytes | Exception | None,
    ) -> None:
        self.give_up = Remote(self._give_up)
        self._asked = asked
        self.settle = Remote(self._settle)
        self._calls = calls
        self._answer = answer
        self._settles = settles

    async def _give_up(self, request_id: str, context: bytes) -> GivenUp:
        assert (request_id, context) == (_REQUEST, _CONTEXT)
        self._calls.append("give up")
        self._asked.set()
        return await _answered(self._answer)

    async def _settle(self, request_id: str, replica: str, outcome: str, context: bytes) -> bytes | None:
        assert (request_id, replica, outcome, context) == (_REQUEST, "r", "finished", _CONTEXT)
        self._calls.append("settle")
        return await _answered(self._settles)


async def _answered(answer: Any) -> Any:
    if isinstance(answer, TimeoutError):
        await asyncio.sleep(3600)
    if isinstance(answer, Exception):
        raise answer
    return answer


class Bench:
    def __init__(
        self,
        *,
        items: Sequence[ReplicaMessage] = (),
        then: Exception | None = None,
        meters: Sequence[GivenUp | Exception] = (_FAILED,),
        settles: bytes | Exception | None = None,
    ) -> None:
        self.calls: list[str] = []
        self.asked = asyncio.Event()
        handle: Any = FakeHandle(FakeItems(self.calls, items, then))
        of_hosts: Any = [FakeMeter(self.calls, self.asked, answer, settles) for answer in meters]
        self._dispatch = ServeDispatch({"p": handle}, lambda: of_hosts, meters_answer_within_s=0.2)

    def run(self, limit_after: Any = time_enough, *, stream: bool = True) -> Any:
        task = EngineTask(request_id=_REQUEST, shape=Shape.CHAT, context=_CONTEXT, body={"stream": stream})
        return self._dispatch("p", task, limit_after)

    async def failure(self, limit_after: Any = time_enough) -> AttemptFailed:
        with pytest.raises(AttemptFailed) as failed:
            async for _ in self.run(limit_after):
                pass
        return failed.value


@pytest.mark.parametrize("items", [[], [Opening(_STARTED, Payload(b"x"))]])
async def test_the_meters_hear_that_a_silent_attempt_is_given_up_before_its_replica_does(items: list[ReplicaMessage]):
    bench = Bench(items=items, meters=[_FAILED, GivenUp(is_charged=False, energy_microjoules=None)])
    failure = await bench.failure(no_time)
    assert bench.calls == ["give up", "give up", "waiting cancelled", "cancel"]
    assert (failure.outcome, failure.may_be_charged, failure.energy_microjoules) == ("timeout", False, 5)


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        (RayActorError(), "replica died"),
        (RuntimeError("broke"), "engine error"),
        (NotBooked("LedgerUnavailable"), "its receipt cannot be stored now"),
        (StopAsyncIteration(), "cut short"),
    ],
)
async def test_every_failure_is_given_up_at_the_meters_and_named(then: Exception, outcome: str):
    bench = Bench(items=[Opening(_STARTED, Payload(b"x"))], then=then)
    failure = await bench.failure()
    assert bench.calls == ["give up", "cancel"]
    assert (failure.outcome, failure.is_charged, failure.may_be_charged) == (outcome, False, False)


async def test_what_a_meter_has_as_charged_is_charged():
    bench = Bench(meters=[_FAILED, GivenUp(is_charged=True, energy_microjoules=None)])
    failure = await bench.failure(no_time)
    assert (failure.is_charged, failure.may_be_charged) == (True, True)


@pytest.mark.parametrize("away", [ConnectionError("away"), TimeoutError("it hangs")])
async def test_a_meter_that_did_not_hear_leaves_it_open_and_the_others_are_heard(away: Exception):
    bench = Bench(meters=[away, _FAILED])
    failure = await bench.failure(no_time)
    assert bench.calls[-1] == "cancel"
    assert (failure.is_charged, failure.may_be_charged, failure.energy_microjoules) == (False, True, 5)


async def test_energy_that_no_meter_knows_is_unknown_and_of_several_hosts_summed():
    unknown = GivenUp(is_charged=False, energy_microjoules=None)
    assert (await Bench(meters=[unknown, unknown]).failure(no_time)).energy_microjoules is None
    assert (await Bench(meters=[_FAILED, unknown, _FAILED]).failure(no_time)).energy_microjoules == 10


async def test_a_full_pool_took_nothing_in_and_no_meter_is_asked():
    bench = Bench(then=BackPressureError(num_queued_requests=1, max_queued_requests=1))
    failure = await bench.failure()
    assert bench.calls == ["cancel"]
    assert (failure.is_full, failure.energy_microjoules, failure.may_be_charged) == (True, 0, False)


@pytest.mark.parametrize(("last", "stream"), [(Payload(DONE), True), (Payload(b"{}"), False)])
async def test_a_whole_answer_whose_replica_is_lost_gets_its_receipt_from_the_meter(last: Payload, stream: bool):
    bench = Bench(items=[Opening(_STARTED, last)], then=RayActorError(), settles=b"receipt")
    items = [item async for item in bench.run(stream=stream)]
    assert items == [_STARTED, last, Settled(b"receipt")]
    assert bench.calls == ["settle", "cancel"]


@pytest.mark.parametrize("settles", [None, KeyError("not here")])
async def test_a_whole_answer_that_was_not_settled_as_one_fails(settles: Exception | None):
    bench = Bench(items=[Opening(_STARTED, Payload(DONE))], then=RayActorError(), settles=settles)
    assert (await bench.failure()).outcome == "replica died"
    assert bench.calls == ["settle", "give up", "cancel"]


async def test_an_error_thrown_into_it_makes_it_fail_at_the_meshs_cost():
    bench = Bench(items=[Opening(_STARTED, Payload(DONE))], settles=b"receipt")
    items = bench.run()
    assert [await anext(items), await anext(items)] == [_STARTED, Payload(DONE)]
    with pytest.raises(AttemptFailed, match="text differs"):
        await items.athrow(SeamBroken("text differs"))
    assert bench.calls == ["give up", "cancel"]


@pytest.mark.parametrize("last", [Settled(b"receipt"), Refused(status=400, message="no", param=None)])
async def test_an_attempt_that_ends_is_not_given_up(last: Settled | Refused):
    bench = Bench(items=[last], then=RuntimeError("nobody reads on"))
    assert [item async for item in bench.run()] == [last]
    assert bench.calls == ["cancel"]


async def test_a_client_that_goes_aborts_the_attempt_which_is_charged():
    bench = Bench(items=[Payload(b"x")])
    async with aclosing(bench.run()) as items:
        assert await anext(items) == Payload(b"x")
        reading = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert bench.calls == ["waiting cancelled", "cancel"]


async def test_a_client_that_goes_while_the_meters_are_asked_is_gone_at_once_and_its_replica_hears_of_it():
    bench = Bench(items=[Opening(_STARTED, Payload(b"x"))], meters=[TimeoutError("it hangs")])
    items = bench.run(lambda last: 0.0 if isinstance(last, Payload) else 60.0)
    assert [await anext(items), await anext(items)] == [_STARTED, Payload(b"x")]
    reading = asyncio.create_task(anext(items))
    await bench.asked.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert bench.calls == ["give up", "waiting cancelled", "cancel"]


@pytest.mark.parametrize("is_whole", [True, False])
async def test_only_what_broke_before_the_answer_was_whole_speaks_against_the_pool(is_whole: bool):
    items = [Opening(_STARTED, Payload(DONE if is_whole else b"data: {}\n\n"))]
    failure = await Bench(items=items, then=NotBooked("LedgerUnavailable"), settles=ConnectionError("away")).failure()
    assert (failure.is_whole, failure.is_pools) == (is_whole, not is_whole)
