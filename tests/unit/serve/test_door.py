"""The door where no pool can serve, and what it explains."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from made_pool import make_pool

from clusters.grid import YearlyMeansFeed
from placement.pins import Pins
from placement.plan import ExchangeRates
from placement.tiers import Tier, TierSigns
from receipts.holds import Admission
from serve.chat_request import parse_chat
from serve.deadlines import Deadlines
from serve.door import Door, Price
from serve.errors import RequestRefused
from serve.model_request import ModelRequest
from serve.planner import Planner
from serve.pool_health import PoolHealth

_ADMISSION = Admission(account="acme", api_key_id="key_" + "1" * 16, key_sha256=b"k" * 32)
_FI, _DE = "small@nordic/eu-fi", "big@mitte/eu-de"


class FakeTiers:
    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def classify(self, signs: TierSigns) -> Tier:
        return self._tier


class Untouched:
    """No hold may be placed, and nothing may run."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def _clock() -> float:
    return 0.0


async def _no_pause(seconds: float) -> None:
    """Between two tries of one pool."""


def _door(tier: Tier, unavailable: dict[str, str] | None = None) -> Door:
    pools = {_FI: make_pool(_FI, capable_up_to=Tier.L1), _DE: make_pool(_DE, capable_up_to=Tier.L3)}
    health = PoolHealth(_clock)
    rates = ExchangeRates(usd_per_kgco2=0.0, usd_per_hour_waited=0.0)
    planner = Planner(pools, YearlyMeansFeed(), rates, health, _clock)
    replicas = dict.fromkeys(pools, 1)
    planner.see(replicas, unavailable or {}, replicas)
    untouched: Any = Untouched()
    return Door(
        pools=pools,
        planner=planner,
        tiers=FakeTiers(tier),
        dispatch=untouched,
        holds=untouched,
        carbon=YearlyMeansFeed(),
        price=Price(usd_per_kwh=0.5, version="1"),
        deadlines=Deadlines(first_token_s=1, between_tokens_s=1),
        health=health,
        attempts=3,
        random_bytes=bytes,
        wall_clock_ns=lambda: 0,
        clock=_clock,
        pause=_no_pause,
    )


def _request(**body: object) -> ModelRequest:
    whole = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], **body}
    return parse_chat(whole, len(json.dumps(whole)))


async def _refusal(door: Door, request: ModelRequest, pins: Pins) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        await door.answer("0" * 32, _ADMISSION, None, request, pins)
    return refused.value


async def test_what_no_pool_could_ever_serve_is_422_with_every_reason():
    refusal = await _refusal(_door(Tier.L0), _request(), Pins(region="us"))
    assert refusal.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert _FI in refusal.message
    assert _DE in refusal.message
    assert refusal.message.count("pinned to us") == 2
    assert refusal.retry_after_s is None


async def test_what_a_pool_could_serve_at_another_moment_is_503_and_says_when_to_come_back():
    """The pin still holds: the pool that is there isn't asked."""
    door = _door(Tier.L0, {_FI: "its node is gone"})
    refusal = await _refusal(door, _request(), Pins(region="eu-fi"))
    assert refusal.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert "its node is gone" in refusal.message
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0


async def test_what_may_come_back_is_told_before_what_never_can():
    refusal = await _refusal(_door(Tier.L2, {_DE: "its node is gone"}), _request(), Pins())
    assert refusal.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert refusal.message.index("its node is gone") < refusal.message.index("is capable up to L1")
    refusal = await _refusal(_door(Tier.L0, {_FI: "its node is gone"}), _request(), Pins(region="eu-fi"))
    assert refusal.message.index("its node is gone") < refusal.message.index("pinned to eu-fi")


async def test_a_pool_that_is_away_does_not_make_a_wrong_request_right():
    door = _door(Tier.L3, {_FI: "its node is gone"})
    refusal = await _refusal(door, _request(), Pins(operators=frozenset({"nordic"})))
    assert refusal.status == HTTPStatus.UNPROCESSABLE_ENTITY


async def test_a_model_that_no_pool_serves_is_404():
    refusal = await _refusal(_door(Tier.L0), _request(model="gpt-9"), Pins())
    assert (refusal.status, refusal.param) == (HTTPStatus.NOT_FOUND, "model")


def test_explaining_runs_and_holds_nothing():
    explanation = _door(Tier.L2).explain(_request(), Pins())
    assert explanation.tier == Tier.L2
    assert [each.pool for each in explanation.plan.candidates] == [_DE]
    assert [each.pool for each in explanation.plan.rejections] == [_FI]


def test_request_ids_are_128_bits():
    assert _door(Tier.L0).new_request_id() == "0" * 32
    assert _door(Tier.L0).planner.models == ("big", "small")
