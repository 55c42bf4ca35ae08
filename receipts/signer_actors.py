"""The signers as Ray actors: one process each, held to the node whose disk has its share.

The actors of one Ray cluster are one trust domain: whoever may submit a job can reach their processes. Five
signers protect against each other's operators only when each runs on its own node and under its own user.
"""

import asyncio
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from receipts.errors import ReceiptsError
from receipts.frost.secrecy import Redacted
from receipts.group_record import GroupRecord
from receipts.meter_enrolment import MeterEnrolment
from receipts.share_secret import ShareSecretSource
from receipts.signer import ReceiptPolicy, Signer
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
from receipts.signing_errors import SignerUnavailable, SigningError

# Ray's CPUs are a count that it subtracts from: five signers must fit beside an engine on two cores.
_ACTOR_CPUS = 0.01
_ANSWER_DEADLINE_S = 20.0
_START_DEADLINE_S = 60.0
_MOST_OF_A_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerSettings:
    """What a signer actor is started with; it travels through Ray, so it names secrets and holds none.

    ``folder`` is on the disk of the node that the actor is held to. ``make_policy`` is called in the actor, and so is
    ``signer_type`` with what ``Signer`` takes: a trial may have another kind. ``enrolled``: as for ``Signer``.
    """

    identifier: int
    folder: Path
    share_secret: ShareSecretSource
    make_policy: Callable[[], ReceiptPolicy]
    enrolled: Mapping[int, bytes] | None = None
    signer_type: Callable[..., Signer] = Signer


class SignerActor(Redacted):
    """A ``Signer`` in an actor's process; the same methods.

    A signer that cannot be opened answers the call with the reason, and the next call tries again: a full disk has room
    later, and the process before may be ending still. Raising in the constructor would make Ray report a dead actor
    instead, and the reason ("wrong share secret") would be lost in its traceback.
    """

    def __init__(self, settings: SignerSettings) -> None:
        self._settings = settings
        self._opened: Signer | None = None

    def status(self) -> SignerStatus:
        """As ``Signer.status``, with this node's name and clock."""
        return replace(self._signer.status(), host=platform.node(), clock_unix_ns=time.time_ns())

    def begin(self, plan: CeremonyPlan) -> RoundOnePackage:
        """As ``Signer.begin``."""
        return self._signer.begin(plan)

    def exchange(self, packages: tuple[RoundOnePackage, ...]) -> tuple[SealedShare, ...]:
        """As ``Signer.exchange``."""
        return self._signer.exchange(packages)

    def conclude(self, sealed: tuple[SealedShare, ...]) -> SignedGroupStatement:
        """As ``Signer.conclude``."""
        return self._signer.conclude(sealed)

    def activate(self, record: GroupRecord) -> None:
        """As ``Signer.activate``."""
        self._signer.activate(record)

    def commit(self, count: int) -> CommitmentBatch:
        """As ``Signer.commit``."""
        return self._signer.commit(count)

    def sign(self, request: SigningRequest) -> SigningReply:
        """As ``Signer.sign``."""
        return self._signer.sign(request)

    def enrol_meter(self, enrolment: MeterEnrolment) -> None:
        """As ``Signer.enrol_meter``."""
        self._signer.enrol_meter(enrolment)

    @property
    def _signer(self) -> Signer:
        if self._opened is None:
            self._opened = _open(self._settings)
        return self._opened


def _open(settings: SignerSettings) -> Signer:
    return settings.signer_type(
        identifier=settings.identifier,
        folder=settings.folder,
        # The signer's own node is where its secret lives, so it is read here and not at the driver.
        share_secret=settings.share_secret.read(os.environ),
        policy=settings.make_policy(),
        random_bytes=os.urandom,
        enrolled=settings.enrolled,
    )


