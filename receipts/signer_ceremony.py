"""One signer's part in a distributed key generation.

The way of a ceremony; every arrow passes through the coordinator, which can read none of the shares:

1. ``publish``: commitments, proof of possession and a fresh box key, signed by the enrolled identity.
2. ``seal``: check what all published; seal one share for each other signer with ``nacl.public.Box``.
3. ``conclude``: open and check the shares; compute the key share; sign the statement of the outcome.

The box key lives for one ceremony. A disk stolen later, with a recording of what the coordinator passed on,
does not give the shares away.
"""

from collections.abc import Mapping

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import SigningKey

from receipts.ed25519 import verify_signature
from receipts.frost import keygen
from receipts.frost.ciphersuite import SCALAR_BYTES, Element, RandomBytes, Scalar, encode_identifier
from receipts.frost.errors import FrostError
from receipts.frost.secrecy import Redacted
from receipts.group_record import MAX_MEMBERS, GroupStatement, group_statement, transcript_sha256
from receipts.signer_messages import (
    CeremonyPlan,
    RoundOnePackage,
    SealedShare,
    SignedGroupStatement,
    SignerIdentity,
)
from receipts.signing_errors import SigningError

_CEREMONY_ID_BYTES = 32
_ROUND_ONE_PREFIX = b"joule-mesh.dkg-round-one/v1\x00"
_SHARE_PREFIX = b"joule-mesh.dkg-share/v1\x00"


