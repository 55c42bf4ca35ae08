"""What travels between a signer and its coordinator. All of it is public, sealed, or a signature share."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from metering.statements import SignedStatement
from receipts.frost.round_one import NonceCommitment
from receipts.frost.signing_package import SigningPackage
from receipts.group_record import GroupRecord, GroupStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerIdentity:
    """Who a signer is to the others: its number and its enrolled Ed25519 public key, 32 bytes."""

    identifier: int
    identity_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerStatus:
    """Who a signer is and which group's key share it holds ready; ``record`` is None when it holds none.

    ``unused_nonces`` are in its memory; ``accounts`` it has marks of; ``vouched`` receipts it has agreed to sign, in
    all its lives. Its host and its clock are None where it does not run by itself.
    """

    identity: SignerIdentity
    record: GroupRecord | None
    unused_nonces: int = 0
    accounts: int = 0
    vouched: int = 0
    host: str | None = None
    clock_unix_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonyPlan:
    """One key generation: who takes part (ascending) and how many must sign later.

    ``ceremony_id`` is 32 random bytes; every package is bound to it, so none serves in another ceremony.
    """

    ceremony_id: bytes
    threshold: int
    roster: tuple[SignerIdentity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOnePackage:
    """What one signer publishes in a key generation, under its identity's signature."""

    identifier: int
    box_key: bytes
    commitments: tuple[bytes, ...]
    proof: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedShare:
    """One signer's share for another, readable by that one only."""

    sender: int
    recipient: int
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedGroupStatement:
    """The group as one signer computed it, with that signer's signature."""

    identifier: int
    statement: GroupStatement
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentBatch:
    """Commitments to nonces that the signer keeps in memory, in the order in which to use them."""

    identifier: int
    commitments: tuple[NonceCommitment, ...]

    def __reduce__(self) -> tuple[object, ...]:
        return _batch, (self.identifier, _plain(self.commitments))


def _batch(identifier: int, plain: "_PlainCommitments") -> CommitmentBatch:
    return CommitmentBatch(identifier=identifier, commitments=_commitments(plain))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedMessage:
    """A receipt's signed bytes with the group's signature: it proves that a quorum has vouched for them."""

    message: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEvidence:
    """What an account head rests on: the receipts at its two ends, with the group's signatures."""

    first: SignedMessage
    last: SignedMessage


Evidence = SignedStatement | HeadEvidence | None
"""What a message rests on: a receipt on its meter's statement, an account head on receipts; None when it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRequest:
    """Packages to sign, those of one account in the order of its chain, and heads that the signer missed.

    ``evidence`` is for each package what its message rests on. ``fresh`` is for how many more signatures the signer
    is to commit to nonces, for later requests.
    """

    packages: tuple[SigningPackage, ...]
    evidence: tuple[Evidence, ...]
    heads: tuple[SignedMessage, ...] = ()
    fresh: int = 0

    def __reduce__(self) -> tuple[object, ...]:
        # Plain tuples travel four times as fast as objects of a class each, and every receipt goes to three signers.
        packages = tuple((each.message, _plain(each.commitments)) for each in self.packages)
        evidence = tuple(
            (each.statement, each.signature) if isinstance(each, SignedStatement) else each for each in self.evidence
        )
        return _request, (packages, evidence, self.heads, self.fresh)


_PlainCommitments = tuple[tuple[int, bytes, bytes], ...]


def _plain(commitments: Iterable[NonceCommitment]) -> _PlainCommitments:
    return tuple((each.identifier, each.hiding, each.binding) for each in commitments)


def _commitments(plain: _PlainCommitments) -> tuple[NonceCommitment, ...]:
    return tuple(NonceCommitment(identifier=each[0], hiding=each[1], binding=each[2]) for each in plain)


def _request(
    packages: tuple[tuple[bytes, _PlainCommitments], ...],
    evidence: tuple[tuple[str, str] | HeadEvidence | None, ...],
    heads: tuple[SignedMessage, ...],
    fresh: int,
) -> SigningRequest:
    return SigningRequest(
        packages=tuple(SigningPackage(message=message, commitments=_commitments(made)) for message, made in packages),
        evidence=tuple(
            SignedStatement(statement=each[0], signature=each[1]) if isinstance(each, tuple) else each
            for each in evidence
        ),
        heads=heads,
        fresh=fresh,
    )


class Refusal(StrEnum):
    """Why a signer gave no share for a message."""

    POLICY = "policy"
    """The message, or the statement that it rests on, breaks a rule."""
    CHAIN = "chain"
    """The message contradicts what this signer has vouched for: in the account's chain, or on the meter's statement."""
    BEHIND = "behind"
    """The signer has missed receipts of the account; ``head_wanted`` would bring it up to date."""
    WAITING = "waiting"
    """An earlier message of the account in the same request was not signed; ``waits_for`` is its place."""
    NONCE = "nonce"
    """The signer does not have the nonces (used, dropped, or lost in a restart); fresh ones will do."""
    PACKAGE = "package"
    """The signing package is unfit, such as another signer's invalid commitment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWanted:
    """What a signer that is behind needs to see, group-signed: the receipt before the one it was asked to sign.

    ``sha256`` is of that receipt's signed bytes, or None when the one to sign claims to be the first.
    """

    account: str
    seq: int
    sha256: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRefused:
    """No share for one message; ``detail`` is fit for a log."""

    reason: Refusal
    detail: str
    head_wanted: HeadWanted | None = None
    waits_for: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningReply:
    """A signer's answer: for each package, in order, its 32-byte share or why there is none.

    ``fresh`` are the commitments that were asked for, None when none were.
    """

    identifier: int
    outcomes: tuple[bytes | ShareRefused, ...]
    fresh: CommitmentBatch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRefused:
    """The group does not sign a message now; ``reason`` is fit for a log and names the signers that refuse."""

    reason: str
