"""The way of one request: authenticate, tier, plan, run, settle. Knows pools, a ledger and values; no HTTP."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from clusters.grid import CarbonFeed
from clusters.sites import Site
from placement.energy_rates import EnergyRates
from placement.plan import ExchangeRates, Plan, PoolSnapshot, RequestNeeds, plan
from placement.tiers import Tier, classify
from receipts.draft import Attempt, RequestContext
from serve.chat_request import ChatRequest
from serve.deadlines import Deadlines
from serve.errors import AttemptFailed, RequestRefused
from serve.hold_amount import most_usd_picos
from serve.holds import Hold, Holds
from serve.messages import Payload, Refused, ReplicaItem, Settled, Started

_LOG = logging.getLogger(__name__)
_DEFAULT_OUTPUT_TOKENS = 256
_FAILURES = {
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "its receipt cannot be stored now": HTTPStatus.SERVICE_UNAVAILABLE,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What the door knows of one pool."""

    key: str
    model: str
    model_revision: str | None
    site: Site
    capable_up_to: Tier
    context_tokens: int
    features: frozenset[str]
    prior_microjoules_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per kWh at the silicon and the version of that price."""

    usd_per_kwh: float
    version: str


class Dispatch(Protocol):
    """Runs one attempt on a pool's replicas."""

    def __call__(
        self, pool: str, request_id: str, context: bytes, body: Mapping[str, Any], limits: Iterable[float]
    ) -> AsyncGenerator[ReplicaItem, None]:
        """Stream the attempt, each item within its limit in seconds; closing the iterator aborts it.

        Raises:
            AttemptFailed: the replica died, hung or could not be reached.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An attempt that has begun to answer; ``items`` end with `Settled`."""

    request_id: str
    pool: Pool
    tier: Tier
    started: Started
    items: AsyncGenerator[Payload | Settled, None]


