"""What travels between a signer and its coordinator. All of it is public, sealed, or a signature share."""

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
    """Who a signer is and which group's key share it holds ready; ``record`` is None when it holds none."""

    identity: SignerIdentity
    record: GroupRecord | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedMessage:
    """A receipt's signed bytes with the group's signature: it proves that a quorum has vouched for them."""

    message: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRequest:
    """Packages to sign, those of one account in the order of its chain, and heads that the signer missed.

    ``evidence`` is for each package the meter's statement on the receipt's energy, None where there is none.
    """

    packages: tuple[SigningPackage, ...]
    evidence: tuple[SignedStatement | None, ...]
    heads: tuple[SignedMessage, ...] = ()


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
    """A signer's answer: for each package, in order, its 32-byte share or why there is none."""

    identifier: int
    outcomes: tuple[bytes | ShareRefused, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRefused:
    """The group does not sign a message now; ``reason`` is fit for a log and names the signers that refuse."""

    reason: str
