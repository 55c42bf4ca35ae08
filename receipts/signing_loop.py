"""Off the request's way: takes unsigned receipts from the ledger to the signer group and stores its signatures."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from receipts.ed25519 import verify_signature
from receipts.errors import DamagedReceipt, ReceiptsError
from receipts.ledger_writer import LedgerWriter
from receipts.signer_messages import Evidence, SignedMessage, SigningRefused
from receipts.stored_receipt import StoredReceipt

MAX_BATCH: Final = 128
"""Receipts in one call to the signers."""
_WINDOW: Final = 4096
"""Receipts that are read from the ledger at once: the signers are idle while it is read and while its end is stored."""
_BATCHES_AT_ONCE: Final = 4
"""One at the signers, one waiting at their door, one becoming signatures, one being stored."""
_GATHER_S: Final = 0.1
"""Between two readings of fewer than a full batch: a call to the signers costs as much as signing several receipts."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0

_LOG = logging.getLogger(__name__)


class Sign(Protocol):
    """The signer group's ``sign``."""

    async def __call__(self, messages: Sequence[tuple[bytes, Evidence]], /) -> Sequence[bytes | SigningRefused]:
        """A signature, or why there is none now, for each message in order; with it goes its meter's statement.

        Called for a batch while those before it are still on their way. May raise anything; then nothing counts as
        signed, and the same messages will be offered again.
        """
        ...


@dataclass(slots=True)
class _Pause:
    """How long to leave something alone; twice as long each time."""

    seconds: float
    until: float


@dataclass(slots=True)
class _Round:
    """One reading of unsigned receipts on its way: batches to be taken, and by account why one was not signed."""

    batches: Iterator[Sequence[StoredReceipt]]
    refused: dict[str, str] = field(default_factory=dict)
    trouble: Exception | None = None


