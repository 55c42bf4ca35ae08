"""Round two of signing: one participant's share of the signature (RFC 9591, section 5.2)."""

from receipts.frost.ciphersuite import Scalar, add, multiply
from receipts.frost.errors import FrostError
from receipts.frost.keygen import KeyShare
from receipts.frost.round_one import SigningNonces
from receipts.frost.signing_package import SigningPackage, bind, lagrange_coefficient


def sign(package: SigningPackage, nonces: SigningNonces, key_share: KeyShare) -> Scalar:
    """This participant's signature share: ``d + e * rho + lambda * s * c``.

    The nonces are consumed before anything is looked at, so that no failure below leaves them usable.

    Raises:
        FrostError: nonces used before; fewer participants than the threshold; the package does not hold
            exactly this participant's commitment; another participant's commitment is invalid (named).
    """
    hiding, binding = nonces.take()
    if len(package.commitments) < key_share.threshold:
        raise FrostError(f"{len(package.commitments)} commitments, but {key_share.threshold} must sign")
    if package.commitment_of(key_share.identifier) != nonces.commitment:
        raise FrostError("the package does not hold this participant's commitment for these nonces")
    bound = bind(package, key_share.public_key)
    weight = lagrange_coefficient(key_share.identifier, package.identifiers)
    blinded_nonce = add(hiding, multiply(binding, bound.factors[key_share.identifier]))
    return add(blinded_nonce, multiply(multiply(weight, key_share.secret), bound.challenge))
