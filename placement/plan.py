"""The plan of one request: capable pools in order of their cost in USD, and why each other pool was refused."""

from collections.abc import Iterable
from dataclasses import dataclass

from placement.tiers import Tier

_MICROJOULES_PER_KWH = 3.6e12


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """One pool (model, silicon kind, region, operator) as it stands when a request arrives.

    ``microjoules_per_token`` is learned from settled requests, or the setting's prior before the first.
    """

    pool: str
    model: str
    region: str
    capable_up_to: Tier
    context_tokens: int
    features: frozenset[str]
    microjoules_per_token: float
    usd_per_kwh: float
    dc_pue: float
    grid_intensity_gco2_per_kwh: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNeeds:
    """What the request asks of a pool; ``model`` is None for ``auto``, ``region`` is None when not pinned.

    ``expected_tokens`` is a forecast to rank by; ``least_tokens`` is certain, and what no smaller context can hold.
    """

    model: str | None
    tier: Tier
    region: str | None
    expected_tokens: int
    least_tokens: int
    features: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRates:
    """What a gram of CO2-equivalent is worth; 0 ranks by price alone."""

    usd_per_kgco2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A capable pool and the parts of its score; the score is their sum."""

    pool: str
    energy_usd: float
    carbon_usd: float

    @property
    def score_usd(self) -> float:
        """Expected cost of this request on this pool, in USD."""
        return self.energy_usd + self.carbon_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A pool that cannot serve the request, and why in words."""

    pool: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Candidates cheapest first, ties by pool name; every other pool with its reason."""

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]


def plan(needs: RequestNeeds, pools: Iterable[PoolSnapshot], rates: ExchangeRates) -> Plan:
    """Filter by what each pool can do, then rank by expected cost. Deterministic; order of ``pools`` is irrelevant."""
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    for pool in pools:
        reason = _refusal(needs, pool)
        if reason is None:
            candidates.append(_priced(needs, pool, rates))
        else:
            rejections.append(Rejection(pool=pool.pool, reason=reason))
    return Plan(
        candidates=tuple(sorted(candidates, key=lambda candidate: (candidate.score_usd, candidate.pool))),
        rejections=tuple(sorted(rejections, key=lambda rejection: rejection.pool)),
    )


def _refusal(needs: RequestNeeds, pool: PoolSnapshot) -> str | None:
    if needs.model is not None and needs.model != pool.model:
        return f"serves {pool.model}, not {needs.model}"
    if needs.region is not None and needs.region != pool.region:
        return f"is in region {pool.region}, not {needs.region}"
    if needs.model is None and not needs.tier.at_most(pool.capable_up_to):
        return f"{pool.model} is capable up to {pool.capable_up_to}, the request is {needs.tier}"
    if needs.least_tokens > pool.context_tokens:
        return f"{pool.model} has a context of {pool.context_tokens} tokens, the request needs {needs.least_tokens}"
    if missing := needs.features - pool.features:
        return f"{pool.model} lacks {', '.join(sorted(missing))}"
    return None


def _priced(needs: RequestNeeds, pool: PoolSnapshot, rates: ExchangeRates) -> Candidate:
    kwh = needs.expected_tokens * pool.microjoules_per_token * pool.dc_pue / _MICROJOULES_PER_KWH
    grams = kwh * pool.grid_intensity_gco2_per_kwh
    return Candidate(
        pool=pool.pool,
        energy_usd=kwh * pool.usd_per_kwh,
        carbon_usd=grams / 1000 * rates.usd_per_kgco2,
    )
