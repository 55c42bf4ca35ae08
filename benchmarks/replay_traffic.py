"""A day of mixed traffic for the replay of placement, and the pools that it may go to: made up, and drawn by a seed."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from placement.fleet import PoolFacts
from placement.pins import Pins
from placement.tiers import Tier

DAY_S = 86_400.0
_HOUR_S = 3600.0
_CHARACTERS_PER_TOKEN = 4
_LARGEST = "large"
_BURSTS_PER_REQUEST = 1 / 400
_BURST_REQUESTS = (15, 40)
_BURST_S = 30.0
_WILD_SHARE, _WILD_TIMES = 0.005, 8.0
_NOISE_SIGMA = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request with what only the future knows of it: ``output_tokens``, and by what ``noise`` its energy differs
    from its pool's true rates.
    """

    at_s: float
    tier: Tier
    pins: Pins
    input_tokens: int
    expected_input_tokens: int
    output_tokens: int
    max_tokens: int | None
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TruePool:
    """A pool with what the planner has to find out; ``prior_microjoules_per_token`` is what its settings say.

    ``slots`` requests run at once, each output token taking ``s_per_output_token`` whatever the load.
    """

    facts: PoolFacts
    zone: str
    microjoules_per_input_token: float
    microjoules_per_output_token: float
    prior_microjoules_per_token: float
    s_per_input_token: float
    s_per_output_token: float
    slots: int
    wake_s: float

    def microjoules(self, request: Request) -> float:
        """What the request draws here."""
        true = (
            request.input_tokens * self.microjoules_per_input_token
            + request.output_tokens * self.microjoules_per_output_token
        )
        return true * request.noise

    def service_s(self, request: Request) -> float:
        """How long it takes, once begun."""
        return request.input_tokens * self.s_per_input_token + request.output_tokens * self.s_per_output_token


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    capable_up_to: Tier
    context_tokens: int
    prior_microjoules_per_token: float
    s_per_input_token: float
    s_per_output_token: float
    slots: int
    wake_s: float


_KINDS = {
    "small": _Kind(
        capable_up_to=Tier.L1,
        context_tokens=8_192,
        prior_microjoules_per_token=2e4,
        s_per_input_token=1 / 8000,
        s_per_output_token=0.008,
        slots=4,
        wake_s=20.0,
    ),
    "middle": _Kind(
        capable_up_to=Tier.L2,
        context_tokens=32_768,
        prior_microjoules_per_token=1e5,
        s_per_input_token=1 / 4000,
        s_per_output_token=0.018,
        slots=4,
        wake_s=45.0,
    ),
    _LARGEST: _Kind(
        capable_up_to=Tier.L3,
        context_tokens=131_072,
        prior_microjoules_per_token=5e5,
        s_per_input_token=1 / 2000,
        s_per_output_token=0.04,
        slots=6,
        wake_s=90.0,
    ),
}
# Region, country, grid zone, PUE, USD/kWh, seconds of network; and for each kind its silicon with what an input and an
# output token truly draw there, in microjoules.
_SITES = (
    ("eu-de", "DE", "DE", 1.30, 0.30, 0.01, {"small": ("l4", 2.5e3, 3e4), "middle": ("a100", 1.5e4, 1.9e5),
                                             _LARGEST: ("h100", 9e4, 1.2e6)}),
    ("eu-fr", "FR", "FR", 1.18, 0.22, 0.02, {"small": ("epyc", 6e3, 9e4), "middle": ("l40s", 1.1e4, 1.5e5),
                                             _LARGEST: ("a100", 1.4e5, 1.9e6)}),
    ("us-east", "US", "US", 1.12, 0.12, 0.09, {"small": ("l4", 2.8e3, 3.4e4), "middle": ("h100", 9e3, 1.2e5),
                                               _LARGEST: ("h200", 7.5e4, 9.5e5)}),
)  # fmt: skip
# Share of requests; median tokens in and out.
_TIERS = {Tier.L0: (0.30, 60, 40), Tier.L1: (0.30, 600, 120), Tier.L2: (0.25, 2500, 300), Tier.L3: (0.15, 800, 600)}
_PINS = (
    (0.70, Pins()),
    (0.10, Pins(region="eu")),
    (0.06, Pins(region="DE")),
    (0.04, Pins(region="eu-fr")),
    (0.02, Pins(region="us")),
    (0.05, Pins(residency=("eu",))),
    (0.03, Pins(model=_LARGEST)),
)


