"""Signing many messages at once: the bytes of `round_two.sign` and `aggregate.aggregate`, at three quarters the cost.

Those two are the plain reading of RFC 9591, and what these are tested against. Here

* what depends on the quorum alone (the Lagrange weight, times the key share) is computed once per quorum;
* a participant's own term ``D + rho * E`` is ``(d + rho * e) * B``: it knows d and e and has made D and E of them,
  so that one multiple of the base point does for decoding two points, a multiple and a sum;
* who aggregates verifies the result first. A signature that verifies is one, whatever the commitments were; only when
  it does not, everything is decoded and checked, to name the culprit.
"""

from collections.abc import Mapping, Sequence

from receipts.ed25519 import verify_signature
from receipts.frost.aggregate import aggregate
from receipts.frost.ciphersuite import (
    ELEMENT_BYTES,
    ZERO,
    Element,
    Scalar,
    add,
    decode_element,
    decode_scalar,
    h1,
    h2,
    multiply,
    scale,
    scale_base,
    sum_elements,
)
from receipts.frost.errors import FrostError
from receipts.frost.keygen import KeyShare
from receipts.frost.round_one import SigningNonces
from receipts.frost.signing_package import (
    SigningPackage,
    binding_factor_inputs,
    check_participants,
    lagrange_coefficient,
)


def sign_batch(
    packages: Sequence[SigningPackage], nonces: Sequence[SigningNonces], key_share: KeyShare
) -> list[Scalar | FrostError]:
    """For each package what `round_two.sign` gives, or raises; every message's nonces are consumed first."""
    taken = [_taken(each) for each in nonces]
    weighted: dict[tuple[int, ...], Scalar] = {}
    return [
        _share_or_error(package, own, pair, key_share, weighted)
        for package, own, pair in zip(packages, nonces, taken, strict=True)
    ]


def _taken(nonces: SigningNonces) -> tuple[Scalar, Scalar] | FrostError:
    try:
        return nonces.take()
    except FrostError as error:
        return error


def _share_or_error(
    package: SigningPackage,
    nonces: SigningNonces,
    pair: tuple[Scalar, Scalar] | FrostError,
    key_share: KeyShare,
    weighted: dict[tuple[int, ...], Scalar],
) -> Scalar | FrostError:
    if isinstance(pair, FrostError):
        return pair
    try:
        return _share(package, nonces, pair, key_share, weighted)
    except FrostError as error:
        return error


def _share(
    package: SigningPackage,
    nonces: SigningNonces,
    pair: tuple[Scalar, Scalar],
    key_share: KeyShare,
    weighted: dict[tuple[int, ...], Scalar],
) -> Scalar:
    hiding, binding = pair
    quorum = package.identifiers
    if len(quorum) < key_share.threshold:
        raise FrostError(f"{len(quorum)} commitments, but {key_share.threshold} must sign")
    if package.commitment_of(key_share.identifier) != nonces.commitment:
        raise FrostError("the package does not hold this participant's commitment for these nonces")
    check_participants(package)
    if quorum not in weighted:
        weighted[quorum] = multiply(lagrange_coefficient(key_share.identifier, quorum), key_share.secret)
    inputs = binding_factor_inputs(package, key_share.public_key)
    blinded_nonce = add(hiding, multiply(binding, h1(inputs[key_share.identifier])))
    terms = [scale_base(blinded_nonce)]
    for each in package.commitments:
        if each.identifier != key_share.identifier:
            culprit = (each.identifier,)
            terms.append(decode_element(each.hiding, culprits=culprit))
            terms.append(scale(h1(inputs[each.identifier]), Element(each.binding), culprits=culprit))
    challenge = h2(sum_elements(terms) + key_share.public_key + package.message)
    return add(blinded_nonce, multiply(weighted[quorum], challenge))


def aggregate_batch(
    packages: Sequence[SigningPackage],
    shares: Sequence[Mapping[int, bytes]],
    *,
    public_key: bytes,
    verifying_shares: Mapping[int, bytes],
) -> list[bytes | FrostError]:
    """For each package what `aggregate` gives, or raises."""
    results: list[bytes | FrostError] = []
    for package, of_this in zip(packages, shares, strict=True):
        signature = _signature_if_all_is_well(package, of_this, public_key)
        if signature is not None:
            results.append(signature)
            continue
        try:
            results.append(aggregate(package, of_this, public_key=public_key, verifying_shares=verifying_shares))
        except FrostError as error:
            results.append(error)
    return results


def _signature_if_all_is_well(package: SigningPackage, shares: Mapping[int, bytes], public_key: bytes) -> bytes | None:
    """The aggregate if it verifies; what was wrong when it doesn't is not known here."""
    if set(shares) != set(package.identifiers):
        return None
    try:
        check_participants(package)
        inputs = binding_factor_inputs(package, public_key)
        terms: list[Element] = []
        for each in package.commitments:
            if len(each.hiding) != ELEMENT_BYTES:
                return None
            terms += (Element(each.hiding), scale(h1(inputs[each.identifier]), Element(each.binding)))
        total = ZERO
        for share in shares.values():
            total = add(total, decode_scalar(share))
        signature = sum_elements(terms) + total
    except FrostError:
        return None
    return signature if verify_signature(public_key, package.message, signature) else None