class SigningLoop:
    """Offers unsigned receipts in the order of storing, for as long as it runs.

    An account whose receipt is refused, or damaged, is left alone for a while, and the others go on: its later
    receipts could not be signed before that one. Without a quorum everything waits. Pauses double up to ten seconds.
    """

    def __init__(
        self,
        writer: LedgerWriter,
        *,
        sign: Sign,
        public_key: bytes,
        on_signed: Callable[[Sequence[int]], None] = lambda _: None,
        gather: Callable[[float], Awaitable[None]] = asyncio.sleep,
        first_pause_s: float = _FIRST_PAUSE_S,
        longest_pause_s: float = _LONGEST_PAUSE_S,
    ) -> None:
        """``public_key``: no signature is stored that does not verify under it, whoever made it.

        ``on_signed`` is told how long the receipts that were just signed had waited, in nanoseconds. A receipt that
        comes after a lull is signed at once; those that follow wait for company while ``gather`` does.
        """
        self._writer = writer
        self._sign = sign
        self._public_key = public_key
        self._gather = gather
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._on_signed = on_signed
        self._aside: dict[str, _Pause] = {}
        self._working = asyncio.Lock()

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """Meanwhile no receipt is on its way to its signature: what is signed, the ledger has."""
        async with self._working:
            yield

    async def run(self) -> None:
        """Sign until cancelled. An error costs a pause and a line in the log, never the loop."""
        trouble: _Pause | None = None
        while True:
            try:
                await self._step()
                trouble = None
            except ReceiptsError as error:
                trouble = self._longer(trouble)
                _LOG.warning("receipts are not being signed, trying again in %.1f s: %s", trouble.seconds, error)
                await asyncio.sleep(trouble.seconds)
            except Exception:  # noqa: BLE001 - logged; whatever it was, receipts go on waiting and not lost
                trouble = self._longer(trouble)
                _LOG.exception("signing receipts failed, trying again in %.1f s", trouble.seconds)
                await asyncio.sleep(trouble.seconds)

    async def _step(self) -> None:
        """Sign what waits, or wait until something may."""
        now = asyncio.get_running_loop().time()
        resting = {account: pause for account, pause in self._aside.items() if pause.until > now}
        try:
            waiting = await self._writer.call(lambda ledger: ledger.unsigned(_WINDOW, excluding=list(resting)))
        except DamagedReceipt as damaged:
            self._set_aside({damaged.account: str(damaged)}, {damaged.account})
            return
        if not waiting:
            soonest = min((pause.until for pause in resting.values()), default=None)
            await self._writer.new_receipts(None if soonest is None else soonest - now)
            return
        batches = (waiting[start : start + MAX_BATCH] for start in range(0, len(waiting), MAX_BATCH))
        on_its_way = _Round(batches)
        async with self._working:
            await asyncio.gather(*(self._sign_batches(on_its_way) for _ in range(_BATCHES_AT_ONCE)))
        self._set_aside(on_its_way.refused, {each.account for each in waiting})
        if on_its_way.trouble is not None:
            raise on_its_way.trouble
        if len(waiting) < MAX_BATCH:
            await self._gather(_GATHER_S)

    async def _sign_batches(self, on_its_way: _Round) -> None:
        """Take one batch after the other; trouble with one is noted, and no other is begun."""
        for batch in on_its_way.batches:
            # What follows a receipt that was just refused could not be signed either.
            offered = [each for each in batch if each.account not in on_its_way.refused]
            try:
                await self._sign_batch(offered, on_its_way.refused)
            except Exception as error:  # noqa: BLE001 - raised again once the other batches are through
                on_its_way.trouble = on_its_way.trouble or error
            if on_its_way.trouble is not None:
                return

    async def _sign_batch(self, batch: Sequence[StoredReceipt], refused: dict[str, str]) -> None:
        answers = await self._sign([(each.signed_bytes, each.statement) for each in batch])
        signed, reasons = await asyncio.to_thread(_sorted_out, batch, answers, self._public_key)
        for account, reason in reasons.items():
            refused.setdefault(account, reason)
        if signed:
            self._tell(await self._writer.attach_signatures(signed))

    def _tell(self, waited_ns: Sequence[int]) -> None:
        try:
            self._on_signed(waited_ns)
        except Exception:  # noqa: BLE001 - logged; the receipts are signed, whoever counts them
            _LOG.exception("receipts that were signed could not be counted")

    def _set_aside(self, refused: dict[str, str], offered: set[str]) -> None:
        for account in offered:
            earlier = self._aside.pop(account, None)
            if account in refused:
                pause = self._aside[account] = self._longer(earlier)
                _LOG.warning("account %s: %s; next try in %.1f s", account, refused[account], pause.seconds)

    def _longer(self, pause: _Pause | None) -> _Pause:
        seconds = self._first_pause_s if pause is None else min(2 * pause.seconds, self._longest_pause_s)
        return _Pause(seconds=seconds, until=asyncio.get_running_loop().time() + seconds)


def _sorted_out(
    batch: Sequence[StoredReceipt], offered: Sequence[bytes | SigningRefused], public_key: bytes
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Signatures that verify, by receipt id; and by account the first reason for which one has none."""
    signed: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    for stored, answer in zip(batch, offered, strict=True):
        if isinstance(answer, bytes) and verify_signature(public_key, stored.signed_bytes, answer):
            signed[stored.receipt_id] = answer
        else:
            reason = "the signature does not verify" if isinstance(answer, bytes) else answer.reason
            refused.setdefault(stored.account, f"receipt {stored.seq} is not signed: {reason}")
    return signed, refused


class LedgerHeads:
    """What a signer that was away is shown to catch up: receipts that the group has signed, from the ledger."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer

    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        """The account's receipt ``seq`` with its signature; None while it has none."""
        stored = await self._writer.call(lambda ledger: ledger.receipt_at(account, seq))
        if stored is None or stored.signature is None:
            return None
        return SignedMessage(message=stored.signed_bytes, signature=stored.signature)