class Door:
    """Takes authenticated chat requests to the cheapest capable pool."""

    def __init__(
        self,
        *,
        pools: Mapping[str, Pool],
        dispatch: Dispatch,
        holds: Holds,
        carbon: CarbonFeed,
        price: Price,
        rates: ExchangeRates,
        deadlines: Deadlines,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._pools = pools
        self._dispatch = dispatch
        self._holds = holds
        self._carbon = carbon
        self._price = price
        self._rates = rates
        self._deadlines = deadlines
        self._random_bytes = random_bytes
        self._energy = EnergyRates({pool.key: pool.prior_microjoules_per_token for pool in pools.values()})

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that some pool serves."""
        return tuple(sorted({pool.model for pool in self._pools.values()}))

    def new_request_id(self) -> str:
        """128 random bits as 32 hex digits; the receipt, the answer and the energy book all carry it."""
        return self._random_bytes(16).hex()

    def plan(self, request: ChatRequest, tier: Tier) -> Plan:
        """Rank the pools for this request.

        Raises:
            RequestRefused: 404 for a model that no pool serves.
        """
        if not request.is_auto and request.model not in self.models:
            raise RequestRefused(
                HTTPStatus.NOT_FOUND,
                f"there is no model {request.model!r}; use 'auto' or one of: {', '.join(self.models)}",
                "model",
            )
        needs = RequestNeeds(
            model=None if request.is_auto else request.model,
            tier=tier,
            region=None,
            expected_tokens=request.expected_tokens(_DEFAULT_OUTPUT_TOKENS),
            least_tokens=request.least_tokens,
            features=request.features,
        )
        return plan(needs, map(self._snapshot, self._pools.values()), self._rates)

    async def answer(self, request_id: str, account: str, tag: str | None, request: ChatRequest) -> Answer:
        """Hold the most that it can cost, then run the request on the best pool; when an attempt fails before its
        first item, on the next one.

        Raises:
            RequestRefused: the request is wrong, no pool can serve it, its account's balance doesn't cover it (402),
                no new one is taken now (503), or every attempt failed (502).
        """
        tier = classify(request.signs)
        ranked = self.plan(request, tier)
        if not ranked.candidates:
            reasons = "; ".join(f"{refused.pool}: {refused.reason}" for refused in ranked.rejections)
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"no pool can serve this request: {reasons}")
        candidates = [self._pools[candidate.pool] for candidate in ranked.candidates]
        most = most_usd_picos(request, map(self._snapshot, candidates))
        hold = await self._holds.place(account, request_id, most)
        try:
            return await self._attempts(request_id, account, tag, tier, request, candidates, hold)
        except asyncio.CancelledError:
            # The client went. What its attempt ran until then is charged, and the hold ends with that.
            hold.let_go()
            raise
        except BaseException:
            hold.release()
            raise

    async def _attempts(
        self,
        request_id: str,
        account: str,
        tag: str | None,
        tier: Tier,
        request: ChatRequest,
        pools: Sequence[Pool],
        hold: Hold,
    ) -> Answer:
        failed: list[Attempt] = []
        for pool in pools:
            context = self._context(request_id, account, tag, tier, pool, tuple(failed))
            limits = self._deadlines.limits(is_stream=request.stream)
            items = self._dispatch(pool.key, request_id, context.to_json(), _engine_body(request, pool), limits)
            try:
                first = await self._next(items, hold)
            except AttemptFailed as failure:
                _LOG.warning("attempt %d of %s on %s failed: %s", len(failed) + 1, request_id, pool.key, failure)
                failed.append(Attempt(pool=pool.key, outcome=failure.outcome, energy_microjoules=None))
                continue
            if isinstance(first, Refused):
                raise RequestRefused(HTTPStatus(first.status), first.message, first.param)
            assert isinstance(first, Started), f"a replica's first item was {type(first).__name__}"
            rest = self._rest(items, pool, hold)
            return Answer(request_id=request_id, pool=pool, tier=tier, started=first, items=rest)
        status = _FAILURES.get(failed[-1].outcome, HTTPStatus.BAD_GATEWAY)
        raise RequestRefused(status, f"no attempt of {len(failed)} succeeded; the last: {failed[-1].outcome}")

    async def _rest(
        self, items: AsyncGenerator[ReplicaItem, None], pool: Pool, hold: Hold
    ) -> AsyncGenerator[Payload | Settled, None]:
        try:
            async with aclosing(items):
                while True:
                    item = await self._next(items, hold)
                    assert isinstance(item, Payload | Settled), f"unexpected {type(item).__name__} in an answer"
                    if isinstance(item, Settled):
                        hold.let_go()
                        self._learn(pool, item)
                        yield item
                        return
                    yield item
        except AttemptFailed:
            hold.release()
            raise
        finally:
            hold.let_go()

    async def _next(self, items: AsyncGenerator[ReplicaItem, None], hold: Hold) -> ReplicaItem:
        try:
            return await anext(items)
        except AttemptFailed as failure:
            if failure.may_be_charged:
                hold.expect_charge()
            raise
        except StopAsyncIteration as short:
            raise AttemptFailed("cut short", "the replica stopped before the receipt") from short

    def _learn(self, pool: Pool, settled: Settled) -> None:
        receipt = json.loads(settled.receipt)
        joules, tokens = receipt["energy"]["total_joules"], receipt["workload"]["tokens"]
        if joules is not None:
            self._energy.observe(pool.key, tokens["input"] + tokens["output"], round(joules * 1e6))

    def _snapshot(self, pool: Pool) -> PoolSnapshot:
        return PoolSnapshot(
            pool=pool.key,
            model=pool.model,
            region=pool.site.region,
            capable_up_to=pool.capable_up_to,
            context_tokens=pool.context_tokens,
            features=pool.features,
            microjoules_per_token=self._energy.microjoules_per_token(pool.key),
            usd_per_kwh=self._price.usd_per_kwh,
            dc_pue=pool.site.dc_pue,
            grid_intensity_gco2_per_kwh=self._carbon.intensity(pool.site.grid_zone).gco2_per_kwh,
        )

    def _context(
        self,
        request_id: str,
        account: str,
        tag: str | None,
        tier: Tier,
        pool: Pool,
        failed: tuple[Attempt, ...],
    ) -> RequestContext:
        grid = self._carbon.intensity(pool.site.grid_zone)
        return RequestContext(
            receipt_id=f"rcpt_{request_id}",
            workload_id=f"chatcmpl-{request_id}",
            kind="ml-inference",
            model=pool.model,
            model_revision=pool.model_revision,
            customer_tag=tag,
            account=account,
            tier=tier.value,
            operator_name=pool.site.operator,
            region=pool.site.region,
            simulated=False,
            legal_entity=pool.site.legal_entity,
            country=pool.site.country,
            dc_pue=pool.site.dc_pue,
            dc_ref_renewable_share=pool.site.dc_ref_renewable_share,
            grid_zone=grid.zone,
            grid_intensity_gco2_per_kwh=grid.gco2_per_kwh,
            grid_source=grid.source,
            grid_as_of=grid.as_of,
            grid_is_estimated=grid.is_estimated,
            usd_per_kwh=self._price.usd_per_kwh,
            price_version=self._price.version,
            attempts=failed,
        )


def _engine_body(request: ChatRequest, pool: Pool) -> dict[str, Any]:
    """The client's body for the engine: the chosen model's name, and usage always counted."""
    body = {**request.body, "model": pool.model}
    if request.stream:
        body["stream_options"] = {"include_usage": True}
    return body
