"""FROST(Ed25519, SHA-512): hashes, scalars and elements (RFC 9591, section 6.1).

All arithmetic is libsodium's, which is constant-time where it touches a secret. Four of its habits would be
holes in FROST, so nothing else in the room calls it directly:

* scalars at or above the group order are reduced silently: ``decode_scalar`` refuses them;
* ``add`` accepts points of small and mixed order: ``decode_element`` refuses them;
* the zero scalar and a result that is the identity raise ``RuntimeError``: translated to ``FrostError``;
* a wrong length raises libsodium's own ``TypeError``: lengths are checked before.

Python integers serve for public Lagrange coefficients only (``signing_package``).
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NewType

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
    sodium_memcmp,
)

from receipts.frost.errors import FrostError

CONTEXT = b"FROST-ED25519-SHA512-v1"
ORDER = 2**252 + 27742317777372353535851937790883648493
SCALAR_BYTES = 32
ELEMENT_BYTES = 32
MAX_IDENTIFIER = 2**16 - 1

Scalar = NewType("Scalar", bytes)
"""32 bytes, little-endian, below the group order."""

Element = NewType("Element", bytes)
"""32 bytes: a canonically encoded point of the prime-order group, or a sum of such points."""

RandomBytes = Callable[[int], bytes]
"""A cryptographically secure source, such as ``os.urandom``."""

ZERO = Scalar(bytes(SCALAR_BYTES))
_WIDE = bytes(SCALAR_BYTES)


def h1(data: bytes) -> Scalar:
    """Binding factor hash."""
    return _reduce(hashlib.sha512(CONTEXT + b"rho" + data).digest())


def h2(data: bytes) -> Scalar:
    """Challenge hash: plain SHA-512, so that the result is an Ed25519 signature to everybody else."""
    return _reduce(hashlib.sha512(data).digest())


def h3(data: bytes) -> Scalar:
    """Nonce hash."""
    return _reduce(hashlib.sha512(CONTEXT + b"nonce" + data).digest())


def h4(message: bytes) -> bytes:
    """Message hash, 64 bytes."""
    return hashlib.sha512(CONTEXT + b"msg" + message).digest()


def h5(commitments: bytes) -> bytes:
    """Commitment list hash, 64 bytes."""
    return hashlib.sha512(CONTEXT + b"com" + commitments).digest()


def hdkg(data: bytes) -> Scalar:
    """Challenge of a proof of possession in key generation: not in the RFC; ZcashFoundation/frost's."""
    return _reduce(hashlib.sha512(CONTEXT + b"dkg" + data).digest())


def _reduce(digest: bytes) -> Scalar:
    return Scalar(crypto_core_ed25519_scalar_reduce(digest))


def decode_scalar(data: bytes, *, culprits: Iterable[int] = ()) -> Scalar:
    """Accept ``data`` as a scalar if it is canonical; constant-time, so fit for secrets.

    Raises:
        FrostError: wrong length, or at or above the group order.
    """
    if len(data) != SCALAR_BYTES:
        raise FrostError(f"a scalar has {SCALAR_BYTES} bytes, not {len(data)}", culprits=culprits)
    if not sodium_memcmp(crypto_core_ed25519_scalar_reduce(data + _WIDE), data):
        raise FrostError("a scalar is not below the group order", culprits=culprits)
    return Scalar(data)


def decode_element(data: bytes, *, culprits: Iterable[int] = ()) -> Element:
    """Accept ``data`` as a group element (RFC 9591 DeserializeElement).

    Raises:
        FrostError: wrong length, not canonical, off the curve, of small or mixed order, or the identity.
    """
    if len(data) != ELEMENT_BYTES:
        raise FrostError(f"an element has {ELEMENT_BYTES} bytes, not {len(data)}", culprits=culprits)
    if not crypto_core_ed25519_is_valid_point(data):
        raise FrostError("a point is not a valid element of the prime-order group", culprits=culprits)
    return Element(data)


def encode_identifier(identifier: int) -> Scalar:
    """A participant's identifier as a scalar.

    Raises:
        FrostError: outside 1..65535; zero would ask for the secret itself.
    """
    if not 1 <= identifier <= MAX_IDENTIFIER:
        raise FrostError(f"participant identifier {identifier} is not in 1..{MAX_IDENTIFIER}")
    return public_scalar(identifier)


def public_scalar(value: int) -> Scalar:
    """A public integer below the group order as a scalar; never for secrets (Python integers leak time)."""
    return Scalar(value.to_bytes(SCALAR_BYTES, "little"))


def random_scalar(random_bytes: RandomBytes) -> Scalar:
    """A uniform non-zero scalar, from 64 bytes so that the reduction's bias is below 2^-250."""
    while True:
        scalar = _reduce(random_bytes(64))
        if not is_zero(scalar):
            return scalar


def is_zero(scalar: Scalar) -> bool:
    """Whether the scalar is zero; constant-time."""
    return sodium_memcmp(scalar, ZERO)


def add(left: Scalar, right: Scalar) -> Scalar:
    """``left + right`` modulo the group order."""
    return Scalar(crypto_core_ed25519_scalar_add(left, right))


def multiply(left: Scalar, right: Scalar) -> Scalar:
    """``left * right`` modulo the group order."""
    return Scalar(crypto_core_ed25519_scalar_mul(left, right))


def scale_base(scalar: Scalar) -> Element:
    """``scalar * B``.

    Raises:
        FrostError: the scalar is zero.
    """
    try:
        return Element(crypto_scalarmult_ed25519_base_noclamp(scalar))
    except RuntimeError as error:
        raise FrostError("the zero scalar has no public element") from error


def scale(scalar: Scalar, element: Element, *, culprits: Iterable[int] = ()) -> Element:
    """``scalar * element``; libsodium decodes ``element`` as strictly as ``decode_element`` on the way.

    Raises:
        FrostError: the element is invalid, or the scalar or the result is the neutral one.
    """
    if len(element) != ELEMENT_BYTES:
        raise FrostError(f"an element has {ELEMENT_BYTES} bytes, not {len(element)}", culprits=culprits)
    try:
        return Element(crypto_scalarmult_ed25519_noclamp(scalar, element))
    except RuntimeError as error:
        raise FrostError("a point or its multiple is not a valid element", culprits=culprits) from error


def sum_elements(elements: Iterable[Element]) -> Element:
    """The sum of one or more elements; may be the identity, which ``decode_element`` refuses.

    Raises:
        FrostError: one of them is not on the curve. Small order is not noticed: decode elements first.
    """
    iterator = iter(elements)
    total: bytes = next(iterator)
    try:
        for element in iterator:
            total = crypto_core_ed25519_add(total, element)
    except RuntimeError as error:
        raise FrostError("a point is not on the curve") from error
    return Element(total)


def subtract_elements(left: Element, right: Element) -> Element:
    """``left - right``; may be the identity.

    Raises:
        FrostError: one of them is not on the curve.
    """
    try:
        return Element(crypto_core_ed25519_sub(left, right))
    except RuntimeError as error:
        raise FrostError("a point is not on the curve") from error