def pools() -> tuple[TruePool, ...]:
    """Three kinds at three sites, each on other silicon."""
    made = []
    for region, country, zone, dc_pue, usd_per_kwh, network_s, silicon in _SITES:
        for model, (name, per_input, per_output) in silicon.items():
            kind = _KINDS[model]
            facts = PoolFacts(
                pool=f"{model}@acme/{region}/{name}",
                model=model,
                model_revision=None,
                operator="acme",
                region=region,
                country=country,
                silicon=name,
                capable_up_to=kind.capable_up_to,
                context_tokens=kind.context_tokens,
                features=frozenset(),
                usd_per_kwh=usd_per_kwh,
                dc_pue=dc_pue,
                network_s=network_s,
            )
            made.append(
                TruePool(
                    facts=facts,
                    zone=zone,
                    microjoules_per_input_token=per_input,
                    microjoules_per_output_token=per_output,
                    prior_microjoules_per_token=kind.prior_microjoules_per_token,
                    s_per_input_token=kind.s_per_input_token,
                    s_per_output_token=kind.s_per_output_token,
                    slots=kind.slots,
                    wake_s=kind.wake_s,
                )
            )
    return tuple(made)


def crowded(fleet: Sequence[TruePool]) -> tuple[TruePool, ...]:
    """The same pools with a third of the room."""
    return tuple(replace(pool, slots=max(1, pool.slots // 3)) for pool in fleet)


def misled(fleet: Sequence[TruePool], rng: random.Random) -> tuple[TruePool, ...]:
    """The same pools with settings that are off by up to four times either way, each pool's by its own factor."""
    return tuple(
        replace(pool, prior_microjoules_per_token=pool.prior_microjoules_per_token * 4 ** rng.uniform(-1, 1))
        for pool in fleet
    )


def is_largest(pool: TruePool) -> bool:
    """Whether it serves the largest model."""
    return pool.facts.model == _LARGEST


def traffic(count: int, rng: random.Random) -> list[Request]:
    """About ``count`` requests in order of arrival: a quiet night, a busy afternoon, and bursts at any time."""
    weights = [0.3 + math.exp(-(((hour - 14) / 4.5) ** 2)) for hour in range(24)]
    times: list[float] = []
    while len(times) < count:
        at = rng.choices(range(24), weights)[0] * _HOUR_S + rng.random() * _HOUR_S
        times.append(at)
        if rng.random() < _BURSTS_PER_REQUEST:
            times += [at + rng.random() * _BURST_S for _ in range(rng.randint(*_BURST_REQUESTS))]
    return [_request(at, rng) for at in sorted(min(at, DAY_S - 1) for at in times)]


def _request(at_s: float, rng: random.Random) -> Request:
    tier = rng.choices(list(_TIERS), [share for share, _, _ in _TIERS.values()])[0]
    _, median_in, median_out = _TIERS[tier]
    input_tokens = 1 + min(7_000, round(median_in * rng.lognormvariate(0, 0.6)))
    wanted = 1 + round(median_out * rng.lognormvariate(0, 0.7))
    max_tokens = round(median_out * rng.choice((0.5, 2, 4))) if rng.random() < 0.5 else None
    noise = rng.lognormvariate(-(_NOISE_SIGMA**2) / 2, _NOISE_SIGMA)
    return Request(
        at_s=at_s,
        tier=tier,
        pins=rng.choices([pins for _, pins in _PINS], [share for share, _ in _PINS])[0],
        input_tokens=input_tokens,
        # The door only counts characters, and texts differ in how many a token takes.
        expected_input_tokens=round(input_tokens * rng.uniform(3, 5)) // _CHARACTERS_PER_TOKEN,
        output_tokens=wanted if max_tokens is None else min(wanted, max_tokens),
        max_tokens=max_tokens,
        noise=noise * (_WILD_TIMES if rng.random() < _WILD_SHARE else 1),
    )


def capable(request: Request, fleet: Sequence[TruePool]) -> list[int]:
    """Places of the pools that may serve it, by pins, tier and context."""
    return [
        place
        for place, pool in enumerate(fleet)
        if request.pins.refusal(
            model=pool.facts.model, region=pool.facts.region, country=pool.facts.country, operator=pool.facts.operator
        )
        is None
        and (request.pins.model is not None or request.tier.at_most(pool.facts.capable_up_to))
        and request.input_tokens <= pool.facts.context_tokens
    ]
