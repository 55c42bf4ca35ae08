import asyncio

import pytest

from serve.deadlines import Deadlines, within
from serve.messages import MeterCard

_DEADLINES = Deadlines(first_token_s=1.0, between_tokens_s=2.0, unary_s=3.0)


@pytest.mark.parametrize(("is_stream", "first"), [(True, 1.0), (False, 3.0)])
def test_the_first_limit_is_the_first_tokens_or_the_whole_answers(is_stream, first):
    limits = _DEADLINES.limits(is_stream=is_stream)
    assert [next(limits), next(limits), next(limits)] == [first, 2.0, 2.0]


@pytest.mark.parametrize(
    ("assigned", "expected"), [([], ()), ([1], ("GPU-b",)), (["0", "1"], ("GPU-a", "GPU-b")), (["GPU-x"], ("GPU-x",))]
)
def test_a_replica_owns_the_gpus_that_ray_gave_it_and_no_other(assigned, expected):
    card = MeterCard(
        public_key=bytes(32),
        maximum_power_milliwatts=1,
        interval_s=0.1,
        node="n",
        socket_path="s",
        silicon="x",
        gpu_ids=("GPU-a", "GPU-b"),
        energy_method=None,
    )
    assert card.gpus_of(assigned) == expected


async def _payloads(*delays_s: float):
    for delay_s in delays_s:
        await asyncio.sleep(delay_s)
        yield b"x"


async def test_payloads_pass_within_their_limits():
    assert [each async for each in within(_payloads(0, 0), iter([5.0, 5.0, 5.0]))] == [b"x", b"x"]


async def test_silence_past_a_limit_is_a_timeout():
    payloads = within(_payloads(0, 30), iter([5.0, 0.01]))
    assert await anext(payloads) == b"x"
    with pytest.raises(TimeoutError):
        await anext(payloads)
