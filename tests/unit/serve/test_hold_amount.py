import dataclasses
import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pool import make_pool

from placement.energy_rates import TokenRates
from serve.chat_request import parse_chat
from serve.hold_amount import ENERGY_SAFETY_FACTOR, TEMPLATE_TOKENS, PoolCost, most_tokens, most_usd_picos, pool_cost
from serve.model_request import ModelRequest

_CONTEXT = 4096
_POOL = PoolCost(context_tokens=_CONTEXT, microjoules_per_token=1e5, usd_per_kwh=0.5)


def chat(content: object = "hello", **members: object) -> ModelRequest:
    body = {"model": "auto", "messages": [{"role": "user", "content": content}], **members}
    return parse_chat(body, len(json.dumps(body, ensure_ascii=False).encode()))


def test_a_limit_bounds_the_output_and_the_bodys_bytes_bound_the_input():
    request = chat(max_tokens=100)
    assert most_tokens(request, _CONTEXT) == request.body_bytes + TEMPLATE_TOKENS + 100


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"max_tokens": 10**9},
        {"max_tokens": 1, "content": "x" * _CONTEXT},
        {"max_tokens": 1, "content": "語" * (_CONTEXT // 3)},
        {"max_tokens": 1, "tools": [{"description": "x" * _CONTEXT}]},
        {"max_tokens": 1, "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
        {"max_tokens": 1, "content": [{"type": "text", "text": "x"}, {"type": "video_url", "video_url": {"url": "x"}}]},
        {"max_tokens": 1, "content": [{"type": "input_audio", "input_audio": {"data": "eA==", "format": "wav"}}]},
        {"max_tokens": 1, "content": [{"audio_url": {"url": "https://x/y.wav"}}]},
    ],
)
def test_what_is_not_bounded_by_less_is_the_whole_context(members):
    assert most_tokens(chat(**members), _CONTEXT) == _CONTEXT


def test_parts_of_text_are_text():
    request = chat([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}], max_tokens=1)
    assert most_tokens(request, _CONTEXT) == request.body_bytes + TEMPLATE_TOKENS + 1


def test_each_choice_may_take_as_much():
    assert most_tokens(chat(n=3), _CONTEXT) == 3 * _CONTEXT
    assert most_tokens(chat(n=2, max_tokens=5), 10**6) == 2 * most_tokens(chat(max_tokens=5, x=1), 10**6)


def test_the_newer_name_of_the_limit_counts_too():
    assert most_tokens(chat(max_completion_tokens=9), 10**6) - chat(max_completion_tokens=9).body_bytes == (
        TEMPLATE_TOKENS + 9
    )


def test_it_is_tokens_times_rate_times_factor_times_price():
    joules = _CONTEXT * 0.1 * ENERGY_SAFETY_FACTOR
    assert most_usd_picos(chat(), [_POOL]) == pytest.approx(joules / 3.6e6 * 0.5 * 1e12)


def test_the_dearest_pool_counts_which_need_not_be_the_one_that_draws_most_per_token():
    small = dataclasses.replace(_POOL, microjoules_per_token=2e5, context_tokens=16)
    assert most_usd_picos(chat(), [_POOL, small]) == most_usd_picos(chat(), [small, _POOL])
    assert most_usd_picos(chat(), [_POOL, small]) == most_usd_picos(chat(), [_POOL])
    assert most_usd_picos(chat(), [_POOL, dataclasses.replace(_POOL, usd_per_kwh=1.0)]) > most_usd_picos(
        chat(), [_POOL]
    )


@pytest.mark.parametrize(("per_input", "per_output"), [(1e4, 3e5), (3e5, 1e4)])
def test_the_dearer_kind_of_token_counts(per_input, per_output):
    pool = make_pool("m@o/r", context_tokens=_CONTEXT, usd_per_kwh=0.25)
    rates = TokenRates(microjoules_per_input_token=per_input, microjoules_per_output_token=per_output)
    assert pool_cost(pool, rates) == PoolCost(context_tokens=_CONTEXT, microjoules_per_token=3e5, usd_per_kwh=0.25)


def test_a_price_of_0_holds_nothing():
    assert most_usd_picos(chat(), [dataclasses.replace(_POOL, usd_per_kwh=0.0)]) == 0


@given(
    rate=st.floats(1, 1e9),
    price=st.floats(0, 100, allow_subnormal=False),
    content=st.text(max_size=50),
    tokens=st.integers(1, 10_000),
    share=st.floats(0, 1),
)
def test_whatever_keeps_to_the_bounds_costs_no_more(rate, price, content, tokens, share):
    """A request that draws up to ten times the mean for each of its tokens, of which it has no more than bytes."""
    pool = dataclasses.replace(_POOL, microjoules_per_token=rate, usd_per_kwh=price)
    request = chat(content, max_tokens=tokens)
    input_tokens = len(content.encode())
    drawn = Fraction(rate) * ENERGY_SAFETY_FACTOR * Fraction(share) * min(input_tokens + tokens, _CONTEXT)
    cost = int(drawn) * Fraction(price) * 10**12 / (36 * 10**11)
    assert most_usd_picos(request, [pool]) >= int(cost) - 1
