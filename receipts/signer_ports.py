"""How a coordinator speaks to a signer, wherever that lives."""

from typing import Protocol

from receipts.group_record import GroupRecord
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer import Signer
from receipts.signer_messages import (
    CeremonyPlan,
    CommitmentBatch,
    RoundOnePackage,
    SealedShare,
    SignedGroupStatement,
    SignerStatus,
    SigningReply,
    SigningRequest,
)


class KeyGenerationPort(Protocol):
    """A signer while the group's key is made.

    Each method answers or raises within a deadline of its own: ``SignerUnavailable`` when the signer cannot
    be reached, otherwise what ``Signer``'s method of that name raises. A step that raised ends the ceremony.
    """

    async def status(self) -> SignerStatus:
        """As ``Signer.status``."""
        ...

    async def begin(self, plan: CeremonyPlan) -> RoundOnePackage:
        """As ``Signer.begin``."""
        ...

    async def exchange(self, packages: tuple[RoundOnePackage, ...]) -> tuple[SealedShare, ...]:
        """As ``Signer.exchange``."""
        ...

    async def conclude(self, sealed: tuple[SealedShare, ...]) -> SignedGroupStatement:
        """As ``Signer.conclude``."""
        ...


class SigningPort(Protocol):
    """A signer while receipts are signed.

    Each method answers or raises within a deadline of its own: ``SignerUnavailable`` when the signer cannot
    be reached, otherwise what ``Signer``'s method of that name raises. After a failed ``sign`` the nonces of
    that request count as used, and the marks may or may not have moved; the same messages can be asked again.

    ``untold`` holds the keys of meters that the signer could not be told of when `enrol_meter` last tried: what the
    log has said already.
    """

    untold: set[bytes]

    async def activate(self, record: GroupRecord) -> None:
        """As ``Signer.activate``."""
        ...

    async def commit(self, count: int) -> CommitmentBatch:
        """As ``Signer.commit``."""
        ...

    async def sign(self, request: SigningRequest) -> SigningReply:
        """As ``Signer.sign``."""
        ...

    async def enrol_meter(self, enrolment: MeterEnrolment) -> None:
        """As ``Signer.enrol_meter``."""
        ...


class SignerPort(KeyGenerationPort, SigningPort, Protocol):
    """Both."""


class LocalSigner:
    """A ``SignerPort`` on a signer in this process: for tests and benchmarks, where nothing needs protection."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.untold: set[bytes] = set()

    async def status(self) -> SignerStatus:
        """As ``Signer.status``."""
        return self._signer.status()

    async def begin(self, plan: CeremonyPlan) -> RoundOnePackage:
        """As ``Signer.begin``."""
        return self._signer.begin(plan)

    async def exchange(self, packages: tuple[RoundOnePackage, ...]) -> tuple[SealedShare, ...]:
        """As ``Signer.exchange``."""
        return self._signer.exchange(packages)

    async def conclude(self, sealed: tuple[SealedShare, ...]) -> SignedGroupStatement:
        """As ``Signer.conclude``."""
        return self._signer.conclude(sealed)

    async def activate(self, record: GroupRecord) -> None:
        """As ``Signer.activate``."""
        self._signer.activate(record)

    async def commit(self, count: int) -> CommitmentBatch:
        """As ``Signer.commit``."""
        return self._signer.commit(count)

    async def sign(self, request: SigningRequest) -> SigningReply:
        """As ``Signer.sign``."""
        return self._signer.sign(request)

    async def enrol_meter(self, enrolment: MeterEnrolment) -> None:
        """As ``Signer.enrol_meter``."""
        self._signer.enrol_meter(enrolment)
