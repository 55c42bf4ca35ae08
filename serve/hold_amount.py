"""The most that a request can cost: what is held of its account's balance before any work."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from placement.energy_rates import TokenRates
from receipts.arithmetic import price_usd_picos
from serve.model_request import ModelRequest
from serve.pools import Pool

ENERGY_SAFETY_FACTOR = 10
"""How many times what its pool's dearer kind of token is known to draw a token may draw.

Measured here (benchmarks/RESULTS.md): a request alone draws 7.2 times what it draws among 32, and the rate may have
been learned among 32. The rest is for what a learned rate is off by.
"""

TEMPLATE_TOKENS = 256
"""Tokens that a model's chat template adds of its own: roles, a default system prompt, how tools are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCost:
    """What of a pool bounds a request's price; ``microjoules_per_token`` is that of its dearer kind of token."""

    context_tokens: int
    microjoules_per_token: float
    usd_per_kwh: float


def pool_cost(pool: Pool, rates: TokenRates) -> PoolCost:
    """A pool's cost at its present rates."""
    return PoolCost(
        context_tokens=pool.context_tokens,
        microjoules_per_token=rates.larger_microjoules_per_token,
        usd_per_kwh=pool.usd_per_kwh,
    )


def most_usd_picos(request: ModelRequest, pools: Iterable[PoolCost]) -> int:
    """The most that ``request`` can cost on any of these pools, in pico-USD; 0 where energy costs nothing.

    Most tokens, times the larger of the pool's two rates per token (learned, or the prior), `ENERGY_SAFETY_FACTOR` and
    its price. It can be too little: tokens are bounded, but energy per token is learned and has no bound. A prior far
    too low, silicon that idles at a high power under a lone slow request, and beam search are the ways there; then
    `serve.running_charge` extends the hold while the answer is made, or ends the answer.
    """
    return max((_on(request, pool) for pool in pools), default=0)


def most_tokens(request: ModelRequest, context_tokens: int) -> int:
    """Input and output tokens of all the request's answers together, at most, in a context of so many tokens.

    No tokenizer makes more tokens of a text than it has bytes, and the body has all text of the prompts in it; token
    ids are fewer than the bytes that they are written in. What an image, a video or a sound becomes is the engine's
    matter: then it is the whole context, as it is where no limit was asked for.
    """
    answers = max(request.choices, request.prompts)
    if request.max_tokens is None or not request.is_all_text:
        return answers * context_tokens
    # The prompts share the body: each of them is read once for each of its answers.
    read = max(1, request.choices // request.prompts) * request.body_bytes
    return min(read + answers * (TEMPLATE_TOKENS + request.max_tokens), answers * context_tokens)


def _on(request: ModelRequest, pool: PoolCost) -> int:
    tokens = most_tokens(request, pool.context_tokens)
    microjoules = math.ceil(tokens * pool.microjoules_per_token * ENERGY_SAFETY_FACTOR)
    return price_usd_picos(microjoules, pool.usd_per_kwh)