class RaySigner:
    """A ``SignerPort`` on a signer actor: Ray's failures become ``SignerUnavailable``, the signer's refusals stay.

    Anything else that a signer raises, such as an ``OSError``, becomes a ``SigningError``: it is that signer's trouble.
    """

    def __init__(
        self,
        handle: ActorHandle[SignerActor] | None,
        *,
        identifier: int,
        start_deadline_s: float = _START_DEADLINE_S,
        answer_deadline_s: float = _ANSWER_DEADLINE_S,
    ) -> None:
        """Wrap a handle, None for an actor that is gone for good.

        The first call may take ``start_deadline_s``, for the process to come up.
        """
        self.handle = handle
        self.untold: set[bytes] = set()
        self._identifier = identifier
        self._deadline_s = start_deadline_s
        self._answer_deadline_s = answer_deadline_s

    async def status(self) -> SignerStatus:
        """As ``Signer.status``."""
        return cast("SignerStatus", await self._call("status"))

    async def begin(self, plan: CeremonyPlan) -> RoundOnePackage:
        """As ``Signer.begin``."""
        return cast("RoundOnePackage", await self._call("begin", plan))

    async def exchange(self, packages: tuple[RoundOnePackage, ...]) -> tuple[SealedShare, ...]:
        """As ``Signer.exchange``."""
        return cast("tuple[SealedShare, ...]", await self._call("exchange", packages))

    async def conclude(self, sealed: tuple[SealedShare, ...]) -> SignedGroupStatement:
        """As ``Signer.conclude``."""
        return cast("SignedGroupStatement", await self._call("conclude", sealed))

    async def activate(self, record: GroupRecord) -> None:
        """As ``Signer.activate``."""
        await self._call("activate", record)

    async def commit(self, count: int) -> CommitmentBatch:
        """As ``Signer.commit``."""
        return cast("CommitmentBatch", await self._call("commit", count))

    async def sign(self, request: SigningRequest) -> SigningReply:
        """As ``Signer.sign``."""
        return cast("SigningReply", await self._call("sign", request))

    async def enrol_meter(self, enrolment: MeterEnrolment) -> None:
        """As ``Signer.enrol_meter``."""
        await self._call("enrol_meter", enrolment)

    async def _call(self, method: str, *arguments: object) -> object:
        if self.handle is None:
            raise SignerUnavailable(f"signer {self._identifier} is gone for good")
        deadline_s, self._deadline_s = self._deadline_s, self._answer_deadline_s
        try:
            return await asyncio.wait_for(getattr(self.handle, method).remote(*arguments), deadline_s)
        except TimeoutError:
            raise SignerUnavailable(f"signer {self._identifier} did not answer within {deadline_s:g} s") from None
        except RayTaskError as error:
            if isinstance(error.cause, ReceiptsError):
                raise error.cause from None
            why = f"{type(error.cause).__name__}: {error.cause}"[:_MOST_OF_A_REASON]
            raise SigningError(f"signer {self._identifier} failed: {why}") from error
        except RayError as error:
            raise SignerUnavailable(f"signer {self._identifier} is gone: {type(error).__name__}") from error


def start_signers(
    settings: Sequence[SignerSettings], node_ids: Sequence[str], *, name_prefix: str = "signer"
) -> dict[int, RaySigner]:
    """Start an actor per signer, round robin over the nodes, and give their ports by identifier.

    Hard affinity: a share lies on one node's disk, so elsewhere the signer could only start empty. Ray
    restarts a dead actor on its node without end, but repeats no call: nonces of a call that may have been
    worked on are used. Does not wait for the processes. An actor ends with the job that started it.

    Raises:
        ValueError: an actor of that name is there already, or no nodes were given.
    """
    if not node_ids:
        raise ValueError("signers need at least one node")
    actor_class = ray.remote(SignerActor)
    signers: dict[int, RaySigner] = {}
    for place, each in enumerate(settings):
        handle = actor_class.options(
            name=f"{name_prefix}-{each.identifier}",
            num_cpus=_ACTOR_CPUS,
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_ids[place % len(node_ids)], soft=False),
        ).remote(each)
        signers[each.identifier] = RaySigner(cast("ActorHandle[SignerActor]", handle), identifier=each.identifier)
    return signers


def signers_of(identifiers: Sequence[int], *, namespace: str, name_prefix: str = "signer") -> dict[int, RaySigner]:
    """The ports of the signer actors; one whose actor is gone for good answers `SignerUnavailable`, like a dead one."""
    return {each: RaySigner(_actor(f"{name_prefix}-{each}", namespace), identifier=each) for each in identifiers}


def _actor(name: str, namespace: str) -> ActorHandle[SignerActor] | None:
    try:
        return cast("ActorHandle[SignerActor]", ray.get_actor(name, namespace=namespace))
    except ValueError:
        return None


def stop_signers(signers: Mapping[int, RaySigner]) -> None:
    """End the actors for good; their folders stay."""
    for signer in signers.values():
        if signer.handle is not None:
            ray.kill(signer.handle, no_restart=True)
