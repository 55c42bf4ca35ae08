"""What every signer demands of a receipt before it looks at the chain."""

import hashlib
from collections.abc import Callable

from receipts.arithmetic import check_arithmetic
from receipts.document import receipt_from_signed_bytes
from receipts.errors import InvalidDocument
from receipts.signer_store import ChainClaim
from receipts.signing_errors import PolicyViolation

DEFAULT_MAX_CLOCK_SKEW_NS = 60 * 10**9


class ReceiptRules:
    """The ``ReceiptPolicy`` of the product: canonical form, schema, arithmetic, the group's key, no future.

    A receipt's age is not limited: after a night without a quorum, yesterday's receipts are signed today.
    """

    def __init__(self, *, wall_clock_ns: Callable[[], int], max_clock_skew_ns: int = DEFAULT_MAX_CLOCK_SKEW_NS) -> None:
        """``wall_clock_ns`` gives nanoseconds since 1970, such as ``time.time_ns`` on the signer's own node."""
        self._wall_clock_ns = wall_clock_ns
        self._max_clock_skew_ns = max_clock_skew_ns

    def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
        """Check a receipt's signed bytes; ``key_id`` names the group's key.

        Raises:
            PolicyViolation: the first rule that it breaks.
        """
        try:
            receipt = receipt_from_signed_bytes(message)
            check_arithmetic(receipt)
        except InvalidDocument as error:
            raise PolicyViolation(str(error)) from error
        if receipt.verification.key_id != key_id:
            raise PolicyViolation(f"it names the key {receipt.verification.key_id}, the group's is {key_id}")
        ahead_ns = receipt.execution.end_unix_ns - self._wall_clock_ns()
        if ahead_ns > self._max_clock_skew_ns:
            raise PolicyViolation(f"it ends {ahead_ns / 1e9:.0f} s in the future of this signer's clock")
        previous = receipt.chain.prev_sha256
        return ChainClaim(
            account=receipt.workload.account,
            seq=receipt.chain.seq,
            prev_sha256=None if previous is None else bytes.fromhex(previous),
            sha256=hashlib.sha256(message).digest(),
        )
