"""Off the request's way: takes unsigned receipts from the ledger to the signer group and stores its signatures."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from metering.statements import SignedStatement
from receipts.ed25519 import verify_signature
from receipts.errors import ReceiptsError
from receipts.ledger_writer import LedgerWriter
from receipts.signer_messages import SignedMessage, SigningRefused
from receipts.stored_receipt import StoredReceipt

MAX_BATCH: Final = 256
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0

_LOG = logging.getLogger(__name__)


class Sign(Protocol):
    """The signer group's ``sign``."""

    async def __call__(
        self, messages: Sequence[tuple[bytes, SignedStatement | None]], /
    ) -> Sequence[bytes | SigningRefused]:
        """A signature, or why there is none now, for each message in order; with it goes its meter's statement.

        May raise anything; then nothing counts as signed, and the same messages will be offered again.
        """
        ...


@dataclass(slots=True)
class _Pause:
    """How long to leave something alone; twice as long each time."""

    seconds: float
    until: float


class SigningLoop:
    """Offers unsigned receipts in the order of storing, for as long as it runs.

    An account whose receipt is refused is left alone for a while, and the others go on: its later receipts could
    not be signed before that one. Without a quorum everything waits. Pauses double up to ten seconds.
    """

    def __init__(
        self,
        writer: LedgerWriter,
        *,
        sign: Sign,
        public_key: bytes,
        first_pause_s: float = _FIRST_PAUSE_S,
        longest_pause_s: float = _LONGEST_PAUSE_S,
    ) -> None:
        """``public_key``: no signature is stored that does not verify under it, whoever made it."""
        self._writer = writer
        self._sign = sign
        self._public_key = public_key
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._aside: dict[str, _Pause] = {}

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
        """Sign one batch, or wait until there may be one."""
        now = asyncio.get_running_loop().time()
        resting = {account: pause for account, pause in self._aside.items() if pause.until > now}
        batch = await self._writer.call(lambda ledger: ledger.unsigned(MAX_BATCH, excluding=list(resting)))
        if not batch:
            soonest = min((pause.until for pause in resting.values()), default=None)
            await self._writer.new_receipts(None if soonest is None else soonest - now)
            return
        offered = await self._sign([(each.signed_bytes, each.statement) for each in batch])
        signed, refused = await asyncio.to_thread(_sorted_out, batch, offered, self._public_key)
        if signed:
            await self._writer.attach_signatures(signed)
        self._set_aside(refused, {each.account for each in batch})

    def _set_aside(self, refused: dict[str, str], offered: Collection[str]) -> None:
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
