"""Commitments at hand: each is given once, and no more are had of a signer than it keeps nonces for."""

import asyncio

import pytest

from receipts.commitment_stock import CommitmentStock
from receipts.frost.round_one import NonceCommitment
from receipts.signer_messages import CommitmentBatch
from receipts.signing_errors import MalformedAnswer, SignerUnavailable


class Maker:
    """A signer that numbers its commitments, and answers when it may."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.made = 0
        self.is_dead = False

    def make(self, count: int) -> CommitmentBatch:
        self.made += count
        return CommitmentBatch(
            identifier=3,
            commitments=tuple(
                NonceCommitment(identifier=3, hiding=each.to_bytes(32), binding=bytes(32))
                for each in range(self.made - count, self.made)
            ),
        )

    async def commit(self, count: int) -> CommitmentBatch:
        self.asked.append(count)
        await asyncio.sleep(0)
        if self.is_dead:
            raise SignerUnavailable("dead")
        return self.make(count)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def stock(maker: Maker) -> CommitmentStock:
    return CommitmentStock(3, maker, most=12)  # type: ignore[arg-type]


async def test_calls_that_overlap_ask_once_and_take_different_ones(maker: Maker, stock: CommitmentStock) -> None:
    taken = await asyncio.gather(*(stock.take(4) for _ in range(3)))
    assert maker.asked == [12]
    assert [int.from_bytes(each.hiding) for one in taken for each in one] == list(range(12))
    await stock.take(1)
    assert maker.asked == [12, 12]


async def test_a_failure_is_told_to_all_that_wait_and_the_next_one_asks_again(
    maker: Maker, stock: CommitmentStock
) -> None:
    maker.is_dead = True
    failures = await asyncio.gather(*(stock.take(4) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in failures] == ["dead"] * 3
    assert maker.asked == [12]
    maker.is_dead = False
    assert len(await stock.take(4)) == 4


async def test_what_is_on_its_way_counts_as_had(maker: Maker, stock: CommitmentStock) -> None:
    await stock.take(8)
    assert stock.order(4) == 4, "the other four are in use"
    assert stock.order(5) == 4, "four are on their way"
    assert stock.order(4) == 0
    stock.deliver(4, None)
    assert stock.order(4) == 4
    stock.deliver(4, maker.make(4))
    stock.deliver(4, maker.make(4))
    stock.deliver(0, None)
    assert stock.order(4) == 0
    assert len(await stock.take(12)) == 12
    assert maker.asked == [12]


@pytest.mark.parametrize(("ordered", "made"), [(4, 5), (4, 3), (0, 1), (0, 0)])
async def test_only_what_was_ordered_is_taken_in(maker: Maker, stock: CommitmentStock, ordered: int, made: int) -> None:
    with pytest.raises(MalformedAnswer):
        stock.deliver(ordered, maker.make(made))
    await stock.take(12)
    assert maker.asked == [12], "nothing was at hand"