class SigningIdentity(Redacted):
    """A signer's enrolled Ed25519 key pair: what the other signers know it by."""

    SEED_BYTES = 32
    __slots__ = ("_key", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public_key = bytes(self._key.verify_key)

    def sign(self, data: bytes) -> bytes:
        """A 64-byte signature; ``data`` starts with a prefix that says what is signed."""
        return self._key.sign(data).signature


class Ceremony(Redacted):
    """The state of one key generation at one signer: in memory only, its steps once each, in order."""

    __slots__ = (
        "_box_key",
        "_identifier",
        "_identity",
        "_own",
        "_plan",
        "_polynomial",
        "_published",
        "_random_bytes",
    )

    def __init__(
        self, *, plan: CeremonyPlan, identifier: int, identity: SigningIdentity, random_bytes: RandomBytes
    ) -> None:
        """Accept the plan.

        Raises:
            SigningError: the plan is malformed, or does not know this signer under its own identity.
        """
        _check_plan(plan, SignerIdentity(identifier=identifier, identity_key=identity.public_key))
        self._plan = plan
        self._identifier = identifier
        self._identity = identity
        self._random_bytes = random_bytes
        self._box_key = PrivateKey(random_bytes(PrivateKey.SIZE))
        self._polynomial = keygen.SecretPolynomial.generate(plan.threshold, random_bytes)
        self._own: RoundOnePackage | None = None
        self._published: tuple[RoundOnePackage, ...] | None = None

    def publish(self) -> RoundOnePackage:
        """Round one: what everybody may see.

        Raises:
            SigningError: this step was done before.
        """
        if self._own is not None:
            raise SigningError("this ceremony's first round was done already")
        unsigned = RoundOnePackage(
            identifier=self._identifier,
            box_key=bytes(self._box_key.public_key),
            commitments=self._polynomial.commit(),
            proof=self._polynomial.prove_possession(self._identifier, self._random_bytes),
            signature=b"",
        )
        signature = self._identity.sign(_round_one_bytes(self._plan, unsigned))
        self._own = RoundOnePackage(
            identifier=unsigned.identifier,
            box_key=unsigned.box_key,
            commitments=unsigned.commitments,
            proof=unsigned.proof,
            signature=signature,
        )
        return self._own

    def seal(self, packages: tuple[RoundOnePackage, ...]) -> tuple[SealedShare, ...]:
        """Round two: check everybody's package, and seal a share for each other signer.

        Raises:
            FrostError: naming a signer whose package is wrong.
            SigningError: the packages are not one per signer of the roster with our own among them, or this
                step was done before or too early.
        """
        if self._own is None or self._published is not None:
            raise SigningError("this ceremony is not at its second round")
        if tuple(each.identifier for each in packages) != tuple(each.identifier for each in self._plan.roster):
            raise SigningError("the second round needs one package of each signer, ascending")
        if self._own not in packages:
            raise SigningError("our own package came back changed")
        for package, member in zip(packages, self._plan.roster, strict=True):
            _check_package(self._plan, package, member)
        self._published = packages
        return tuple(self._seal_for(each) for each in packages if each.identifier != self._identifier)

    def conclude(self, sealed: tuple[SealedShare, ...]) -> tuple[keygen.KeyShare, SignedGroupStatement]:
        """Round three: open the shares and compute the key share; the ceremony's secrets end here.

        Raises:
            FrostError: naming a signer whose share is missing, cannot be opened, or is wrong.
            SigningError: this step is too early.
        """
        packages = self._published
        if packages is None:
            raise SigningError("this ceremony is not at its third round")
        commitments = {each.identifier: tuple(Element(element) for element in each.commitments) for each in packages}
        boxes = {each.sender: each for each in sealed if each.recipient == self._identifier}
        received: dict[int, Scalar] = {self._identifier: self._polynomial.share_for(self._identifier)}
        for package in packages:
            sender = package.identifier
            if sender != self._identifier:
                share = self._open(package, boxes.get(sender))
                received[sender] = keygen.check_received_share(sender, self._identifier, share, commitments[sender])
        group = keygen.group_key(commitments)
        key_share = keygen.combine(self._identifier, self._plan.threshold, received, group)
        statement = self._statement(packages, group)
        signature = self._identity.sign(statement.signed_bytes())
        signed = SignedGroupStatement(identifier=self._identifier, statement=statement, signature=signature)
        return key_share, signed

    def _statement(self, packages: tuple[RoundOnePackage, ...], group: keygen.GroupKey) -> GroupStatement:
        parts = tuple(_round_one_bytes(self._plan, each) + each.signature for each in packages)
        identities: Mapping[int, bytes] = {each.identifier: each.identity_key for each in self._plan.roster}
        return group_statement(
            transcript=transcript_sha256(parts),
            threshold=self._plan.threshold,
            identities=identities,
            group=group,
        )

    def _seal_for(self, package: RoundOnePackage) -> SealedShare:
        header = self._share_header(self._identifier, package.identifier)
        plaintext = header + self._polynomial.share_for(package.identifier)
        try:
            box = Box(self._box_key, PublicKey(package.box_key))
        except (CryptoError, RuntimeError) as error:
            raise _unusable_box_key(package) from error
        sealed = box.encrypt(plaintext, self._random_bytes(Box.NONCE_SIZE))
        return SealedShare(sender=self._identifier, recipient=package.identifier, sealed=bytes(sealed))

    def _open(self, package: RoundOnePackage, share: SealedShare | None) -> bytes:
        sender = package.identifier
        if share is None:
            raise FrostError(f"signer {sender} sent no share", culprits=(sender,))
        try:
            plaintext = Box(self._box_key, PublicKey(package.box_key)).decrypt(share.sealed)
        except (CryptoError, ValueError) as error:
            raise FrostError(f"the share of signer {sender} cannot be opened", culprits=(sender,)) from error
        header = self._share_header(sender, self._identifier)
        if len(plaintext) != len(header) + SCALAR_BYTES or not plaintext.startswith(header):
            raise FrostError(f"signer {sender} sealed something else than our share", culprits=(sender,))
        return plaintext[len(header) :]

    def _share_header(self, sender: int, recipient: int) -> bytes:
        """Inside the seal: the ceremony and direction, since the pair's key is the same both ways."""
        return _SHARE_PREFIX + self._plan.ceremony_id + encode_identifier(sender) + encode_identifier(recipient)


def _unusable_box_key(package: RoundOnePackage) -> FrostError:
    sender = package.identifier
    return FrostError(f"signer {sender} published an unusable box key", culprits=(sender,))


def _check_plan(plan: CeremonyPlan, own: SignerIdentity) -> None:
    identifiers = [each.identifier for each in plan.roster]
    if len(plan.ceremony_id) != _CEREMONY_ID_BYTES:
        raise SigningError("a ceremony needs an id of 32 random bytes")
    if identifiers != sorted(set(identifiers)) or not 2 <= plan.threshold <= len(identifiers) <= MAX_MEMBERS:
        raise SigningError(f"not a roster for a threshold of {plan.threshold}: {identifiers}")
    if len({each.identity_key for each in plan.roster}) != len(plan.roster):
        raise SigningError("two signers of the roster have the same identity key")
    if own not in plan.roster:
        raise SigningError(f"the roster does not hold signer {own.identifier} with its own identity key")


def _round_one_bytes(plan: CeremonyPlan, package: RoundOnePackage) -> bytes:
    """What a signer signs in round one: plan and package; all lengths are fixed or follow the plan."""
    roster = b"".join(encode_identifier(each.identifier) + each.identity_key for each in plan.roster)
    counts = bytes([plan.threshold, len(plan.roster)])
    own = encode_identifier(package.identifier) + package.box_key
    return b"".join((_ROUND_ONE_PREFIX, plan.ceremony_id, counts, roster, own, *package.commitments, package.proof))


def _check_package(plan: CeremonyPlan, package: RoundOnePackage, member: SignerIdentity) -> None:
    culprit = (member.identifier,)
    if len(package.box_key) != PublicKey.SIZE:
        raise _unusable_box_key(package)
    # Lengths first: they are what makes the signed encoding unambiguous.
    keygen.check_commitments(member.identifier, package.commitments, package.proof, plan.threshold)
    if not verify_signature(member.identity_key, _round_one_bytes(plan, package), package.signature):
        raise FrostError(f"the package of signer {member.identifier} is not signed by it", culprits=culprit)
