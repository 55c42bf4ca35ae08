"""The way of one request: tier, plan, hold, run, settle. Knows pools, a ledger and values; no HTTP."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Protocol, cast

from clusters.grid import CarbonFeed
from placement.pins import Pins
from placement.plan import Plan
from placement.tiers import Tier, TierSigns
from receipts.holds import Admission
from serve.attempts import Attempts, Begun, Dispatch, Job
from serve.deadlines import Deadlines
from serve.errors import RequestRefused
from serve.explain import Explanation
from serve.hold_amount import most_usd_picos, pool_cost
from serve.holds import Holds
from serve.messages import Payload, Settled, Started
from serve.model_request import ModelRequest
from serve.planner import Planner
from serve.pool_health import PoolHealth
from serve.pools import Pool
from serve.request_context import AskedRequest, Placed
from serve.shapes import Shape

__all__ = ["Answer", "Dispatch", "Door", "Pool", "Price"]

_MOST_POOLS = 16
"""Candidates of one request that are held for and may be tried: far more than it has attempts."""
_REASONS_TOLD = 8
_RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per kWh at the silicon where a pool has no price of its own, and the version of the prices."""

    usd_per_kwh: float
    version: str


class Tiers(Protocol):
    """Says how demanding a request is; never fails."""

    def classify(self, signs: TierSigns) -> Tier:
        """The cheapest tier that serves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that has begun; ``items`` end with `Settled`.

    ``pool`` and ``started`` are of the attempt that began a stream, and of the one that gave a unary answer.
    """

    request_id: str
    pool: Pool
    tier: Tier
    started: Started
    items: AsyncGenerator[Payload | Settled, None]


class Door:
    """Takes authenticated requests to the cheapest capable pool."""

    def __init__(
        self,
        *,
        pools: Mapping[str, Pool],
        planner: Planner,
        tiers: Tiers,
        dispatch: Dispatch,
        holds: Holds,
        carbon: CarbonFeed,
        price: Price,
        deadlines: Deadlines,
        health: PoolHealth,
        attempts: int,
        random_bytes: Callable[[int], bytes],
        wall_clock_ns: Callable[[], int],
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        """``attempts`` is the most for one request; ``clock`` counts seconds and never goes back, ``pause`` waits."""
        self._pools = pools
        self._planner = planner
        self._tiers = tiers
        self._holds = holds
        self._carbon = carbon
        self._price = price
        self._random_bytes = random_bytes
        self._wall_clock_ns = wall_clock_ns
        self._attempts = Attempts(
            dispatch=dispatch,
            load=planner,
            lessons=planner,
            health=health,
            deadlines=deadlines,
            most=attempts,
            clock=clock,
            pause=pause,
        )

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Every pool by its key."""
        return self._pools

    @property
    def planner(self) -> Planner:
        """What ranks the pools."""
        return self._planner

    def new_request_id(self) -> str:
        """128 random bits as 32 hex digits; the receipt, the answer and the energy book all carry it."""
        return self._random_bytes(16).hex()

    def _tier(self, request: ModelRequest) -> Tier:
        """An embedding asks for no more of a model, whatever it reads."""
        return Tier.L0 if request.shape is Shape.EMBEDDING else self._tiers.classify(request.signs)

    def explain(self, request: ModelRequest, pins: Pins) -> Explanation:
        """How the pools rank for this request at this moment; nothing runs.

        Raises:
            RequestRefused: 404 for a model that no pool serves.
        """
        tier = self._tier(request)
        needs = self._planner.needs(request, tier, pins)
        return Explanation(tier=tier, needs=needs, plan=self._planner.plan_for(needs), rates=self._planner.rates)

    async def answer(
        self, request_id: str, admission: Admission, tag: str | None, request: ModelRequest, pins: Pins
    ) -> Answer:
        """Hold the most that it can cost, then run the request on the best pool; when an attempt fails, on the next.

        Returns when a stream has its first event, or a unary answer is whole.

        Raises:
            RequestRefused: the request is wrong, no pool can serve it, its account's balance doesn't cover it (402),
                no new one is taken now (503), its key was revoked (401), it repeats another (409), an energy budget
                is used up (429), or every attempt failed (502 to 504).
        """
        accepted_unix_ns = self._wall_clock_ns()
        tier = self._tier(request)
        plan = self._planner.plan(request, tier, pins)
        if not plan.candidates:
            raise _nowhere(plan)
        pools = [self._pools[candidate.pool] for candidate in plan.candidates[:_MOST_POOLS]]
        asked = AskedRequest(
            request_id=request_id,
            admission=admission,
            customer_tag=tag,
            shape=request.shape,
            tier=tier,
            placed=Placed.by(
                plan,
                pins if request.is_auto else replace(pins, model=request.model),
                self._planner.rates,
                accepted_unix_ns=accepted_unix_ns,
            ),
            price_version=self._price.version,
            carbon=self._carbon,
        )
        costs = [pool_cost(pool, self._planner.token_rates(pool.key)) for pool in pools]
        with self._planner.expecting(pools[0].key):
            most = most_usd_picos(request, costs)
            hold = await self._holds.place(admission.account, request_id, most, admission)
        items = self._attempts.items(Job(asked=asked, request=request, pools=pools, hold=hold))
        begun = await anext(items)
        assert isinstance(begun, Begun), f"an answer's first item was {type(begun).__name__}"
        return Answer(
            request_id=request_id,
            pool=begun.pool,
            tier=tier,
            started=begun.started,
            items=cast("AsyncGenerator[Payload | Settled, None]", items),
        )


def _nowhere(plan: Plan) -> RequestRefused:
    """No pool serves the request: 503 where one could at another moment, else 422."""
    # Those that may come back come first: of a thousand refusals they are the ones to know of.
    rejections = sorted(plan.rejections, key=lambda each: not each.is_for_now)
    reasons = [f"{each.pool}: {each.reason}" for each in rejections[:_REASONS_TOLD]]
    if len(rejections) > _REASONS_TOLD:
        reasons.append(f"and {len(rejections) - _REASONS_TOLD} more")
    told = "; ".join(reasons)
    if rejections and rejections[0].is_for_now:
        return RequestRefused(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"no pool can serve this request now: {told}",
            retry_after_s=_RETRY_AFTER_S,
        )
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"no pool can serve this request: {told}")
