"""`/v1/explain` and `/v1/pools` on a planner of the test's own."""

import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from clusters.grid import YearlyMeansFeed
from clusters.sites import Site
from placement.exchange_rates import PREFERENCES
from placement.pins import Pins
from placement.tiers import Tier
from serve.errors import RequestRefused
from serve.explain import Explanation
from serve.model_request import ModelRequest
from serve.placement_routes import PlacementRoutes
from serve.planner import Planner
from serve.pool_health import PoolHealth
from serve.pools import Pool
from serve.request_body import BodyLimits
from serve.request_pins import RequestPins

PROMPT = "Who wrote Faust? A secret."
BODY = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40}


def pool(key: str, country: str, region: str) -> Pool:
    site = Site(
        operator="acme",
        legal_entity=None,
        region=region,
        country=country,
        grid_zone=country,
        dc_pue=1.2,
        dc_ref_renewable_share=None,
    )
    return Pool(
        key=key,
        model="small",
        model_revision=None,
        site=site,
        silicon="epyc",
        capable_up_to=Tier.L3,
        context_tokens=2048,
        features=frozenset({"generate"}),
        prior_microjoules_per_token=1e5,
        usd_per_kwh=0.5,
        max_ongoing=4,
        wake_s=60,
        simulated=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeDoor:
    """Explains as the door does, with every request a lookup."""

    planner: Planner
    pools: dict[str, Pool]

    def explain(self, request: ModelRequest, pins: Pins) -> Explanation:
        needs = self.planner.needs(request, Tier.L0, pins)
        return Explanation(tier=Tier.L0, needs=needs, plan=self.planner.plan_for(needs), rates=self.planner.rates)


async def ask(method: str, path: str, *, body: Any = None, account: str = "acme", **headers: str) -> httpx.Response:
    pools = {
        each.key: each for each in (pool("a", "FI", "eu-fi"), pool("b", "PL", "eu-pl"), pool("c", "US", "us-east"))
    }
    planner = Planner(pools, YearlyMeansFeed(), PREFERENCES["balanced"], PoolHealth(time.monotonic), time.monotonic)
    replicas = dict.fromkeys(pools, 1)
    planner.see(replicas, {"b": "no living node carries it"}, replicas)
    app = FastAPI()

    async def account_of(request: Request) -> str:
        return account

    def refused(request: Request, refusal: Exception) -> JSONResponse:
        assert isinstance(refusal, RequestRefused)
        return JSONResponse({"message": refusal.message}, refusal.status.value)

    pins = RequestPins({"bound": Pins(residency=("us",))})
    door: Any = FakeDoor(planner=planner, pools=pools)
    PlacementRoutes(account_of, door, pins, BodyLimits()).add_to(app)
    app.add_exception_handler(RequestRefused, refused)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh") as client:
        return await client.request(method, path, json=body, headers=headers)


async def test_the_whole_plan_comes_with_its_parts_and_reasons():
    plan = (await ask("POST", "/v1/explain", body=BODY)).json()
    assert [(each["rank"], each["pool"]) for each in plan["candidates"]] == [(1, "a"), (2, "c")]
    assert plan["rejected"] == [{"pool": "b", "reason": "no living node carries it", "is_for_now": True}]
    for each in plan["candidates"]:
        assert sum(each["usd"].values()) == pytest.approx(each["score_usd"])
        assert set(each["usd"]) == {"energy", "facility", "carbon", "wait", "network"}
        assert each["expected_joules"] > 0
    assert (plan["tier"], plan["needs"]["output_tokens"]) == ("L0", 40)
    assert plan["rates"] == {"usd_per_kgco2": 0.2, "usd_per_hour_waited": 0.01}


async def test_the_prompt_is_not_in_the_answer():
    assert "secret" not in (await ask("POST", "/v1/explain", body=BODY)).text


async def test_a_region_pin_is_in_the_plan_with_those_that_it_refused():
    plan = (await ask("POST", "/v1/explain", body=BODY, **{"X-Region": "US"})).json()
    assert [each["pool"] for each in plan["candidates"]] == ["c"]
    assert plan["pins"]["region"] == "US"
    assert {each["pool"] for each in plan["rejected"]} == {"a", "b"}


async def test_a_plan_without_a_candidate_is_a_plan():
    response = await ask("POST", "/v1/explain", body=BODY, **{"X-Region": "asia"})
    assert response.status_code == HTTPStatus.OK
    assert response.json()["candidates"] == []
    assert len(response.json()["rejected"]) == 3


async def test_the_accounts_own_pins_hold():
    plan = (await ask("POST", "/v1/explain", body=BODY, account="bound")).json()
    assert [each["pool"] for each in plan["candidates"]] == ["c"]
    assert plan["pins"]["residency"] == ["us"]


async def test_a_bad_region_is_refused():
    response = await ask("POST", "/v1/explain", body=BODY, **{"X-Region": "eu de"})
    assert response.status_code == HTTPStatus.BAD_REQUEST
    assert "X-Region" in response.json()["message"]


async def test_two_regions_are_refused_by_explain_as_by_the_chat():
    response = await ask("POST", "/v1/explain", body=BODY, **{"X-Region": "eu-fi", "x-region": "us"})
    assert response.status_code == HTTPStatus.BAD_REQUEST


async def test_a_body_is_checked_as_a_chats_is():
    assert (await ask("POST", "/v1/explain", body={"model": "auto"})).status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    unknown = await ask("POST", "/v1/explain", body={**BODY, "model": "gpt-9"})
    assert unknown.status_code == HTTPStatus.NOT_FOUND


async def test_pools_are_listed_with_what_is_the_matter():
    pools = {each["pool"]: each for each in (await ask("GET", "/v1/pools")).json()["data"]}
    assert list(pools) == ["a", "b", "c"]
    assert pools["a"]["replicas"] == {"running": 1, "wanted": 1, "least": 1, "most": 1}
    assert pools["a"]["unavailable"] is None
    assert pools["b"]["unavailable"] == "no living node carries it"
    assert (pools["a"]["silicon"], pools["a"]["simulated"], pools["a"]["grid"]["zone"]) == ("epyc", True, "FI")
    assert json.dumps(pools)
