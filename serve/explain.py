"""The whole plan of a request, for whoever asks why: nothing runs, nothing is held."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from placement.pins import Pins
from placement.plan import Candidate, ExchangeRates, Plan, Rejection, RequestNeeds
from placement.tiers import Tier
from serve.planner import PoolNow
from serve.pools import Pool

_MICROJOULES = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a request would need and how the pools rank for it at this moment."""

    tier: Tier
    needs: RequestNeeds
    plan: Plan
    rates: ExchangeRates


def explanation_object(explanation: Explanation, pools: Mapping[str, Pool]) -> dict[str, Any]:
    """What `/v1/explain` answers; the prompt is not in it. ``pools`` are by key."""
    needs, rates = explanation.needs, explanation.rates
    ranked = enumerate(explanation.plan.candidates, start=1)
    return {
        "object": "joule-mesh.plan",
        "tier": explanation.tier.value,
        "needs": {
            "input_tokens": round(needs.input_tokens, 3),
            "output_tokens": round(needs.output_tokens, 3),
            "least_tokens": needs.least_tokens,
            "features": sorted(needs.features),
        },
        "pins": pins_object(needs.pins),
        "rates": {"usd_per_kgco2": rates.usd_per_kgco2, "usd_per_hour_waited": rates.usd_per_hour_waited},
        "candidates": [_candidate(rank, each, pools[each.pool]) for rank, each in ranked],
        "rejected": [_rejection(each) for each in explanation.plan.rejections],
    }


def pins_object(pins: Pins) -> dict[str, Any]:
    """Pins as JSON has them; null and empty are no pin."""
    return {
        "model": pins.model,
        "region": pins.region,
        "residency": list(pins.residency),
        "operators": None if pins.operators is None else sorted(pins.operators),
    }


def pool_object(now: PoolNow) -> dict[str, Any]:
    """One pool of `/v1/pools`. ``in_flight`` are this ingress's requests."""
    pool, site = now.pool, now.pool.site
    return {
        "pool": pool.key,
        "model": pool.model,
        "operator": site.operator,
        "region": site.region,
        "country": site.country,
        "silicon": pool.silicon,
        "simulated": pool.simulated,
        "capable_up_to": pool.capable_up_to.value,
        "replicas": {
            "running": now.replicas_running,
            "wanted": now.replicas_wanted,
            "least": pool.least_replicas,
            "most": pool.most_replicas,
        },
        "in_flight": now.in_flight,
        "microjoules_per_input_token": now.microjoules_per_input_token,
        "microjoules_per_output_token": now.microjoules_per_output_token,
        "grid": {"zone": site.grid_zone, "gco2_per_kwh": now.gco2_per_kwh},
        "dc_pue": site.dc_pue,
        "usd_per_kwh": pool.usd_per_kwh,
        "wait_s": now.wait_s,
        "wake_s": now.wake_s,
        "is_asleep": now.is_asleep,
        "is_set_aside": now.is_set_aside,
        "unavailable": now.unavailable,
    }


def _candidate(rank: int, candidate: Candidate, pool: Pool) -> dict[str, Any]:
    return {
        "rank": rank,
        "pool": candidate.pool,
        "model": pool.model,
        "operator": pool.site.operator,
        "region": pool.site.region,
        "country": pool.site.country,
        "silicon": pool.silicon,
        "expected_joules": candidate.expected_microjoules / _MICROJOULES,
        "wait_s": candidate.wait_s,
        "score_usd": candidate.score_usd,
        "usd": {
            "energy": candidate.energy_usd,
            "facility": candidate.facility_usd,
            "carbon": candidate.carbon_usd,
            "wait": candidate.wait_usd,
            "network": candidate.network_usd,
        },
        "is_set_aside": candidate.is_set_aside,
        "is_tight": candidate.is_tight,
    }


def _rejection(rejection: Rejection) -> dict[str, Any]:
    return {"pool": rejection.pool, "reason": rejection.reason, "is_for_now": rejection.is_for_now}
