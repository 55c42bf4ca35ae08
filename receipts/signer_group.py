"""The signing group as the mesh sees it: five signers, any three of which sign."""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self, TypeVar

from receipts.document import AccountHead, signed_bytes
from receipts.errors import ReceiptsError
from receipts.frost.batch import aggregate_batch
from receipts.frost.ciphersuite import RandomBytes
from receipts.frost.errors import FrostError
from receipts.frost.round_one import NonceCommitment
from receipts.frost.signing_package import SigningPackage, bind
from receipts.group_record import GroupRecord
from receipts.key_generation import load_or_generate
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer import MAX_BATCH
from receipts.signer_exclusions import Exclusions
from receipts.signer_messages import (
    CommitmentBatch,
    Evidence,
    HeadEvidence,
    HeadWanted,
    Refusal,
    ShareRefused,
    SignedMessage,
    SignerStatus,
    SigningRefused,
    SigningReply,
    SigningRequest,
)
from receipts.signer_ports import SignerPort, SigningPort
from receipts.signing_errors import HeadRefused, QuorumUnavailable, ShareUnusable, SignerUnavailable, SigningError

DEFAULT_THRESHOLD = 3
DEFAULT_MAX_BATCH = 128
_MAX_TRIES = 32
_MAX_NONCE_LOSSES = 2
_CALLS_AT_ONCE = 3
"""So many calls are on their way together: while the signers work on one, another waits at their door, and the shares
of a third become signatures here."""
_STATUS_WITHIN_S = 5.0

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class HeadSource(Protocol):
    """Where signed receipts can be looked up: the ledger."""

    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        """The account's receipt ``seq`` with the group's signature, or None while it has none.

        Called only for a signer that is behind. An exception fails the ``sign`` call that asked.
        """
        ...


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
            f"the meter of {enrolment.node} is not enrolled with {needed} signers: {_listed(failures)}"
        )


class SignerState(StrEnum):
    """Whether a signer can sign."""

    READY = "ready"
    AWAY = "away"
    """It does not answer, or cannot use its files."""
    EXCLUDED = "excluded"
    NO_SHARE = "no share"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """How one signer is. ``reason`` says why it is not ready; ``last_refusal`` what it would not sign last, if ever.

    ``host`` is where it was seen last; ``status`` is None when it does not answer.
    """

    identifier: int
    state: SignerState
    reason: str | None
    host: str | None
    last_refusal: str | None
    status: SignerStatus | None


@dataclass(slots=True)
class _Member:
    """The coordinator's view of one signer."""

    identifier: int
    port: SignerPort
    commitments: deque[NonceCommitment] = field(default_factory=deque)
    active: bool = False
    failed_lately: bool = False
    trouble: str | None = None
    refusal: str | None = None
    host: str | None = None

    def set_back(self, why: str) -> None:
        """It did not answer: its nonces may be gone, and it is asked last until it answers again."""
        self.commitments.clear()
        self.active = False
        self.failed_lately = True
        self.trouble = why


