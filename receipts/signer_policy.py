"""What every signer demands of a receipt before it looks at the chain."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from metering.errors import StatementInvalid
from metering.statements import MeterStatement, SignedStatement, check_signature, read_statement
from receipts.arithmetic import check_arithmetic, microjoules
from receipts.document import AccountHead, Receipt, head_from_signed_bytes, receipt_from_signed_bytes
from receipts.errors import InvalidDocument
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer_store import ChainClaim, StatementNumber
from receipts.signing_errors import PolicyViolation

DEFAULT_MAX_CLOCK_SKEW_NS = 60 * 10**9
MAX_HEAD_AHEAD_NS = 2 * 10**9
"""A head dated later than now would leave out what is signed until then; so much two honest clocks may differ."""
MAX_OPEN_NS = 60 * 10**9
"""No interval may stay open for longer, as far as billing ahead of the counters goes: six times the longest that can
be set, so that a meter that was held up is not taken for one that makes up its bills."""
_PLAUSIBLE_TENTHS = 12
"""Metering believes a counter up to 1.2 times the maximum power (rated power is passed for moments), and its estimates
go by that. Less here than there, and honest receipts would wait for ever."""
_COUNTER_PERIOD_NS = 10**9
"""Metering also believes one counter period more than the time between two readings; here that of a slow counter."""
_ESTIMATED_SHARE = 20
"""An estimate stays billed when the counter then says less, so a meter whose estimates are a little high gets ahead of
its counters for good. A twentieth of all it counted is five times what the meter holds itself to."""
_MILLIWATT_NS_PER_MICROJOULE = 10**6


class ReceiptRules:
    """The ``ReceiptPolicy`` of the product: canonical form, schema, arithmetic, the group's key, no future.

    A receipt's age is not limited: after a night without a quorum, yesterday's receipts are signed today. None is
    signed without its meter's statement.
    """

    def __init__(self, *, wall_clock_ns: Callable[[], int], max_clock_skew_ns: int = DEFAULT_MAX_CLOCK_SKEW_NS) -> None:
        """``wall_clock_ns`` gives nanoseconds since 1970, such as ``time.time_ns`` on the signer's own node."""
        self._wall_clock_ns = wall_clock_ns
        self._max_clock_skew_ns = max_clock_skew_ns

    def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
        """Check a receipt's signed bytes by themselves; ``key_id`` names the group's key.

        Raises:
            PolicyViolation: the first rule that it breaks.
        """
        return _claim(self._receipt(message, key_id), message)

    def examine_stated(
        self,
        message: bytes,
        evidence: SignedStatement | None,
        *,
        key_id: str,
        meters: Mapping[bytes, MeterEnrolment],
    ) -> ChainClaim:
        """The same, and that an enrolled meter has stated exactly this request and figure, within what it counted.

        Raises:
            PolicyViolation: the first rule that it breaks.
        """
        receipt = self._receipt(message, key_id)
        statement, meter = _from_enrolled_meter(evidence, meters)
        _check_figure(receipt, statement)
        _check_charges(statement, meter)
        number = StatementNumber(meter=meter.public_key, sequence=statement.sequence)
        return replace(_claim(receipt, message), stated=number)

    def _receipt(self, message: bytes, key_id: str) -> Receipt:
        try:
            receipt = receipt_from_signed_bytes(message)
            check_arithmetic(receipt)
        except InvalidDocument as error:
            raise PolicyViolation(str(error)) from error
        if receipt.verification.key_id != key_id:
            raise PolicyViolation(f"it names the key {receipt.verification.key_id}, the group's is {key_id}")
        ahead_ns = receipt.execution.end_unix_ns - self._wall_clock_ns()
        if ahead_ns > self._max_clock_skew_ns:
            raise PolicyViolation(
                f"it ends {ahead_ns / 1e9:.0f} s in the future of this signer's clock; one of the clocks is wrong"
            )
        return receipt

    def examine_head(self, message: bytes, *, key_id: str) -> AccountHead:
        """Check an account head's signed bytes by themselves: form, the group's key, and that its time is now.

        Raises:
            PolicyViolation: the first rule that it breaks.
        """
        try:
            head = head_from_signed_bytes(message)
        except InvalidDocument as error:
            raise PolicyViolation(str(error)) from error
        if head.key_id != key_id:
            raise PolicyViolation(f"it names the key {head.key_id}, the group's is {key_id}")
        off_ns = head.as_of_unix_ns - self._wall_clock_ns()
        if not -self._max_clock_skew_ns <= off_ns <= MAX_HEAD_AHEAD_NS:
            raise PolicyViolation(
                f"its time is {off_ns / 1e9:+.1f} s off this signer's clock; one of the clocks is wrong"
            )
        return head


def _claim(receipt: Receipt, message: bytes) -> ChainClaim:
    previous = receipt.chain.prev_sha256
    return ChainClaim(
        account=receipt.workload.account,
        seq=receipt.chain.seq,
        prev_sha256=None if previous is None else bytes.fromhex(previous),
        sha256=hashlib.sha256(message).digest(),
    )


def _from_enrolled_meter(
    evidence: SignedStatement | None, meters: Mapping[bytes, MeterEnrolment]
) -> tuple[MeterStatement, MeterEnrolment]:
    if evidence is None:
        raise PolicyViolation("it comes without a statement of its meter")
    try:
        statement = read_statement(evidence)
        meter = meters.get(bytes.fromhex(statement.meter))
        if meter is None:
            raise PolicyViolation(f"its meter {statement.meter[:16]}… is not enrolled with this signer")
        check_signature(evidence, meter.public_key)
    except StatementInvalid as error:
        raise PolicyViolation(f"its meter's statement is not valid: {error}") from error
    return statement, meter


def _check_figure(receipt: Receipt, statement: MeterStatement) -> None:
    if receipt.receipt_id != f"rcpt_{statement.request_id}":
        raise PolicyViolation(f"its meter's statement is about the request {statement.request_id!r}")
    if statement.outcome == "failed":
        raise PolicyViolation("its meter says that the attempt failed, and such a one has no receipt")
    joules = receipt.energy.total_joules
    energy_microjoules = None if joules is None else microjoules(joules, "energy.total_joules")
    if energy_microjoules != statement.microjoules:
        raise PolicyViolation(
            f"its energy is {_amount(energy_microjoules)}, its meter has stated {_amount(statement.microjoules)}"
        )


def _check_charges(statement: MeterStatement, meter: MeterEnrolment) -> None:
    """Whatever was billed so far was counted, or estimated as an honest meter may.

    A receipt that is refused here never passes later, since its statement stays as it is: the bound is generous.
    """
    ahead_microjoules = statement.charged_microjoules - statement.counted_microjoules
    open_ns = min(statement.open_ns, MAX_OPEN_NS) + _COUNTER_PERIOD_NS
    open_tenths = meter.maximum_power_milliwatts * _PLAUSIBLE_TENTHS * open_ns
    # Rounded up: what meters round down themselves must not be too much here.
    may_be_open_microjoules = -(-open_tenths // (10 * _MILLIWATT_NS_PER_MICROJOULE))
    at_most_microjoules = may_be_open_microjoules + statement.counted_microjoules // _ESTIMATED_SHARE
    if ahead_microjoules > at_most_microjoules:
        raise PolicyViolation(
            f"the meter of {meter.node} has billed {ahead_microjoules} microjoules more than it has counted, and at "
            f"most {at_most_microjoules} can be estimates"
        )


def _amount(energy_microjoules: int | None) -> str:
    return "not known" if energy_microjoules is None else f"{energy_microjoules} microjoules"
