"""Telling the signers of a meter."""

import asyncio
import logging
from collections.abc import Mapping

from receipts.errors import ReceiptsError
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer_group import DEFAULT_THRESHOLD, listed
from receipts.signer_ports import SigningPort
from receipts.signing_errors import QuorumUnavailable

_log = logging.getLogger(__name__)


async def enrol_meter(
    signers: Mapping[int, SigningPort], enrolment: MeterEnrolment, *, needed: int = DEFAULT_THRESHOLD
) -> None:
    """Have the signers believe this meter's statements, from now on and after their restarts.

    A signer that cannot be told now is named in the log; it refuses that meter's receipts until it is told. So this
    may be repeated every so often: one that knows the meter does nothing, and the log has a line when it changes who
    can be told.

    Raises:
        QuorumUnavailable: fewer than ``needed`` signers know the meter; receipts would wait.
    """
    attempts = await asyncio.gather(*(each.enrol_meter(enrolment) for each in signers.values()), return_exceptions=True)
    failures: dict[int, str] = {}
    for identifier, failure in zip(signers, attempts, strict=True):
        untold = signers[identifier].untold
        if isinstance(failure, ReceiptsError):
            failures[identifier] = str(failure)
            if enrolment.public_key not in untold:
                untold.add(enrolment.public_key)
                _log.warning("signer %d cannot be told of the meter of %s: %s", identifier, enrolment.node, failure)
        elif failure is not None:
            raise failure
        elif enrolment.public_key in untold:
            untold.remove(enrolment.public_key)
            _log.info("signer %d knows the meter of %s now", identifier, enrolment.node)
    if len(signers) - len(failures) < needed:
        raise QuorumUnavailable(
            f"the meter of {enrolment.node} is not enrolled with {needed} signers: {listed(failures)}"
        )
