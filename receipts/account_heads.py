"""An account head: made from the receipts at its two ends, and signed by the group."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

from receipts.document import HEAD_TYP, AccountHead, signed_bytes, with_signature
from receipts.errors import ReadersBusy
from receipts.ledger_readers import LedgerReaders
from receipts.signer_group import SignerGroup
from receipts.signer_messages import SignedMessage
from receipts.stored_receipt import StoredReceipt

MOST_UNDER_WAY: Final = 4
"""So many heads may stand between two rounds of receipts, which wait meanwhile."""


class AccountHeads:
    """Has the signer group sign how far accounts' chains reach now; one head of an account at a time, few in all."""

    def __init__(
        self,
        readers: LedgerReaders,
        group: SignerGroup,
        *,
        at_rest: Callable[[], AbstractAsyncContextManager[None]],
        wall_clock_ns: Callable[[], int],
    ) -> None:
        """``at_rest`` is the signing loop's: inside, no receipt gets signed."""
        self._readers = readers
        self._group = group
        self._at_rest = at_rest
        self._wall_clock_ns = wall_clock_ns
        self._under_way: set[str] = set()

    async def signed(self, account: str, since_unix_ns: int | None) -> bytes | None:
        """The group-signed head over the account's signed receipts from the first that ended at or after a time on.

        None when there is none. While it is signed no receipt is, so that the head leaves none out; what takes long
        is done before.

        Raises:
            ReadersBusy: a head of the account is under way already, or too many of others are, or too many read.
            HeadRefused: too few signers are willing to sign it; the text says why.
            QuorumUnavailable: too few signers answer.
        """
        if account in self._under_way:
            raise ReadersBusy("a head of the account is being signed already; wait for it, or try again in a moment")
        if len(self._under_way) >= MOST_UNDER_WAY:
            raise ReadersBusy("too many account heads are being signed just now; try again in a moment")
        self._under_way.add(account)
        try:
            first_seq = await self._first_seq(account, since_unix_ns)
            if first_seq is None:
                return None
            async with self._at_rest():
                bounds = await self._readers.call_promptly(lambda reader: reader.bounds(account, first_seq))
                return None if bounds is None else await _sign(self._group, *bounds, self._wall_clock_ns())
        finally:
            self._under_way.remove(account)

    async def _first_seq(self, account: str, since_unix_ns: int | None) -> int | None:
        """It stays the first, whatever is stored meanwhile: what comes later has a greater ``seq``."""
        if since_unix_ns is None:
            return 1
        return await self._readers.call(account, lambda reader: reader.first_seq_since(account, since_unix_ns))


async def _sign(group: SignerGroup, first: StoredReceipt, last: StoredReceipt, now_unix_ns: int) -> bytes:
    ends = [_proof(each) for each in (first, last)]
    first_sha256, last_sha256 = (hashlib.sha256(each.message).hexdigest() for each in ends)
    head = AccountHead(
        typ=HEAD_TYP,
        account=last.account,
        as_of_unix_ns=now_unix_ns,
        first_seq=first.seq,
        last_seq=last.seq,
        first_sha256=first_sha256,
        last_sha256=last_sha256,
        key_id=group.key_id,
        signature=None,
    )
    return with_signature(signed_bytes(head), await group.sign_head(head, *ends))


def _proof(stored: StoredReceipt) -> SignedMessage:
    assert stored.signature is not None, "a head's ends are signed"
    return SignedMessage(message=stored.signed_bytes, signature=stored.signature)
