"""One of the five signers: it holds a share of the group's key and decides by itself what to sign.

No Ray, no asyncio, no threads: one caller at a time. Secrets never leave it; what it returns is public,
sealed for another signer, or a signature share.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from metering.statements import SignedStatement
from receipts.document import AccountHead
from receipts.ed25519 import verify_signature
from receipts.errors import ReceiptsError
from receipts.folder_lock import FolderLock
from receipts.frost import round_one
from receipts.frost.batch import sign_batch
from receipts.frost.ciphersuite import RandomBytes, Scalar, decode_element, decode_scalar, scale_base
from receipts.frost.errors import FrostError
from receipts.frost.keygen import KeyShare
from receipts.frost.round_one import NonceCommitment, SigningNonces
from receipts.frost.secrecy import Redacted
from receipts.frost.signing_package import SigningPackage
from receipts.group_record import GroupRecord, GroupStatement
from receipts.marks_epoch import open_marks
from receipts.meter_enrolment import EnrolledMeters, MeterEnrolment
from receipts.signer_ceremony import Ceremony, SigningIdentity
from receipts.signer_messages import (
    CeremonyPlan,
    CommitmentBatch,
    HeadEvidence,
    Refusal,
    RoundOnePackage,
    SealedShare,
    ShareRefused,
    SignedGroupStatement,
    SignedMessage,
    SignerIdentity,
    SignerStatus,
    SigningReply,
    SigningRequest,
)
from receipts.signer_store import ChainClaim, HeadClaim, MarkStore
from receipts.signer_vault import Vault
from receipts.signing_errors import PolicyViolation, ShareUnusable, SigningError

MAX_COMMITMENTS = 4096
MAX_BATCH = 1024
_MAX_SEQ = 2**63 - 1
_IDENTITY_FILE = "identity"
_SHARE_FILE = "share"
_MARKS_FILE = "marks.sqlite3"
_NO_NONCES = ShareRefused(reason=Refusal.NONCE, detail="no nonces for this commitment, or used before")


class ReceiptPolicy(Protocol):
    """What a receipt must satisfy before a signer looks at its place in the chain.

    Each method raises ``PolicyViolation`` for the first rule that it breaks. Any other exception is a defect of
    the policy, and the batch is not signed.
    """

    def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
        """Check a receipt's signed bytes by themselves: canonical form, schema, arithmetic, key id, clock skew.

        ``key_id`` names the group's key. Returns the place in the account's chain that the receipt claims.
        """
        ...

    def examine_stated(
        self,
        message: bytes,
        evidence: SignedStatement | None,
        *,
        key_id: str,
        meters: Mapping[bytes, MeterEnrolment],
    ) -> ChainClaim:
        """The same, and that the meter's statement bears the receipt out; ``meters`` are the enrolled ones by key."""
        ...

    def examine_head(self, message: bytes, *, key_id: str) -> AccountHead:
        """Check an account head's signed bytes by themselves: canonical form, schema, key id, that its time is now."""
        ...


