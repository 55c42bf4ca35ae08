"""What the door knows of a request, as it travels with each attempt to the receipt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from clusters.grid import CarbonFeed
from placement.pins import Pins
from placement.plan import Candidate, ExchangeRates, Plan, Rejection
from placement.tiers import Tier
from receipts.draft import Attempt, RequestContext
from receipts.holds import Admission
from receipts.placement_section import MOST_CANDIDATES, MOST_REJECTED, CandidatePool, PlacementContext, RejectedPool
from receipts.placement_section import Pins as AskedPins
from receipts.placement_section import Rates as RatesGoneBy
from serve.pools import Pool
from serve.shapes import Shape

_ANSWER_IDS = {
    Shape.CHAT: "chatcmpl-",
    Shape.COMPLETION: "cmpl-",
    Shape.EMBEDDING: "embd-",
    Shape.MESSAGES: "msg_",
}
"""What an engine puts before the request's id in the id of its answer; an embedding's answer has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What was asked of the ranking, the top of its plan, and what it refused; the same for every attempt.

    ``accepted_unix_ns`` is the wall clock when the door took the request.
    """

    accepted_unix_ns: int
    pins: AskedPins
    rates: RatesGoneBy
    candidates: tuple[CandidatePool, ...]
    rejected: tuple[RejectedPool, ...]
    rejected_total: int

    @classmethod
    def by(cls, plan: Plan, pins: Pins, rates: ExchangeRates, *, accepted_unix_ns: int) -> Self:
        """From the plan and what it went by; ``pins`` hold the model that the request names."""
        return cls(
            accepted_unix_ns=accepted_unix_ns,
            pins=AskedPins(
                model=pins.model,
                region=pins.region,
                residency=pins.residency,
                operators=None if pins.operators is None else tuple(sorted(pins.operators)),
            ),
            rates=RatesGoneBy(usd_per_kgco2=rates.usd_per_kgco2, usd_per_hour_waited=rates.usd_per_hour_waited),
            candidates=tuple(map(_candidate, plan.candidates[:MOST_CANDIDATES])),
            rejected=tuple(map(_rejected, plan.rejections[:MOST_REJECTED])),
            rejected_total=len(plan.rejections),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRequest:
    """A request whose attempts are to come: whose it is, what it is, and how it was placed."""

    request_id: str
    admission: Admission
    shape: Shape
    customer_tag: str | None
    tier: Tier
    placed: Placed
    price_version: str
    carbon: CarbonFeed

    def context(self, pool: Pool, failed: Sequence[Attempt], resumed_after_tokens: int) -> RequestContext:
        """The context of the attempt on ``pool`` that follows those that ``failed``; its grid is that of this moment.

        ``resumed_after_tokens``: how many tokens of the answer the failed ones had sent.
        """
        site, grid, placed = pool.site, self.carbon.intensity(pool.site.grid_zone), self.placed
        return RequestContext(
            receipt_id=f"rcpt_{self.request_id}",
            workload_id=f"{_ANSWER_IDS[self.shape]}{self.request_id}",
            kind="ml-inference",
            model=pool.model,
            model_revision=pool.model_revision,
            customer_tag=self.customer_tag,
            account=self.admission.account,
            tier=self.tier.value,
            operator_name=site.operator,
            region=site.region,
            simulated=pool.simulated,
            legal_entity=site.legal_entity,
            country=site.country,
            dc_pue=site.dc_pue,
            dc_ref_renewable_share=site.dc_ref_renewable_share,
            grid_zone=grid.zone,
            grid_intensity_gco2_per_kwh=grid.gco2_per_kwh,
            grid_source=grid.source,
            grid_as_of=grid.as_of,
            grid_is_estimated=grid.is_estimated,
            usd_per_kwh=pool.usd_per_kwh,
            price_version=self.price_version,
            attempts=tuple(failed),
            placement=PlacementContext(
                pool=pool.key,
                accepted_unix_ns=placed.accepted_unix_ns,
                resumed_after_tokens=resumed_after_tokens,
                pins=placed.pins,
                rates=placed.rates,
                candidates=placed.candidates,
                rejected=placed.rejected,
                rejected_total=placed.rejected_total,
            ),
            api_key_id=self.admission.api_key_id,
            workload_name=self.admission.workload,
            idempotency_sha256=self.admission.idempotency_sha256,
        )


def _candidate(candidate: Candidate) -> CandidatePool:
    return CandidatePool.expecting(
        pool=candidate.pool,
        expected_microjoules=candidate.expected_microjoules,
        energy_usd=candidate.energy_usd,
        facility_usd=candidate.facility_usd,
        carbon_usd=candidate.carbon_usd,
        wait_usd=candidate.wait_usd,
        network_usd=candidate.network_usd,
    )


def _rejected(rejection: Rejection) -> RejectedPool:
    return RejectedPool.because(rejection.pool, rejection.reason)
