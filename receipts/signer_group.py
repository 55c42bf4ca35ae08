"""The signing group as the mesh sees it: five signers, any three of which sign."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

from receipts.document import AccountHead, signed_bytes
from receipts.frost.batch import aggregate_batch
from receipts.frost.ciphersuite import RandomBytes
from receipts.frost.errors import FrostError
from receipts.frost.signing_package import SigningPackage, bind
from receipts.group_member import GroupMember, said
from receipts.group_record import GroupRecord
from receipts.key_generation import load_or_generate
from receipts.signer import MAX_BATCH
from receipts.signer_exclusions import Exclusions
from receipts.signer_messages import (
    Evidence,
    HeadEvidence,
    HeadWanted,
    Refusal,
    ShareRefused,
    SignedMessage,
    SigningRefused,
    SigningRequest,
)
from receipts.signer_ports import SignerPort
from receipts.signers_report import MemberReport
from receipts.signing_errors import (
    HeadRefused,
    MalformedAnswer,
    QuorumUnavailable,
    ShareUnusable,
    SigningError,
)

DEFAULT_THRESHOLD = 3
DEFAULT_MAX_BATCH = 128
_MAX_TRIES = 32
_MAX_NONCE_LOSSES = 2
_CALLS_AT_ONCE = 3
"""So many calls are on their way together: while the signers work on one, another waits at their door, and the shares
of a third become signatures here."""
_START_WITHIN_S = 15.0

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class HeadSource(Protocol):
    """Where signed receipts can be looked up: the ledger."""

    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        """The account's receipt ``seq`` with the group's signature, or None while it has none.

        Called only for a signer that is behind. An exception fails the ``sign`` call that asked.
        """
        ...


@dataclass(slots=True)
class _Work:
    """One message on its way to a signature, and what it rests on."""

    message: bytes
    evidence: Evidence
    sha256: bytes = field(init=False)
    signature: bytes | None = None
    refused: SigningRefused | None = None
    refusals: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sha256 = hashlib.sha256(self.message).digest()

    @property
    def settled(self) -> bool:
        return self.signature is not None or self.refused is not None


@dataclass(slots=True, eq=False)
class _Call:
    """One call of ``sign``: the calls that were under way when it began, and what it has learnt.

    That is who is out for its duration, and heads to send next.
    """

    work: Sequence[_Work]
    earlier: Sequence["_Call"]
    done: asyncio.Event = field(default_factory=asyncio.Event)
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
        # As many commitments of a signer as all calls at once may take.
        most = _CALLS_AT_ONCE * max_batch
        self._members = [GroupMember(each, ports[each], record, most_commitments=most) for each in members]
        self._exclusions = exclusions
        self._activating: Iterable[asyncio.Task[ShareUnusable | None]] = ()
        # What calls that overlap have signed: it may not be in the ledger yet.
        self._lately_signed: dict[bytes, SignedMessage] = {}
        self._under_way: list[_Call] = []
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

        A lost record is restored from the signers, which hold it too. A known group starts once enough signers to
        sign have answered, or after 15 s with as many as there are, even none: receipts wait, and the others are taken
        in as they answer. A new one needs all.

        Raises:
            ShareUnusable: too many signers cannot use their shares; the text is one signer's reason.
            SignerUnavailable: a new group is to be made, and a signer is not there.
            FrostError: a signer broke the key generation; the culprits are named.
            SigningError: the record is damaged or another group's.
        """
        record = await load_or_generate(ports, record_path, threshold=threshold, random_bytes=random_bytes)
        exclusions = await asyncio.to_thread(Exclusions.beside, record_path, sorted(ports))
        group = cls(record=record, ports=ports, heads=heads, exclusions=exclusions, max_batch=max_batch)
        await group._activate_enough()
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
        await self._exclusions.lift(identifier)
        self._member(identifier).readmit()
        _log.info("signer %d is readmitted", identifier)

    async def members(self, wall_clock_ns: Callable[[], int]) -> list[MemberReport]:
        """How each signer is, by asking all of them now; a signer that does not answer is away, for that reason."""
        reports = (each.report(self.excluded.get(each.identifier), wall_clock_ns) for each in self._members)
        return await asyncio.gather(*reports)

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
        if not self._under_way:
            self._lately_signed.clear()
        work = [_Work(message, evidence) for message, evidence in messages]
        call = _Call(work=work, earlier=tuple(self._under_way))
        self._under_way.append(call)
        try:
            async with self._places:
                return await self._sign(call)
        finally:
            self._under_way.remove(call)
            call.earlier = ()
            call.done.set()

    async def _sign(self, call: _Call) -> list[bytes | SigningRefused]:
        work = call.work
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
            try:
                await self._try(batch, quorum, call)
            finally:
                await self._note_exclusions()
        for each in work:
            if not each.settled:
                each.refused = SigningRefused(reason=f"no signature in {_MAX_TRIES} tries")

    def _quorum_for(self, work: _Work, usable: Sequence[GroupMember], call: _Call) -> Sequence[GroupMember]:
        """The best quorum of members who have not refused the message; without one it is refused."""
        willing = [each for each in usable if each.identifier not in work.refusals]
        threshold = self._record.statement.threshold
        if len(willing) < threshold:
            work.refused = SigningRefused(reason=listed({**call.absent, **work.refusals}))
            return ()
        return willing[:threshold]

    def _usable(self, call: _Call) -> list[GroupMember]:
        """Members to choose from, best first.

        Raises:
            QuorumUnavailable: fewer than the threshold.
        """
        out = {**call.absent, **{each: f"excluded: {why}" for each, why in self.excluded.items()}}
        usable = [each for each in self._members if each.identifier not in out]
        threshold = self._record.statement.threshold
        if len(usable) < threshold:
            raise QuorumUnavailable(f"{len(usable)} of {threshold} needed signers answer ({listed(out)})")
        return sorted(usable, key=lambda each: (each.failed_lately, each.identifier))

    async def _try(self, batch: Sequence[_Work], quorum: Sequence[GroupMember], call: _Call) -> None:
        """One pass over both rounds with one quorum."""
        ordered = sorted(quorum, key=lambda each: each.identifier)
        taken = await asyncio.gather(*(self._ask(each, each.take(len(batch)), call) for each in ordered))
        commitments = [each for each in taken if each is not None]
        if len(commitments) < len(ordered):
            return
        packages = tuple(
            SigningPackage(message=work.message, commitments=committed)
            for work, committed in zip(batch, zip(*commitments, strict=True), strict=True)
        )
        request = SigningRequest(
            packages=packages,
            evidence=tuple(each.evidence for each in batch),
            heads=tuple(call.heads.values()),
        )
        answers = await asyncio.gather(*(self._ask(each, each.outcomes(request), call) for each in ordered))
        replies = {
            member.identifier: outcomes
            for member, outcomes in zip(ordered, answers, strict=True)
            if outcomes is not None
        }
        if len(replies) < len(ordered):
            return
        await self._weigh_refusals(batch, packages, replies, call)
        await self._aggregate(batch, packages, replies)

    async def _ask(self, member: GroupMember, answer: Awaitable[_Answer], call: _Call) -> _Answer | None:
        """The signer's answer; None, and absent for the rest of this call, when it has none that is of use."""
        try:
            return await answer
        except MalformedAnswer as error:
            self._exclude(member.identifier, str(error))
        except Exception as error:  # noqa: BLE001 - logged; whatever one signer's trouble is, the others sign
            call.absent[member.identifier] = said(error)
            member.set_back(error)
        return None

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
                    if refusal.reason not in (Refusal.BEHIND, Refusal.WAITING):
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
            head = await self._head(each, call)
            if head is not None:
                heads[each] = head
        return heads

    async def _head(self, wanted: HeadWanted, call: _Call) -> SignedMessage | None:
        """A receipt signed a moment ago may not be in the ledger yet; one in an earlier call gets its signature soon.

        No call waits for a later one: none waits for ever.
        """
        if wanted.sha256 is not None:
            for earlier in call.earlier:
                if any(each.sha256 == wanted.sha256 and not each.settled for each in earlier.work):
                    await earlier.done.wait()
            lately = self._lately_signed.get(wanted.sha256)
            if lately is not None:
                return lately
        return await self._heads.signed_receipt(wanted.account, wanted.seq)

    def _forget_nonces(self, identifier: int, call: _Call) -> None:
        """A signer that restarted has no nonces; one that has none again and again is of no use now."""
        member = self._member(identifier)
        member.has_lost_its_nonces()
        call.nonce_losses[identifier] = call.nonce_losses.get(identifier, 0) + 1
        if call.nonce_losses[identifier] >= _MAX_NONCE_LOSSES:
            call.absent[identifier] = "it does not keep its nonces"
            member.set_back(SigningError(call.absent[identifier]))

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
        for (work, _, shares), result in zip(complete, results, strict=True):
            if isinstance(result, bytes):
                self._signed(work, result, shares)
            else:
                for culprit in result.culprits:
                    self._exclude(culprit, str(result))

    def _signed(self, work: _Work, signature: bytes, signers: Iterable[int]) -> None:
        work.signature = signature
        self._lately_signed[work.sha256] = SignedMessage(message=work.message, signature=signature)
        for each in signers:
            self._member(each).has_signed()
        for identifier, why in work.refusals.items():
            self._member(identifier).refuses_what_others_sign(why)

    def _exclude(self, identifier: int, why: str) -> None:
        if identifier in self.excluded:
            return
        _log.error("signer %d is excluded: %s; once it is seen to: jc signers readmit %d", identifier, why, identifier)
        self._member(identifier).lay_aside(why)
        self._exclusions.add(identifier, why)

    async def _note_exclusions(self) -> None:
        try:
            await self._exclusions.note()
        except OSError as error:
            _log.error("who is excluded could not be written down: %s", error)

    def _member(self, identifier: int) -> GroupMember:
        return next(each for each in self._members if each.identifier == identifier)

    async def _activate_enough(self) -> None:
        """Bring the signers to this group, until enough can sign or 15 s are over; the others as they answer.

        Complains when too many cannot use their shares.
        """
        attempts = {asyncio.create_task(self._activate(each)): each for each in self._members}
        waiting = set(attempts)
        unusable: list[ShareUnusable] = []
        give_up_s = asyncio.get_running_loop().time() + _START_WITHIN_S
        while waiting and sum(each.active for each in self._members) < self._record.statement.threshold:
            left_s = give_up_s - asyncio.get_running_loop().time()
            done, waiting = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            unusable += [error for each in done if (error := each.result()) is not None]
            if len(unusable) > len(self._members) - self._record.statement.threshold:
                for each in waiting:
                    each.cancel()
                raise unusable[0]
        for each in waiting:
            attempts[each].lay_aside("it has not answered since this group was started", is_silent=True)
        self._activating = waiting

    async def _activate(self, member: GroupMember) -> ShareUnusable | None:
        """Why the signer can't use its share, if that is so."""
        try:
            await member.activate()
            member.failed_lately = False
        except Exception as error:  # noqa: BLE001 - logged; whatever one signer's trouble is, the others sign
            if not member.active:  # else it answered another call since
                member.set_back(error)
            if isinstance(error, ShareUnusable):
                return ShareUnusable(f"signer {member.identifier}: {error}")
        return None


def _is_blocked(batch: Sequence[_Work], refusal: ShareRefused, identifier: int) -> bool:
    """Whether what the signer waits for is a message that it refuses for good."""
    place = refusal.waits_for
    return place is None or not 0 <= place < len(batch) or identifier in batch[place].refusals


def listed(reasons: Mapping[int, str]) -> str:
    """What is wrong with each signer, in one line."""
    return "; ".join(f"signer {identifier}: {reasons[identifier]}" for identifier in sorted(reasons))


def _outcome(work: _Work) -> bytes | SigningRefused:
    if work.signature is not None:
        return work.signature
    assert work.refused is not None
    return work.refused