class Signer(Redacted):
    """A signer with its own folder: sealed identity, sealed key share, enrolled meters, marks.

    States: without a share, only a ceremony is possible; with a pending share (``conclude`` was done), only
    ``activate``; with an active one, commit and sign, and never a ceremony again: a key in use cannot be
    overwritten through this class.

    A restart forgets a ceremony under way and all nonces, and keeps the rest.
    """

    def __init__(
        self,
        *,
        identifier: int,
        folder: Path,
        share_secret: bytes,
        policy: ReceiptPolicy,
        random_bytes: RandomBytes,
        enrolled: Mapping[int, bytes] | None = None,
    ) -> None:
        """Open the folder; make an identity in an empty one.

        ``share_secret`` is 32 random bytes that are kept elsewhere than the folder. ``enrolled`` gives the
        identity keys that this signer's operator has agreed on with the others, by identifier; with None,
        a ceremony takes the roster on the coordinator's word, once, and keeps to it for good.

        Raises:
            ShareUnusable: the secret is missing or wrong, or a file is damaged, exposed, or another's.
            SigningError: another process has the folder open, or the marks cannot be opened now; trying again may help.
            OSError: another file cannot be read or written now; the same.
        """
        self._identifier = identifier
        self._folder = folder
        self._policy = policy
        self._random_bytes = random_bytes
        self._enrolled = enrolled
        self._vault = Vault(folder=folder, identifier=identifier, share_secret=share_secret, random_bytes=random_bytes)
        self._ceremony: Ceremony | None = None
        self._nonces: dict[NonceCommitment, SigningNonces] = {}
        self._pending: tuple[KeyShare, GroupStatement] | None = None
        self._active: tuple[KeyShare, GroupRecord] | None = None
        self._marks: MarkStore | None = None
        self._lock = FolderLock(folder)
        try:
            self._identity = self._load_identity()
            self._meters = EnrolledMeters(self._vault)
            self._load_share()
        except BaseException:
            self.close()
            raise

    def status(self) -> SignerStatus:
        """Who this signer is, and the group whose share it holds ready."""
        accounts, vouched = (0, 0) if self._marks is None else self._marks.counts()
        return SignerStatus(
            identity=SignerIdentity(identifier=self._identifier, identity_key=self._identity.public_key),
            record=None if self._active is None else self._active[1],
            unused_nonces=len(self._nonces),
            accounts=accounts,
            vouched=vouched,
        )

    def begin(self, plan: CeremonyPlan) -> RoundOnePackage:
        """Start a key generation; one that was under way is forgotten.

        Raises:
            SigningError: this signer holds an active share, or the plan's roster is not the enrolled one.
        """
        if self._active is not None:
            raise SigningError(f"signer {self._identifier} holds a key share and takes part in no ceremony")
        roster = {each.identifier: each.identity_key for each in plan.roster}
        if self._enrolled is not None and roster != self._enrolled:
            raise SigningError("the ceremony's roster is not the enrolled one")
        self._ceremony = Ceremony(
            plan=plan,
            identifier=self._identifier,
            identity=self._identity,
            random_bytes=self._random_bytes,
        )
        return self._ceremony.publish()

    def exchange(self, packages: tuple[RoundOnePackage, ...]) -> tuple[SealedShare, ...]:
        """Check what all signers published, and seal a share for each of the others.

        Raises:
            FrostError: naming a signer whose package is wrong.
            SigningError: not the next step of the ceremony.
        """
        return self._running_ceremony().seal(packages)

    def conclude(self, sealed: tuple[SealedShare, ...]) -> SignedGroupStatement:
        """Open the shares sealed for this signer, keep the key share as pending, sign the outcome.

        The share is on the disk before the signature is out: once all have signed, no crash loses the key.
        It takes the place of a pending share of an earlier ceremony, which nobody had recorded.

        Raises:
            FrostError: naming a signer whose share is wrong.
            SigningError: not the next step of the ceremony.
        """
        ceremony = self._running_ceremony()
        self._ceremony = None
        share, signed = ceremony.conclude(sealed)
        self._write_share(share, signed.statement, signatures=None)
        self._pending = (share, signed.statement)
        return signed

    def activate(self, record: GroupRecord) -> None:
        """Use the share from now on: all members have signed the statement that this signer computed.

        Doing it again with the same record is fine.

        Raises:
            ShareUnusable: this signer holds no share, or the share of another group.
            SigningError: a member's signature is missing or wrong.
        """
        if self._active is not None:
            if self._active[1].statement != record.statement:
                raise ShareUnusable(f"signer {self._identifier} holds a share of another group")
            return
        if self._pending is None:
            raise ShareUnusable(
                f"signer {self._identifier} holds no key share: {self._folder} has lost its share.sealed; restore it "
                f"from a copy"
            )
        share, statement = self._pending
        if statement != record.statement:
            raise ShareUnusable(f"signer {self._identifier} holds a share of another key generation")
        record.verify()
        # The marks first: a share that is said to be active without marks has lost them.
        marks = self._open_marks(record, is_first_use=True, has_epochs=False)
        try:
            self._write_share(share, statement, signatures=record.signatures)
        except BaseException:
            marks.close()
            raise
        self._use(share, record, marks)

    def enrol_meter(self, enrolment: MeterEnrolment) -> None:
        """Believe this meter's statements from now on; doing it again is fine.

        Whoever may call a signer may enrol a meter: it is told by those who run the mesh, like the roster.

        Raises:
            SigningError: the enrolment is malformed, or could not be written.
        """
        self._meters.enrol(enrolment)

    def commit(self, count: int) -> CommitmentBatch:
        """Make nonces for ``count`` signatures, in memory only, and publish the commitments.

        Past 4096 unused ones the oldest are dropped: a coordinator that forgot them must not fill the memory.

        Raises:
            SigningError: no active share, or ``count`` is not in 1..4096.
        """
        share, _ = self._ready()
        if not 1 <= count <= MAX_COMMITMENTS:
            raise SigningError(f"{count} commitments asked for; 1 to {MAX_COMMITMENTS} are possible")
        batch = [round_one.commit(self._identifier, share.secret, self._random_bytes) for _ in range(count)]
        self._nonces.update((each.commitment, each) for each in batch)
        for commitment in list(self._nonces)[:-MAX_COMMITMENTS]:
            del self._nonces[commitment]
        return CommitmentBatch(identifier=self._identifier, commitments=tuple(each.commitment for each in batch))

    def sign(self, request: SigningRequest) -> SigningReply:
        """Give a signature share for each message that passes; say why for each that does not.

        In this order: every package's nonces are consumed; every message is examined by the policy, with what it
        rests on; the accounts' chains are judged and the marks written to disk, in one transaction, each
        with the statement that it rests on; then shares are made; then the fresh commitments that were asked for.

        A signer that was down is behind on some accounts. It does not take the coordinator's word for what
        it missed: it answers ``BEHIND`` and moves its mark only to a receipt that carries the group's
        signature, sent along in ``request.heads`` when the message is asked for again. It need not see what
        lies between: the quorum that signed that receipt has checked it.

        An account head is signed if the receipts at its ends are proved by the group's signature, its time is now,
        and this signer has vouched for no later receipt of the account. Every signature takes three of the five, so
        the three that sign a head share at least one signer with the three that signed any later receipt: as long
        as every signer that signs heads is honest and has its marks, no head leaves out a receipt that was signed.

        Raises:
            SigningError: no active share, more than 1024 messages, not one piece of evidence (or None) for each,
                or the marks could not be written; no share was released then.
        """
        share, record = self._ready()
        marks = self._marks
        if marks is None or max(len(request.packages), len(request.heads)) > MAX_BATCH:
            raise SigningError(f"a signer takes at most {MAX_BATCH} messages at a time")
        if len(request.evidence) != len(request.packages):
            raise SigningError("a signer takes one piece of evidence, or None, for each message")
        nonces = [self._consume_nonces(package) for package in request.packages]
        proved = [claim for head in request.heads if (claim := self._proved(head, record)) is not None]
        examined: list[ChainClaim | HeadClaim | ShareRefused] = []
        for package, evidence in zip(request.packages, request.evidence, strict=True):
            if isinstance(evidence, HeadEvidence):
                examined.append(self._examine_head(package.message, evidence, record, proved))
            else:
                examined.append(self._examine(package.message, evidence, record.key_id))
        claims = [None if isinstance(each, ShareRefused) else each for each in examined]
        judged = marks.admit(claims, heads=proved)
        refusals = [
            found if isinstance(found, ShareRefused) else refused or (_NO_NONCES if taken is None else None)
            for found, refused, taken in zip(examined, judged, nonces, strict=True)
        ]
        shares = iter(_shares(request.packages, nonces, refusals, share))
        outcomes = tuple(next(shares) if refused is None else refused for refused in refusals)
        fresh = self.commit(request.fresh) if request.fresh else None
        return SigningReply(identifier=self._identifier, outcomes=outcomes, fresh=fresh)

    def close(self) -> None:
        """Close the files, drop the nonces, and let another process have the folder."""
        self._nonces.clear()
        if self._marks is not None:
            self._marks.close()
            self._marks = None
        self._active = None
        self._lock.release()

    def _running_ceremony(self) -> Ceremony:
        if self._ceremony is None:
            raise SigningError(f"no ceremony is under way at signer {self._identifier}")
        return self._ceremony

    def _ready(self) -> tuple[KeyShare, GroupRecord]:
        if self._active is None:
            raise SigningError(f"signer {self._identifier} has no active key share")
        return self._active

    def _consume_nonces(self, package: SigningPackage) -> SigningNonces | None:
        own = package.commitment_of(self._identifier)
        return None if own is None else self._nonces.pop(own, None)

    def _examine(self, message: bytes, evidence: SignedStatement | None, key_id: str) -> ChainClaim | ShareRefused:
        try:
            claim = self._policy.examine_stated(message, evidence, key_id=key_id, meters=self._meters.by_key)
        except PolicyViolation as error:
            return ShareRefused(reason=Refusal.POLICY, detail=str(error))
        if not _is_possible(claim, message):
            return ShareRefused(reason=Refusal.POLICY, detail="the place it claims is impossible")
        return claim

    def _examine_head(
        self, message: bytes, evidence: HeadEvidence, record: GroupRecord, proved: list[ChainClaim]
    ) -> HeadClaim | ShareRefused:
        """Compare a head with the proved receipts at its ends; its last one goes to ``proved``."""
        try:
            head = self._policy.examine_head(message, key_id=record.key_id)
        except PolicyViolation as error:
            return ShareRefused(reason=Refusal.POLICY, detail=str(error))
        first = self._proved_as(evidence.first, record, head.account, head.first_seq, head.first_sha256)
        last = self._proved_as(evidence.last, record, head.account, head.last_seq, head.last_sha256)
        for end in (first, last):
            if isinstance(end, str):
                return ShareRefused(reason=Refusal.POLICY, detail=end)
        assert isinstance(last, ChainClaim), "anything else was refused"
        proved.append(last)
        return HeadClaim(account=head.account, last_seq=head.last_seq, last_sha256=last.sha256)

    def _proved_as(
        self, receipt: SignedMessage, record: GroupRecord, account: str, seq: int, sha256: str
    ) -> ChainClaim | str:
        """The proved receipt that a head names, or why what is given is not that."""
        claim = self._proved(receipt, record)
        if claim is None:
            return f"the group has not signed what is given as receipt {seq}"
        if (claim.account, claim.seq, claim.sha256.hex()) != (account, seq, sha256):
            return f"receipt {claim.seq} of account {claim.account} is not the receipt {seq} that the head names"
        return claim

    def _proved(self, head: SignedMessage, record: GroupRecord) -> ChainClaim | None:
        """The place of a receipt that a quorum has vouched for: its statement was theirs to examine."""
        if not verify_signature(record.public_key, head.message, head.signature):
            return None
        try:
            claim = self._policy.examine(head.message, key_id=record.key_id)
        except PolicyViolation:
            return None
        return claim if _is_possible(claim, head.message) else None

    def _load_identity(self) -> SigningIdentity:
        seed = self._vault.read(_IDENTITY_FILE)
        if seed is None:
            if (self._folder / _MARKS_FILE).exists() or self._vault.read(_SHARE_FILE) is not None:
                raise ShareUnusable(
                    f"signer {self._identifier}: {self._folder} has lost its identity.sealed; restore it from a copy"
                )
            seed = self._random_bytes(SigningIdentity.SEED_BYTES)
            self._vault.write(_IDENTITY_FILE, seed)
        return SigningIdentity(seed)

    def _open_marks(self, record: GroupRecord, *, is_first_use: bool, has_epochs: bool) -> MarkStore:
        return open_marks(
            self._folder / _MARKS_FILE,
            vault=self._vault,
            identifier=self._identifier,
            public_key=record.public_key,
            random_bytes=self._random_bytes,
            is_first_use=is_first_use,
            has_epochs=has_epochs,
        )

    def _use(self, share: KeyShare, record: GroupRecord, marks: MarkStore) -> None:
        self._marks = marks
        self._active = (share, record)
        self._pending = None

    def _write_share(
        self, share: KeyShare, statement: GroupStatement, *, signatures: Mapping[int, bytes] | None
    ) -> None:
        """Signatures are there once the share is active, and then its marks have an epoch."""
        texts = None if signatures is None else {each: signatures[each].hex() for each in signatures}
        content = {
            "secret": share.secret.hex(),
            "statement": statement.to_document(),
            "signatures": texts,
            "marks_have_epochs": signatures is not None,
        }
        self._vault.write(_SHARE_FILE, json.dumps(content).encode())

    def _load_share(self) -> None:
        content = self._vault.read(_SHARE_FILE)
        if content is None:
            return
        try:
            document = json.loads(content)
            statement = GroupStatement.from_document(document["statement"])
            secret = decode_scalar(bytes.fromhex(document["secret"]))
            texts = document["signatures"]
            has_epochs = bool(document.get("marks_have_epochs"))
            signatures = None if texts is None else {int(each): bytes.fromhex(texts[each]) for each in texts}
        except (ValueError, KeyError, TypeError, AttributeError, ReceiptsError) as error:
            raise ShareUnusable(f"the share file in {self._folder} does not hold a key share") from error
        share = self._fitting_share(secret, statement)
        if signatures is None:
            self._pending = (share, statement)
            return
        record = GroupRecord(statement=statement, signatures=signatures)
        record.verify()
        self._use(share, record, self._open_marks(record, is_first_use=False, has_epochs=has_epochs))
        if not has_epochs:
            self._write_share(share, statement, signatures=signatures)

    def _fitting_share(self, secret: Scalar, statement: GroupStatement) -> KeyShare:
        member = next((each for each in statement.members if each.identifier == self._identifier), None)
        if member is None or member.identity_key != self._identity.public_key:
            raise ShareUnusable(f"the share file in {self._folder} is of a group without this signer")
        if scale_base(secret) != member.verifying_share:
            raise ShareUnusable(f"the share file in {self._folder} is of another group")
        return KeyShare(
            identifier=self._identifier,
            threshold=statement.threshold,
            secret=secret,
            public_key=decode_element(statement.public_key),
        )


def _is_possible(claim: ChainClaim, message: bytes) -> bool:
    return 0 <= claim.seq <= _MAX_SEQ and claim.sha256 == hashlib.sha256(message).digest()


def _shares(
    packages: Sequence[SigningPackage],
    nonces: Sequence[SigningNonces | None],
    refusals: Sequence[ShareRefused | None],
    share: KeyShare,
) -> list[bytes | ShareRefused]:
    """The shares for what was not refused, in order."""
    ready = [
        (package, taken)
        for package, taken, refused in zip(packages, nonces, refusals, strict=True)
        if refused is None and taken is not None
    ]
    made = sign_batch([package for package, _ in ready], [taken for _, taken in ready], share)
    return [
        ShareRefused(reason=Refusal.PACKAGE, detail=str(each)) if isinstance(each, FrostError) else each
        for each in made
    ]
