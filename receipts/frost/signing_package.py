"""What is signed by whom: the package every participant of a signature works on (RFC 9591, section 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from receipts.frost.ciphersuite import (
    ORDER,
    Element,
    Scalar,
    decode_element,
    encode_identifier,
    h1,
    h2,
    h4,
    h5,
    public_scalar,
    scale,
    sum_elements,
)
from receipts.frost.errors import FrostError
from receipts.frost.round_one import NonceCommitment


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPackage:
    """A message and the quorum's commitments, ascending by identifier, each participant once.

    Nothing is checked before ``bind``: a package that comes from another process is only bytes and numbers.
    """

    message: bytes
    commitments: tuple[NonceCommitment, ...]

    @property
    def identifiers(self) -> tuple[int, ...]:
        """The quorum, ascending."""
        return tuple(commitment.identifier for commitment in self.commitments)

    def commitment_of(self, identifier: int) -> NonceCommitment | None:
        """The participant's commitment, or None when it is not of this quorum."""
        return next((each for each in self.commitments if each.identifier == identifier), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What package and group key fix together; everybody computes the same."""

    factors: Mapping[int, Scalar]
    group_commitment: Element
    challenge: Scalar


def binding_factor_inputs(package: SigningPackage, public_key: bytes) -> Mapping[int, bytes]:
    """The preimages of the binding factors, by identifier (RFC 9591, section 4.4)."""
    encoded = b"".join(encode_identifier(each.identifier) + each.hiding + each.binding for each in package.commitments)
    prefix = public_key + h4(package.message) + h5(encoded)
    return {identifier: prefix + encode_identifier(identifier) for identifier in package.identifiers}


def bind(package: SigningPackage, public_key: bytes) -> Binding:
    """Compute binding factors, group commitment and challenge; this is where a package is validated.

    Raises:
        FrostError: no commitments; not strictly ascending (the order is hashed: two orders would be two
            signatures); an identifier out of range; or a commitment is not a valid element, and ``culprits``
            names whose.
    """
    check_participants(package)
    inputs = binding_factor_inputs(package, public_key)
    factors = {identifier: h1(data) for identifier, data in inputs.items()}
    terms: list[Element] = []
    for each in package.commitments:
        culprit = (each.identifier,)
        terms.append(decode_element(each.hiding, culprits=culprit))
        terms.append(scale(factors[each.identifier], Element(each.binding), culprits=culprit))
    group_commitment = sum_elements(terms)
    challenge = h2(group_commitment + public_key + package.message)
    return Binding(factors=MappingProxyType(factors), group_commitment=group_commitment, challenge=challenge)


def check_participants(package: SigningPackage) -> None:
    """Check that there are participants, in the one order that is hashed.

    Raises:
        FrostError: no commitments, or not strictly ascending.
    """
    if not package.commitments:
        raise FrostError("a signing package needs commitments")
    if any(left >= right for left, right in pairwise(package.identifiers)):
        raise FrostError("commitments must ascend by identifier, each participant once")


def lagrange_coefficient(identifier: int, quorum: Sequence[int]) -> Scalar:
    """The weight of a participant's share at zero (RFC 9591 derive_interpolating_value).

    Identifiers are public, so Python integers may do this.

    Raises:
        FrostError: the identifier is not of the quorum, or the quorum repeats one.
    """
    if identifier not in quorum or len(set(quorum)) != len(quorum):
        raise FrostError(f"{identifier} has no weight in the quorum {list(quorum)}")
    numerator = denominator = 1
    for other in quorum:
        if other != identifier:
            numerator = numerator * other % ORDER
            denominator = denominator * (other - identifier) % ORDER
    return public_scalar(numerator * pow(denominator, -1, ORDER) % ORDER)
