"""Distributed key generation: Pedersen's, with proofs of possession (FROST paper, figure 1).

Each participant shares a random polynomial of degree ``threshold - 1``; the group key is the sum of their
constant terms, which nobody ever holds. A proof of possession of the own constant term stops a participant
from choosing its commitment as a function of the others' (a rogue key).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from receipts.frost.ciphersuite import (
    ELEMENT_BYTES,
    SCALAR_BYTES,
    ZERO,
    Element,
    RandomBytes,
    Scalar,
    add,
    decode_element,
    decode_scalar,
    encode_identifier,
    hdkg,
    is_zero,
    multiply,
    random_scalar,
    scale,
    scale_base,
    subtract_elements,
    sum_elements,
)
from receipts.frost.errors import FrostError
from receipts.frost.secrecy import Redacted
from receipts.frost.signing_package import lagrange_coefficient

PROOF_BYTES = ELEMENT_BYTES + SCALAR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class KeyShare(Redacted):
    """One participant's share of the group key: all that it needs to sign."""

    identifier: int
    threshold: int
    secret: Scalar
    public_key: Element


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupKey:
    """The public outcome of a key generation, the same at every participant."""

    public_key: Element
    verifying_shares: Mapping[int, Element]


class SecretPolynomial(Redacted):
    """One participant's contribution, secret until the key generation is over and forgotten then."""

    __slots__ = ("_coefficients",)

    def __init__(self, coefficients: Sequence[bytes]) -> None:
        """Take the coefficients, constant term first.

        Raises:
            FrostError: one is not a canonical non-zero scalar.
        """
        self._coefficients = tuple(decode_scalar(each) for each in coefficients)
        if not self._coefficients or any(is_zero(each) for each in self._coefficients):
            raise FrostError("a polynomial needs non-zero coefficients")

    @classmethod
    def generate(cls, threshold: int, random_bytes: RandomBytes) -> "SecretPolynomial":
        """A random polynomial of degree ``threshold - 1``."""
        return cls([random_scalar(random_bytes) for _ in range(threshold)])

    def commit(self) -> tuple[Element, ...]:
        """The coefficients times the base point: what the others check their shares against."""
        return tuple(scale_base(each) for each in self._coefficients)

    def prove_possession(self, identifier: int, random_bytes: RandomBytes) -> bytes:
        """Proof that this participant knows the constant term: R and mu, 64 bytes."""
        constant = self._coefficients[0]
        nonce = random_scalar(random_bytes)
        nonce_element = scale_base(nonce)
        challenge = _proof_challenge(identifier, scale_base(constant), nonce_element)
        return nonce_element + add(nonce, multiply(constant, challenge))

    def share_for(self, identifier: int) -> Scalar:
        """The polynomial at ``identifier``: secret, for that participant's eyes only."""
        point = encode_identifier(identifier)
        value = ZERO
        for coefficient in reversed(self._coefficients):
            value = add(multiply(value, point), coefficient)
        return value


def _proof_challenge(identifier: int, constant: bytes, nonce_element: bytes) -> Scalar:
    return hdkg(encode_identifier(identifier) + constant + nonce_element)


def check_commitments(identifier: int, commitments: Sequence[bytes], proof: bytes, threshold: int) -> None:
    """Check what a participant published: as many valid elements as the threshold, and the proof.

    Raises:
        FrostError: naming ``identifier``.
    """
    culprit = (identifier,)
    if len(commitments) != threshold:
        raise FrostError(f"participant {identifier} committed to a wrong degree", culprits=culprit)
    elements = [decode_element(each, culprits=culprit) for each in commitments]
    if len(proof) != PROOF_BYTES:
        raise FrostError(f"participant {identifier} sent a malformed proof", culprits=culprit)
    nonce_element = decode_element(proof[:ELEMENT_BYTES], culprits=culprit)
    response = decode_scalar(proof[ELEMENT_BYTES:], culprits=culprit)
    challenge = _proof_challenge(identifier, elements[0], nonce_element)
    if is_zero(response) or is_zero(challenge):
        raise FrostError(f"participant {identifier} sent a degenerate proof", culprits=culprit)
    if subtract_elements(scale_base(response), scale(challenge, elements[0])) != nonce_element:
        raise FrostError(f"participant {identifier} does not know its own secret", culprits=culprit)


def check_received_share(sender: int, recipient: int, share: bytes, commitments: Sequence[Element]) -> Scalar:
    """Accept the share that ``sender`` sent if its (checked) commitments predict it.

    Raises:
        FrostError: naming ``sender``.
    """
    culprit = (sender,)
    scalar = decode_scalar(share, culprits=culprit)
    if is_zero(scalar):
        raise FrostError(f"participant {sender} sent a zero share", culprits=culprit)
    try:
        expected = _evaluate(commitments, recipient)
    except FrostError as error:
        raise FrostError(f"participant {sender} sent degenerate commitments", culprits=culprit) from error
    if scale_base(scalar) != expected:
        raise FrostError(f"participant {sender} sent a share that it did not commit to", culprits=culprit)
    return scalar


def _evaluate(commitments: Sequence[Element], identifier: int) -> Element:
    """The committed polynomial at ``identifier``, in the exponent."""
    point = encode_identifier(identifier)
    value = commitments[-1]
    for commitment in reversed(commitments[:-1]):
        value = sum_elements((scale(point, value), commitment))
    return value


def group_key(commitments: Mapping[int, Sequence[Element]]) -> GroupKey:
    """The group's public key and everybody's verifying share, from all participants' checked commitments.

    Raises:
        FrostError: a term of the sum is the identity. Whoever publishes last can force that for a higher
            term, which would lower the threshold; so such a run ends here, and names nobody.
    """
    columns = zip(*commitments.values(), strict=True)
    summed = [decode_element(sum_elements(column)) for column in columns]
    return GroupKey(
        public_key=summed[0],
        verifying_shares={each: decode_element(_evaluate(summed, each)) for each in sorted(commitments)},
    )


def check_group_key(threshold: int, group: GroupKey) -> None:
    """Check that any ``threshold`` of the verifying shares make the public key.

    It suffices that each further share does so together with the first ``threshold - 1``: two polynomials of
    that degree which agree there and at zero are the same.

    Raises:
        FrostError: naming a participant whose verifying share is not on it.
    """
    identifiers = sorted(group.verifying_shares)
    first = identifiers[: threshold - 1]
    for identifier in identifiers[threshold - 1 :]:
        quorum = (*first, identifier)
        terms = [scale(lagrange_coefficient(each, quorum), group.verifying_shares[each]) for each in quorum]
        if sum_elements(terms) != group.public_key:
            raise FrostError(
                f"the verifying share of participant {identifier} is not of this group",
                culprits=(identifier,),
            )


def combine(identifier: int, threshold: int, received: Mapping[int, Scalar], group: GroupKey) -> KeyShare:
    """The participant's key share: the sum of the checked shares of all, its own among them.

    Raises:
        FrostError: the sum does not match the participant's verifying share.
    """
    secret = ZERO
    for share in received.values():
        secret = add(secret, share)
    if is_zero(secret) or scale_base(secret) != group.verifying_shares.get(identifier):
        raise FrostError(f"the shares received by participant {identifier} do not make its key share")
    return KeyShare(identifier=identifier, threshold=threshold, secret=secret, public_key=group.public_key)
