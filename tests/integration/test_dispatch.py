"""Attempts on deployments that are fakes: what becomes of one that hangs, and of one whose client went."""

import asyncio
import itertools
import warnings
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from serve.errors import AttemptFailed, NotBooked
from serve.messages import Payload, ReplicaItem

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
    from serve.dispatch import ServeDispatch

_REQUEST = "0" * 32
# Five seconds more are given; so little is left that a replica which says nothing is over it at once.
_NO_TIME = itertools.repeat(-5.0)
_TIME = itertools.repeat(60.0)


class FakeItems:
    """Says what it is given, then raises or hangs."""

    def __init__(self, calls: list[str], items: Sequence[ReplicaItem], raises: Exception | None) -> None:
        self._calls = calls
        self._items = iter(items)
        self._raises = raises

    def __aiter__(self) -> "FakeItems":
        return self

    async def __anext__(self) -> ReplicaItem:
        for item in self._items:
            return item
        if self._raises is not None:
            raise self._raises
        await asyncio.sleep(3600)
        raise AssertionError

    def cancel(self) -> None:
        self._calls.append("cancel")


class Remote:
    """As Ray's actors have it: `something.remote(...)`."""

    def __init__(self, remote: Any) -> None:
        self.remote = remote


class FakeHandle:
    def __init__(self, items: FakeItems) -> None:
        self.chat = Remote(lambda *_: items)

    def options(self, *, stream: bool) -> "FakeHandle":
        assert stream
        return self


class FakeMeter:
    def __init__(self, calls: list[str], answer: bool | Exception) -> None:
        self.give_up = Remote(self._give_up)
        self._calls = calls
        self._answer = answer

    async def _give_up(self, request_id: str) -> bool:
        assert request_id == _REQUEST
        self._calls.append("give up")
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def attempt(
    limits: Any,
    *,
    items: Sequence[ReplicaItem] = (),
    raises: Exception | None = None,
    meters: Sequence[bool | Exception] = (True,),
) -> tuple[list[str], AttemptFailed]:
    calls: list[str] = []
    handle: Any = FakeHandle(FakeItems(calls, items, raises))
    of_hosts: Any = [FakeMeter(calls, answer) for answer in meters]
    dispatch = ServeDispatch({"p": handle}, lambda: of_hosts)
    with pytest.raises(AttemptFailed) as failed:
        async for _ in dispatch("p", _REQUEST, b"", {}, limits):
            pass
    return calls, failed.value


@pytest.mark.parametrize("items", [[], [Payload(b"x")]])
async def test_the_meters_hear_that_a_silent_attempt_is_given_up_before_its_replica_does(items: list[ReplicaItem]):
    calls, failure = await attempt(_NO_TIME, items=items, meters=[True, True])
    assert calls == ["give up", "give up", "cancel"]
    assert (failure.outcome, failure.may_be_charged) == ("timeout", False)


@pytest.mark.parametrize("meters", [[True, False], [True, ConnectionError("away")]])
async def test_what_no_meter_took_for_failed_may_be_charged(meters: list[bool | Exception]):
    calls, failure = await attempt(_NO_TIME, meters=meters)
    assert calls[-1] == "cancel"
    assert (failure.outcome, failure.may_be_charged) == ("timeout", True)


@pytest.mark.parametrize(
    ("raises", "may_be_charged"), [(NotBooked("LedgerUnavailable"), True), (RuntimeError("broke"), False)]
)
async def test_a_failure_tells_whether_it_may_be_charged(raises: Exception, may_be_charged: bool):
    calls, failure = await attempt(_TIME, raises=raises)
    assert calls == ["cancel"]
    assert failure.may_be_charged == may_be_charged


async def test_a_client_that_goes_aborts_the_attempt_which_is_charged():
    calls: list[str] = []
    handle: Any = FakeHandle(FakeItems(calls, [Payload(b"x")], None))
    dispatch = ServeDispatch({"p": handle}, list)
    async with aclosing(dispatch("p", _REQUEST, b"", {}, _TIME)) as items:
        assert await anext(items) == Payload(b"x")
        reading = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert calls == ["cancel"]
