import asyncio
from collections.abc import AsyncIterator

import pytest

from serve.deadlines import BOOKED_WITHIN_S, Deadlines, within
from serve.messages import DONE, MeterCard, Payload, ReplicaItem, Started, Working
from serve.signs_of_work import SIGN_EVERY_S

_DEADLINES = Deadlines(first_token_s=1.0, between_tokens_s=2.0)
_STARTED = Started(replica="r", silicon="cpu", energy_method=None)


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_first_limit_includes_the_waking_of_the_pool(is_stream):
    assert _DEADLINES.limit(None, is_stream=is_stream, wake_s=0.0) == 1.0
    assert _DEADLINES.limit(None, is_stream=is_stream, wake_s=60.0) == 61.0


@pytest.mark.parametrize(
    ("last", "is_stream", "limit_s"),
    [
        (_STARTED, True, 2.0),
        (Payload(b"data: {}\n\n"), True, 2.0),
        (_STARTED, False, 2.0 + SIGN_EVERY_S),
        (Working(), False, 2.0 + SIGN_EVERY_S),
        (Working(), True, 2.0 + SIGN_EVERY_S),
    ],
)
def test_after_it_anything_counts_as_progress_and_a_sign_of_it_may_come_late(last, is_stream, limit_s):
    assert _DEADLINES.limit(last, is_stream=is_stream, wake_s=60.0) == limit_s


@pytest.mark.parametrize(("last", "is_stream"), [(Payload(DONE), True), (Payload(b"{}"), False)])
def test_a_whole_answer_waits_for_its_receipt_as_long_as_a_ledger_may_be_away(last, is_stream):
    assert _DEADLINES.limit(last, is_stream=is_stream, wake_s=0.0) == BOOKED_WITHIN_S > 20


def test_an_engine_is_stalled_only_past_both_limits():
    assert _DEADLINES.stalled_s == 2.0
    assert Deadlines(first_token_s=120.0, between_tokens_s=60.0).stalled_s == 120.0


@pytest.mark.parametrize(
    ("assigned", "expected"), [([], ()), ([1], ("GPU-b",)), (["0", "1"], ("GPU-a", "GPU-b")), (["GPU-x"], ("GPU-x",))]
)
def test_a_replica_owns_the_gpus_that_ray_gave_it_and_no_other(assigned, expected):
    card = MeterCard(
        public_key=bytes(32),
        maximum_power_milliwatts=1,
        interval_s=0.1,
        node="n",
        steps_socket="s",
        line_socket="l",
        silicon="x",
        gpu_ids=("GPU-a", "GPU-b"),
        energy_method=None,
    )
    assert card.gpus_of(assigned) == expected


async def _items(*delays_s: float) -> AsyncIterator[ReplicaItem]:
    for delay_s in delays_s:
        await asyncio.sleep(delay_s)
        yield Payload(b"x")


async def _nothing() -> None:
    raise AssertionError("nothing was late")


async def test_items_pass_within_their_limits():
    asked: list[ReplicaItem | None] = []

    def limit_after(last: ReplicaItem | None) -> float:
        asked.append(last)
        return 5.0

    items = [each async for each in within(_items(0, 0), limit_after, _nothing)]
    assert items == [Payload(b"x"), Payload(b"x")]
    assert asked == [None, Payload(b"x"), Payload(b"x")]


@pytest.mark.parametrize("comes_after_s", [30.0, 0.1])
async def test_what_is_late_is_given_up_before_its_source_is_cancelled(comes_after_s):
    """Also when it comes in the meantime: then it is no longer wanted."""
    told: list[str] = []

    async def source() -> AsyncIterator[ReplicaItem]:
        yield Payload(b"x")
        try:
            await asyncio.sleep(comes_after_s)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        yield Payload(b"late")

    async def give_up() -> None:
        await asyncio.sleep(0.2)
        told.append("given up")

    items = within(source(), lambda last: 5.0 if last is None else 0.02, give_up)
    assert await anext(items) == Payload(b"x")
    with pytest.raises(TimeoutError):
        await anext(items)
    assert told == (["given up", "cancelled"] if comes_after_s > 1 else ["given up"])
