"""One signer's commitments at hand: made ahead of the messages, each used once."""

import asyncio
from collections import deque

from receipts.frost.ciphersuite import ELEMENT_BYTES
from receipts.frost.round_one import NonceCommitment
from receipts.signer_messages import CommitmentBatch
from receipts.signer_ports import SigningPort
from receipts.signing_errors import MalformedAnswer


class CommitmentStock:
    """What calls that overlap take a signer's commitments from; never more than ``most``, those on their way included.

    A signer drops its oldest nonces past a number: more than ``most`` must not be had of it, and it gives no more
    than it is asked for.
    """

    def __init__(self, identifier: int, port: SigningPort, *, most: int) -> None:
        self._identifier = identifier
        self._port = port
        self._most = most
        self._at_hand: deque[NonceCommitment] = deque()
        self._on_their_way = 0
        self._filling: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._at_hand)

    async def take(self, count: int) -> list[NonceCommitment]:
        """So many, at most ``most``; taken is used, whatever becomes of them.

        Raises:
            MalformedAnswer: what the signer gave are no commitments.
            ReceiptsError: as ``SigningPort.commit``.
        """
        while len(self._at_hand) < count:
            if self._filling is None:
                self._filling = asyncio.create_task(self._fill())
            await asyncio.shield(self._filling)
        # Nothing is awaited between the look and the taking: other calls take from the same ones.
        return [self._at_hand.popleft() for _ in range(count)]

    def order(self, used: int) -> int:
        """How many to ask for along with shares that use so many; ``deliver`` must follow.

        No more than are used: what other calls have taken and not used yet, the signer holds as well.
        """
        count = max(0, min(used, self._most - len(self._at_hand) - self._on_their_way))
        self._on_their_way += count
        return count

    def deliver(self, ordered: int, fresh: CommitmentBatch | None) -> None:
        """Take in what came of an order; None when nothing came.

        Raises:
            MalformedAnswer: it is not what was ordered.
        """
        self._on_their_way -= ordered
        if fresh is not None:
            self._add(fresh, ordered)

    def clear(self) -> None:
        """Drop all: the nonces behind them may be gone."""
        self._at_hand.clear()

    async def _fill(self) -> None:
        try:
            self._add(await self._port.commit(self._most), self._most)
        finally:
            self._filling = None

    def _add(self, batch: CommitmentBatch, count: int) -> None:
        if not (
            isinstance(batch, CommitmentBatch)
            and count > 0
            and batch.identifier == self._identifier
            and isinstance(batch.commitments, tuple)
            and len(batch.commitments) == count
            and all(self._is_one(each) for each in batch.commitments)
        ):
            raise MalformedAnswer("its commitments are malformed")
        self._at_hand.extend(batch.commitments)

    def _is_one(self, commitment: object) -> bool:
        return (
            isinstance(commitment, NonceCommitment)
            and commitment.identifier == self._identifier
            and isinstance(commitment.hiding, bytes)
            and isinstance(commitment.binding, bytes)
            and len(commitment.hiding) == len(commitment.binding) == ELEMENT_BYTES
        )
