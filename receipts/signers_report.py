"""How the signer group is, for operators: who can sign, what waits, and how fast it goes."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from receipts.ledger_writer import Backlog
from receipts.signer_messages import SignerStatus

_NS_PER_S: Final = 10**9
_RATE_OVER_S: Final = 60.0


class SignerState(StrEnum):
    """Whether a signer can sign."""

    READY = "ready"
    AWAY = "away"
    """It does not answer, or could not sign when it was last asked to, as with its disk full."""
    EXCLUDED = "excluded"
    NO_SHARE = "no share"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """How one signer is. ``reason`` says why it is not ready; ``last_refusal`` what it would not sign last, if ever.

    ``host`` is where it was seen last; ``status`` is None when it does not answer, and else came at
    ``answered_unix_ns`` by the ledger's clock.
    """

    identifier: int
    state: SignerState
    reason: str | None
    host: str | None
    last_refusal: str | None
    status: SignerStatus | None
    answered_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignersReport:
    """The group, its members, and the receipts that wait for it, at ``at_unix_ns`` by the ledger's clock.

    ``signed_per_second`` is the mean of the last minute.
    """

    public_key: bytes
    key_id: str
    threshold: int
    members: tuple[MemberReport, ...]
    backlog: Backlog
    signed_per_second: float
    at_unix_ns: int

    @property
    def ready(self) -> int:
        """How many signers can sign."""
        return sum(each.state is SignerState.READY for each in self.members)

    @property
    def oldest_age_s(self) -> float | None:
        """How long the oldest receipt without a signature has waited; None when none waits."""
        oldest = self.backlog.oldest_unix_ns
        return None if oldest is None else max(0, self.at_unix_ns - oldest) / _NS_PER_S

    def clock_ahead_s(self, member: MemberReport) -> float | None:
        """How far the signer's clock is ahead of the ledger's, give or take the time to ask; None: not known."""
        clock = None if member.status is None else member.status.clock_unix_ns
        return None if clock is None else (clock - member.answered_unix_ns) / _NS_PER_S

    def to_jsonable(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "key_id": self.key_id,
            "public_key": self.public_key.hex(),
            "threshold": self.threshold,
            "ready": self.ready,
            "signers": [self._member(each) for each in self.members],
            "unsigned_receipts": self.backlog.count,
            "oldest_unsigned_age_s": self.oldest_age_s,
            "signed_per_second": self.signed_per_second,
        }

    def _member(self, member: MemberReport) -> dict[str, Any]:
        status = member.status
        return {
            "signer": member.identifier,
            "state": str(member.state),
            "reason": member.reason,
            "node": member.host,
            "unused_nonces": None if status is None else status.unused_nonces,
            "accounts": None if status is None else status.accounts,
            "vouched": None if status is None else status.vouched,
            "clock_ahead_s": self.clock_ahead_s(member),
            "last_refusal": member.last_refusal,
        }


class SigningRate:
    """How many receipts were signed in the last minute."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._began_s = monotonic_s()
        self._signed: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        """Count receipts that were signed just now."""
        self._signed.append((self._monotonic_s(), count))
        self._forget()

    def per_second(self) -> float:
        """The mean over the last minute, or since the beginning where that is less."""
        self._forget()
        elapsed_s = min(_RATE_OVER_S, self._monotonic_s() - self._began_s)
        return sum(count for _, count in self._signed) / elapsed_s if elapsed_s > 0 else 0.0

    def _forget(self) -> None:
        while self._signed and self._signed[0][0] < self._monotonic_s() - _RATE_OVER_S:
            self._signed.popleft()
