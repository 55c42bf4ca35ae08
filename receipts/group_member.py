"""One signer as its coordinator sees it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from receipts.commitment_stock import CommitmentStock
from receipts.errors import ReceiptsError
from receipts.frost.round_one import NonceCommitment
from receipts.group_record import GroupRecord
from receipts.signer_messages import HeadWanted, Refusal, ShareRefused, SignerStatus, SigningReply, SigningRequest
from receipts.signer_ports import SignerPort
from receipts.signers_report import MemberReport, SignerState
from receipts.signing_errors import MalformedAnswer, SignerUnavailable

_STATUS_WITHIN_S: Final = 5.0
_MAX_SEQ: Final = 2**63 - 1

_log = logging.getLogger(__name__)


class GroupMember:
    """What is known of one signer, and the ways of asking it.

    ``failed_lately``: it is asked last, until it has signed again. ``refusal`` is what it would not sign last.
    """

    def __init__(self, identifier: int, port: SignerPort, record: GroupRecord, *, most_commitments: int) -> None:
        self.identifier = identifier
        self.active = False
        self.failed_lately = False
        self.refusal: str | None = None
        self._port = port
        self._record = record
        self._stock = CommitmentStock(identifier, port, most=most_commitments)
        self._trouble: str | None = None
        self._is_silent = False
        self._host: str | None = None

    async def activate(self) -> None:
        """See that its share is active; raises as ``SigningPort.activate``."""
        if not self.active:
            await self._port.activate(self._record)
            self.active = True
            self._answers()

    async def take(self, count: int) -> list[NonceCommitment]:
        """So many of its commitments; raises as `CommitmentStock.take`."""
        await self.activate()
        return await self._stock.take(count)

    async def outcomes(self, request: SigningRequest) -> Sequence[bytes | ShareRefused]:
        """What it says to each package. Commitments for later are asked for along with it.

        Raises:
            MalformedAnswer: no honest signer answers so.
            ReceiptsError: as ``SigningPort.sign``.
        """
        ordered = self._stock.order(len(request.packages))
        fresh = None
        try:
            reply = await self._port.sign(replace(request, fresh=ordered))
            if not _is_well_formed(reply, self.identifier, len(request.packages)):
                raise MalformedAnswer("its reply is malformed")
            fresh = reply.fresh
        finally:
            self._stock.deliver(ordered, fresh)
        return reply.outcomes

    def has_signed(self) -> None:
        """Nothing is wrong with it."""
        self.failed_lately = self._is_silent = False
        self._trouble = None

    def has_lost_its_nonces(self) -> None:
        """It does not know what it committed to, as after a restart."""
        self._stock.clear()

    def refuses_what_others_sign(self, why: str) -> None:
        """It answers, and is of no use for that."""
        if not self.failed_lately:
            _log.warning("signer %d refuses what others sign, and is asked last: %s", self.identifier, why)
            self.failed_lately = True

    def set_back(self, error: Exception) -> None:
        """It gave no answer that is of use: its nonces may be gone. A line in the log when that is news."""
        why = said(error)
        if not self.failed_lately or self._trouble != why:
            unexpected = None if isinstance(error, ReceiptsError) else error
            _log.warning("signer %d cannot sign: %s", self.identifier, why, exc_info=unexpected)
        self.lay_aside(why, is_silent=isinstance(error, SignerUnavailable))

    def lay_aside(self, why: str, *, is_silent: bool = False) -> None:
        """Ask it last; ``is_silent``: any answer would end its trouble, and else only a signature does."""
        self._stock.clear()
        self.active = False
        self.failed_lately = True
        self._trouble = why
        self._is_silent = is_silent

    def readmit(self) -> None:
        """It was excluded and is not any more."""
        self._trouble = None

    async def report(self, excluded_for: str | None, wall_clock_ns: Callable[[], int]) -> MemberReport:
        """How it is, by asking it now."""
        status: SignerStatus | None = None
        failure: str | None = None
        try:
            status = await asyncio.wait_for(self._port.status(), _STATUS_WITHIN_S)
        except TimeoutError:
            failure = f"no answer within {_STATUS_WITHIN_S:g} s"
        except Exception as error:  # noqa: BLE001 - it is what the report says; the others are asked all the same
            failure = said(error)
        else:
            self._answers()
            self._host = status.host or self._host
        state, reason = self._state(status, excluded_for)
        return MemberReport(
            identifier=self.identifier,
            state=state,
            reason=reason or failure,
            host=self._host,
            last_refusal=self.refusal,
            status=status,
            answered_unix_ns=wall_clock_ns(),
        )

    def _state(self, status: SignerStatus | None, excluded_for: str | None) -> tuple[SignerState, str | None]:
        if excluded_for is not None:
            return SignerState.EXCLUDED, excluded_for
        if status is None:
            return SignerState.AWAY, None
        if status.record is None:
            return SignerState.NO_SHARE, self._trouble
        if status.record.statement != self._record.statement:
            return SignerState.NO_SHARE, "it holds a share of another group"
        if self._trouble is not None:
            return SignerState.AWAY, f"when it was asked last it could not sign: {self._trouble}"
        return SignerState.READY, None

    def _answers(self) -> None:
        """It is there again, if that was all that was wrong."""
        if self._is_silent:
            self._is_silent = False
            self._trouble = None


def said(error: Exception) -> str:
    """What a signer's trouble is, in one line."""
    return str(error) if isinstance(error, ReceiptsError) else f"{type(error).__name__}: {error}"


def _is_well_formed(reply: SigningReply, identifier: int, expected: int) -> bool:
    return (
        isinstance(reply, SigningReply)
        and reply.identifier == identifier
        and isinstance(reply.outcomes, tuple)
        and len(reply.outcomes) == expected
        and all(isinstance(each, bytes) or _is_refusal(each) for each in reply.outcomes)
    )


def _is_refusal(outcome: object) -> bool:
    return (
        isinstance(outcome, ShareRefused)
        and isinstance(outcome.reason, Refusal)
        and isinstance(outcome.detail, str)
        and isinstance(outcome.waits_for, int | None)
        and (outcome.head_wanted is None or _can_be_looked_up(outcome.head_wanted))
    )


def _can_be_looked_up(wanted: HeadWanted) -> bool:
    """A database takes no other text or number: the look-up would fail, and with it all signing."""
    return (
        isinstance(wanted, HeadWanted)
        and isinstance(wanted.account, str)
        and wanted.account.isprintable()
        and isinstance(wanted.seq, int)
        and 0 <= wanted.seq <= _MAX_SEQ
        and isinstance(wanted.sha256, bytes | None)
    )
