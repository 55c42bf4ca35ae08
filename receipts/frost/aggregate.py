"""The last step of signing: shares become one Ed25519 signature (RFC 9591, sections 5.3 and 5.4)."""

from collections.abc import Mapping

from receipts.ed25519 import verify_signature
from receipts.frost.ciphersuite import (
    ZERO,
    Element,
    Scalar,
    add,
    decode_scalar,
    multiply,
    scale,
    scale_base,
    sum_elements,
)
from receipts.frost.errors import FrostError
from receipts.frost.signing_package import Binding, SigningPackage, bind, lagrange_coefficient


def aggregate(
    package: SigningPackage,
    shares: Mapping[int, bytes],
    *,
    public_key: bytes,
    verifying_shares: Mapping[int, bytes],
) -> bytes:
    """The group's signature over ``package.message``, 64 bytes, verified under ``public_key``.

    The aggregate is verified first: one verification when all are honest. Only when it fails are the shares
    verified one by one, to name who sent a wrong one.

    Raises:
        FrostError: ``culprits`` names whose commitment or share is invalid. It is empty only when ``shares``
            is not from exactly the package's quorum, or the verifying shares are another group's.
    """
    if set(shares) != set(package.identifiers):
        raise FrostError("shares must come from exactly the participants of the package")
    bound = bind(package, public_key)
    malformed = {identifier for identifier, share in shares.items() if not _is_canonical(share)}
    if malformed:
        raise FrostError(f"malformed signature shares from {sorted(malformed)}", culprits=malformed)
    total = ZERO
    for share in shares.values():
        total = add(total, Scalar(share))
    signature = bound.group_commitment + total
    if verify_signature(public_key, package.message, signature):
        return signature
    culprits = [
        identifier
        for identifier in package.identifiers
        if not _share_is_valid(package, bound, identifier, Scalar(shares[identifier]), verifying_shares)
    ]
    raise FrostError(f"wrong signature shares from {culprits}", culprits=culprits)


def _is_canonical(share: bytes) -> bool:
    try:
        decode_scalar(share)
    except FrostError:
        return False
    return True


def _share_is_valid(
    package: SigningPackage,
    bound: Binding,
    identifier: int,
    share: Scalar,
    verifying_shares: Mapping[int, bytes],
) -> bool:
    """Whether ``share * B == D + rho * E + (lambda * c) * Y`` (RFC 9591 verify_signature_share)."""
    commitment = package.commitment_of(identifier)
    verifying_share = verifying_shares.get(identifier)
    if commitment is None or verifying_share is None:
        return False
    weight = multiply(bound.challenge, lagrange_coefficient(identifier, package.identifiers))
    try:
        expected = sum_elements(
            (
                Element(commitment.hiding),
                scale(bound.factors[identifier], Element(commitment.binding)),
                scale(weight, Element(verifying_share)),
            )
        )
        return scale_base(share) == expected
    except FrostError:
        return False