@dataclass(slots=True)
class _Work:
    """One message on its way to a signature, and what it rests on."""

    message: bytes
    evidence: Evidence
    signature: bytes | None = None
    refused: SigningRefused | None = None
    refusals: dict[int, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        return self.signature is not None or self.refused is not None


@dataclass(slots=True)
class _Call:
    """What one call of ``sign`` has learnt: who is out for its duration, heads to send next."""

    absent: dict[int, str] = field(default_factory=dict)
    nonce_losses: dict[int, int] = field(default_factory=dict)
    heads: dict[HeadWanted, SignedMessage] = field(default_factory=dict)


class SignerGroup:
    """Coordinates the signers; trusted with availability only.

    It sees no share and can sign nothing by itself. It keeps to one quorum while that answers, so that the
    spare signers fall behind in peace; they are brought up to date when they are needed.
    """

    def __init__(
        self,
        *,
        record: GroupRecord,
        ports: Mapping[int, SignerPort],
        heads: HeadSource,
        exclusions: Exclusions,
        max_batch: int = DEFAULT_MAX_BATCH,
    ) -> None:
        """Wrap a known group; ``start`` is the way in.

        Raises:
            SigningError: the ports are not those of the record's members, or ``max_batch`` is not in 1..1024.
        """
        if not 1 <= max_batch <= MAX_BATCH:
            raise SigningError(f"a batch has 1 to {MAX_BATCH} messages, not {max_batch}")
        members = [each.identifier for each in record.statement.members]
        if sorted(ports) != members:
            raise SigningError(f"the signing group has signers {members}, but {sorted(ports)} were started")
        self._record = record
        self._heads = heads
        self._max_batch = max_batch
        self._members = [_Member(identifier=each, port=ports[each]) for each in members]
        self._exclusions = exclusions
        # What calls that overlap have signed: it may not be in the ledger yet.
        self._lately_signed: dict[bytes, SignedMessage] = {}
        self._calls = 0
        self._places = asyncio.Semaphore(_CALLS_AT_ONCE)

    @classmethod
    async def start(
        cls,
        ports: Mapping[int, SignerPort],
        *,
        record_path: Path,
        heads: HeadSource,
        random_bytes: RandomBytes,
        threshold: int = DEFAULT_THRESHOLD,
        max_batch: int = DEFAULT_MAX_BATCH,
    ) -> Self:
        """The group of ``record_path``, or a new one when there is none yet.

        A lost record is restored from the signers, which hold it too. A known group starts with as many
        signers as there are, even none: receipts wait. A new one needs all.

        Raises:
            ShareUnusable: too many signers cannot use their shares; the text is one signer's reason.
            SignerUnavailable: a new group is to be made, and a signer is not there.
            FrostError: a signer broke the key generation; the culprits are named.
            SigningError: the record is damaged or another group's.
        """
        record = await load_or_generate(ports, record_path, threshold=threshold, random_bytes=random_bytes)
        exclusions = await asyncio.to_thread(Exclusions.beside, record_path)
        group = cls(record=record, ports=ports, heads=heads, exclusions=exclusions, max_batch=max_batch)
        await group._activate_all()
        return group

    @property
    def record(self) -> GroupRecord:
        """The group's public record."""
        return self._record

    @property
    def public_key(self) -> bytes:
        """The group's Ed25519 public key, 32 bytes."""
        return self._record.public_key

    @property
    def key_id(self) -> str:
        """The first 16 hex digits of the public key's SHA-256."""
        return self._record.key_id

    @property
    def excluded(self) -> Mapping[int, str]:
        """Signers caught breaking the protocol, with what they did; out until `readmit`, restarts included."""
        return self._exclusions.reasons

    async def readmit(self, identifier: int) -> None:
        """Take an excluded signer back, once a person has seen to it.

        Raises:
            SigningError: it is not excluded, or the note of it could not be changed.
        """
        await asyncio.to_thread(self._exclusions.lift, identifier)
        _log.info("signer %d is readmitted", identifier)

    async def members(self) -> list["MemberReport"]:
        """How each signer is, by asking all of them now; a signer that does not answer is away, for that reason."""
        asked = (asyncio.wait_for(each.port.status(), _STATUS_WITHIN_S) for each in self._members)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [self._report(each, answer) for each, answer in zip(self._members, answers, strict=True)]

    async def sign_head(self, head: AccountHead, first: SignedMessage, last: SignedMessage) -> bytes:
        """Sign an account head, given the group-signed receipts at its two ends.

        While the head is taken from the ledger and signed, nothing else of the account may be: the signers refuse a
        head that ends before a receipt that they have vouched for.

        Raises:
            HeadRefused: too few signers are willing; the text says why.
            QuorumUnavailable: too few signers answer.
        """
        message = signed_bytes(head)
        (outcome,) = await self.sign([(message, HeadEvidence(first=first, last=last))])
        if isinstance(outcome, SigningRefused):
            raise HeadRefused(f"the account head of {head.account} is not signed: {outcome.reason}")
        return outcome

    async def sign(self, messages: Sequence[tuple[bytes, Evidence]]) -> list[bytes | SigningRefused]:
        """Sign receipts' signed bytes, those of one account in the order of its chain.

        With each goes its meter's statement; without one (None) the signers refuse it. Several calls may be made at
        once, one after the other as far as an account's chain goes through them.

        Gives, in the order of ``messages``, the group's verified signature (64 bytes), or why there is none
        now; such a message may be offered again, and blocks the later ones of its account. Offering a signed
        message again gives another signature, which is as good.

        Raises:
            QuorumUnavailable: too few signers answer, and nothing was signed; offer the messages again later.
        """
        if not self._calls:
            self._lately_signed.clear()
        self._calls += 1
        try:
            async with self._places:
                return await self._sign([_Work(message, evidence) for message, evidence in messages])
        finally:
            self._calls -= 1

    async def _sign(self, work: Sequence[_Work]) -> list[bytes | SigningRefused]:
        call = _Call()
        try:
            for start in range(0, len(work), self._max_batch):
                await self._settle(work[start : start + self._max_batch], call)
        except QuorumUnavailable as error:
            # Signatures that were made before the quorum was lost are not thrown away.
            if all(each.signature is None for each in work):
                raise
            unanswered = SigningRefused(reason=str(error))
            return [each.signature or each.refused or unanswered for each in work]
        return [_outcome(each) for each in work]

    async def _settle(self, work: Sequence[_Work], call: _Call) -> None:
        """Try until each message is signed or refused; each try settles something or learns something."""
        for _ in range(_MAX_TRIES):
            unsettled = [each for each in work if not each.settled]
            if not unsettled:
                return
            usable = self._usable(call)
            quorums = [self._quorum_for(each, usable, call) for each in unsettled]
            quorum = next((each for each in quorums if each), None)
            if quorum is None:
                return
            names = {each.identifier for each in quorum}
            batch = [each for each in unsettled if not each.settled and not names & each.refusals.keys()]
            await self._try(batch, quorum, call)
        for each in work:
            if not each.settled:
                each.refused = SigningRefused(reason=f"no signature in {_MAX_TRIES} tries")

    def _quorum_for(self, work: _Work, usable: Sequence[_Member], call: _Call) -> Sequence[_Member]:
        """The best quorum of members who have not refused the message; without one it is refused."""
        willing = [each for each in usable if each.identifier not in work.refusals]
        threshold = self._record.statement.threshold
        if len(willing) < threshold:
            work.refused = SigningRefused(reason=_listed({**call.absent, **work.refusals}))
            return ()
        return willing[:threshold]

    def _usable(self, call: _Call) -> list[_Member]:
        """Members to choose from, best first.

        Raises:
            QuorumUnavailable: fewer than the threshold.
        """
        out = {**call.absent, **{each: f"excluded: {why}" for each, why in self.excluded.items()}}
        usable = [each for each in self._members if each.identifier not in out]
        threshold = self._record.statement.threshold
        if len(usable) < threshold:
            raise QuorumUnavailable(f"{len(usable)} of {threshold} needed signers answer ({_listed(out)})")
        return sorted(usable, key=lambda each: (each.failed_lately, each.identifier))

    async def _try(self, batch: Sequence[_Work], quorum: Sequence[_Member], call: _Call) -> None:
        """One pass over both rounds with one quorum."""
        ordered = sorted(quorum, key=lambda each: each.identifier)
        taken = await asyncio.gather(*(self._ask(each, self._take(each, len(batch)), call) for each in ordered))
        commitments = [each for each in taken if each is not None]
        if len(commitments) < len(ordered):
            return
        packages = tuple(
            SigningPackage(message=work.message, commitments=committed)
            for work, committed in zip(batch, zip(*commitments, strict=True), strict=True)
        )
        evidence = tuple(each.evidence for each in batch)
        heads = tuple(call.heads.values())
        asked = await asyncio.gather(
            *(
                self._ask(
                    each,
                    each.port.sign(
                        SigningRequest(packages=packages, evidence=evidence, heads=heads, fresh=self._wanted(each))
                    ),
                    call,
                )
                for each in ordered
            )
        )
        replies = {
            member.identifier: reply.outcomes
            for member, reply in zip(ordered, asked, strict=True)
            if reply is not None and self._is_well_formed(member, reply, len(batch))
        }
        if len(replies) < len(ordered):
            return
        await self._weigh_refusals(batch, packages, replies, call)
        await self._aggregate(batch, packages, replies)

    async def _ask(self, member: _Member, answer: Awaitable[_Answer], call: _Call) -> _Answer | None:
        """The signer's answer; None, and absent for the rest of this call, when it has none."""
        try:
            given = await answer
        except ReceiptsError as error:
            if not member.failed_lately or member.trouble != str(error):
                _log.warning("signer %d cannot sign: %s", member.identifier, error)
            member.set_back(str(error))
            call.absent[member.identifier] = str(error)
            return None
        member.failed_lately = False
        member.trouble = None
        return given

    async def _take(self, member: _Member, count: int) -> list[NonceCommitment]:
        """So many of the signer's commitments; taken is used, whatever becomes of them. Sees that its share is active.

        Nothing is awaited between the look and the taking: other calls take from the same ones.
        """
        if not member.active:
            await member.port.activate(self._record)
            member.active = True
        while len(member.commitments) < count:
            asked_for = max(count, self._at_hand)
            fresh = await member.port.commit(asked_for)
            if not _is_batch(fresh, member.identifier, asked_for):
                raise SigningError("it answered with a malformed batch of commitments")
            member.commitments.extend(fresh.commitments)
        return [member.commitments.popleft() for _ in range(count)]

    @property
    def _at_hand(self) -> int:
        """So many commitments of a signer as all calls at once may take."""
        return _CALLS_AT_ONCE * self._max_batch

    def _wanted(self, member: _Member) -> int:
        return max(0, self._at_hand - len(member.commitments))

    def _is_well_formed(self, member: _Member, reply: SigningReply, expected: int) -> bool:
        if (
            reply.identifier == member.identifier
            and len(reply.outcomes) == expected
            and all(isinstance(each, (bytes, ShareRefused)) for each in reply.outcomes)
            and (reply.fresh is None or _is_batch(reply.fresh, member.identifier, len(reply.fresh.commitments)))
        ):
            if reply.fresh is not None:
                member.commitments.extend(reply.fresh.commitments)
            return True
        self._exclude(member.identifier, "its reply is malformed")
        return False

    async def _weigh_refusals(
        self,
        batch: Sequence[_Work],
        packages: Sequence[SigningPackage],
        replies: Mapping[int, Sequence[bytes | ShareRefused]],
        call: _Call,
    ) -> None:
        """Turn each refusal into what removes its cause: a head, fresh nonces, an exclusion, another signer."""
        call.heads = await self._fetch_heads(replies.values(), call)
        for place, work in enumerate(batch):
            for identifier, outcomes in replies.items():
                refusal = outcomes[place]
                if isinstance(refusal, ShareRefused) and not self._is_curable(
                    refusal, identifier, batch, packages[place], call
                ):
                    work.refusals[identifier] = refusal.detail
                    self._member(identifier).refusal = refusal.detail
        for identifier, outcomes in replies.items():
            if any(isinstance(each, ShareRefused) and each.reason is Refusal.NONCE for each in outcomes):
                self._forget_nonces(identifier, call)

    def _is_curable(
        self, refusal: ShareRefused, identifier: int, batch: Sequence[_Work], package: SigningPackage, call: _Call
    ) -> bool:
        """Whether the same signer may well sign this message at the next try."""
        match refusal.reason:
            case Refusal.NONCE:
                return True
            case Refusal.BEHIND:
                return refusal.head_wanted in call.heads
            case Refusal.WAITING:
                return not _is_blocked(batch, refusal, identifier)
            case Refusal.PACKAGE:
                return self._exclude_culprits(package)
            case _:
                return False

    async def _fetch_heads(
        self, replies: Iterable[Sequence[bytes | ShareRefused]], call: _Call
    ) -> dict[HeadWanted, SignedMessage]:
        """The heads that signers lack, as far as they are signed; one sent in vain is not sent again."""
        wanted = {
            outcome.head_wanted
            for outcomes in replies
            for outcome in outcomes
            if isinstance(outcome, ShareRefused) and outcome.head_wanted is not None
        }
        heads: dict[HeadWanted, SignedMessage] = {}
        for each in wanted - call.heads.keys():
            # A receipt signed a moment ago may not be in the ledger yet.
            lately = None if each.sha256 is None else self._lately_signed.get(each.sha256)
            head = lately or await self._heads.signed_receipt(each.account, each.seq)
            if head is not None:
                heads[each] = head
        return heads

    def _forget_nonces(self, identifier: int, call: _Call) -> None:
        """A signer that restarted has no nonces; one that has none again and again is of no use now."""
        member = self._member(identifier)
        member.commitments.clear()
        call.nonce_losses[identifier] = call.nonce_losses.get(identifier, 0) + 1
        if call.nonce_losses[identifier] >= _MAX_NONCE_LOSSES:
            call.absent[identifier] = "it does not keep its nonces"

    def _exclude_culprits(self, package: SigningPackage) -> bool:
        """Whether a signer complained with reason: some other signer's commitment is invalid."""
        try:
            bind(package, self.public_key)
        except FrostError as error:
            for culprit in error.culprits:
                self._exclude(culprit, str(error))
            return bool(error.culprits)
        return False

    async def _aggregate(
        self,
        batch: Sequence[_Work],
        packages: Sequence[SigningPackage],
        replies: Mapping[int, Sequence[bytes | ShareRefused]],
    ) -> None:
        complete: list[tuple[_Work, SigningPackage, dict[int, bytes]]] = []
        for place, (work, package) in enumerate(zip(batch, packages, strict=True)):
            shares = {
                identifier: outcome
                for identifier, outcomes in replies.items()
                if isinstance(outcome := outcomes[place], bytes)
            }
            if len(shares) == len(replies):
                complete.append((work, package, shares))
        # Half a millisecond each, with the interpreter lock released: the event loop stays free.
        results = await asyncio.to_thread(
            aggregate_batch,
            [package for _, package, _ in complete],
            [shares for _, _, shares in complete],
            public_key=self._record.public_key,
            verifying_shares=self._record.verifying_shares,
        )
        for (work, _, _), result in zip(complete, results, strict=True):
            if isinstance(result, bytes):
                work.signature = result
                digest = hashlib.sha256(work.message).digest()
                self._lately_signed[digest] = SignedMessage(message=work.message, signature=result)
            else:
                for culprit in result.culprits:
                    self._exclude(culprit, str(result))

    def _exclude(self, identifier: int, why: str) -> None:
        if identifier in self.excluded:
            return
        _log.error("signer %d is excluded: %s; once it is seen to: jc signers readmit %d", identifier, why, identifier)
        self._member(identifier).set_back(why)
        try:
            self._exclusions.add(identifier, why)
        except OSError as error:
            _log.error("that signer %d is excluded could not be written down: %s", identifier, error)

    def _report(self, member: _Member, answer: SignerStatus | BaseException) -> "MemberReport":
        if isinstance(answer, TimeoutError):
            answer = SignerUnavailable(f"no answer within {_STATUS_WITHIN_S:g} s")
        if isinstance(answer, BaseException) and not isinstance(answer, ReceiptsError):
            raise answer
        status = None if isinstance(answer, ReceiptsError) else answer
        if status is not None and status.host is not None:
            member.host = status.host
        state: SignerState
        reason: str | None
        if member.identifier in self.excluded:
            state, reason = SignerState.EXCLUDED, self.excluded[member.identifier]
        elif status is None:
            state, reason = SignerState.AWAY, str(answer)
        elif status.record is None:
            state, reason = SignerState.NO_SHARE, member.trouble
        elif status.record.statement != self._record.statement:
            state, reason = SignerState.NO_SHARE, "it holds a share of another group"
        else:
            state, reason = SignerState.READY, None
        return MemberReport(
            identifier=member.identifier,
            state=state,
            reason=reason,
            host=member.host,
            last_refusal=member.refusal,
            status=status,
        )

    def _member(self, identifier: int) -> _Member:
        return next(each for each in self._members if each.identifier == identifier)

    async def _activate_all(self) -> None:
        """Bring every reachable signer to this group; complain now when shares cannot be used."""
        attempts = await asyncio.gather(
            *(each.port.activate(self._record) for each in self._members), return_exceptions=True
        )
        unusable: list[ShareUnusable] = []
        for member, failure in zip(self._members, attempts, strict=True):
            if failure is None:
                member.active = True
                continue
            if not isinstance(failure, ReceiptsError):
                raise failure
            _log.warning("signer %d cannot sign: %s", member.identifier, failure)
            member.set_back(str(failure))
            if isinstance(failure, ShareUnusable):
                unusable.append(ShareUnusable(f"signer {member.identifier}: {failure}"))
        if len(unusable) > len(self._members) - self._record.statement.threshold:
            raise unusable[0]


def _is_batch(batch: CommitmentBatch, identifier: int, count: int) -> bool:
    return (
        batch.identifier == identifier
        and len(batch.commitments) == count
        and all(each.identifier == identifier for each in batch.commitments)
    )


def _is_blocked(batch: Sequence[_Work], refusal: ShareRefused, identifier: int) -> bool:
    """Whether what the signer waits for is a message that it refuses for good."""
    place = refusal.waits_for
    return place is None or not 0 <= place < len(batch) or identifier in batch[place].refusals


def _listed(reasons: Mapping[int, str]) -> str:
    return "; ".join(f"signer {identifier}: {reasons[identifier]}" for identifier in sorted(reasons))


def _outcome(work: _Work) -> bytes | SigningRefused:
    if work.signature is not None:
        return work.signature
    assert work.refused is not None
    return work.refused
