"""An account head: made from the receipts at its two ends, and signed by the group."""

import hashlib

from receipts.document import HEAD_TYP, AccountHead, signed_bytes, with_signature
from receipts.signer_group import SignerGroup
from receipts.signer_messages import SignedMessage
from receipts.stored_receipt import StoredReceipt


async def sign_head(group: SignerGroup, first: StoredReceipt, last: StoredReceipt, *, now_unix_ns: int) -> bytes:
    """The canonical bytes of the head that covers the receipts from ``first`` to ``last``, both signed.

    ``last`` is the account's newest signed receipt, and must be so until this returns.

    Raises:
        QuorumUnavailable: too few signers answer, or are willing; the text says why.
    """
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
