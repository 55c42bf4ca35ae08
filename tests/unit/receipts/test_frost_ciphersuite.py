"""The four habits of libsodium that would be holes in FROST, and the encodings."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_add

from receipts.frost import ciphersuite
from receipts.frost.ciphersuite import ORDER, Element, Scalar, public_scalar
from receipts.frost.errors import FrostError

IDENTITY = public_scalar(1)  # (0, 1): y = 1
ORDER_EIGHT = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
BASE = ciphersuite.scale_base(public_scalar(1))
MIXED_ORDER = crypto_core_ed25519_add(BASE, ORDER_EIGHT)
NON_CANONICAL = (2**255 - 19 + 3).to_bytes(32, "little")
OFF_THE_CURVE = b"\x02" + bytes(31)

scalars = st.integers(1, ORDER - 1)


@pytest.mark.parametrize("value", [0, 1, ORDER - 1])
def test_canonical_scalars_are_accepted(value: int) -> None:
    data = value.to_bytes(32, "little")
    assert ciphersuite.decode_scalar(data) == data


@pytest.mark.parametrize("value", [ORDER, ORDER + 1, 2**252 + 2**251, 2**255 - 1, 2**256 - 1])
def test_scalars_that_libsodium_would_reduce_are_refused(value: int) -> None:
    with pytest.raises(FrostError, match="not below the group order") as caught:
        ciphersuite.decode_scalar(value.to_bytes(32, "little"), culprits=[4])
    assert caught.value.culprits == {4}


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_wrong_lengths_are_refused(length: int) -> None:
    with pytest.raises(FrostError, match="32 bytes"):
        ciphersuite.decode_scalar(bytes(length))
    with pytest.raises(FrostError, match="32 bytes"):
        ciphersuite.decode_element(bytes(length))
    with pytest.raises(FrostError, match="32 bytes"):
        ciphersuite.scale(public_scalar(1), Element(bytes(length)))


@pytest.mark.parametrize(
    "point", [IDENTITY, ORDER_EIGHT, MIXED_ORDER, NON_CANONICAL, OFF_THE_CURVE], ids=lambda each: each.hex()[:8]
)
def test_bad_elements_are_refused_by_decoding_and_by_scaling(point: bytes) -> None:
    with pytest.raises(FrostError, match="not a valid element") as decoded:
        ciphersuite.decode_element(point, culprits=[2])
    with pytest.raises(FrostError, match="not a valid element") as scaled:
        ciphersuite.scale(public_scalar(1), Element(point), culprits=[2])
    assert decoded.value.culprits == scaled.value.culprits == {2}


def test_zero_and_identity_are_frost_errors() -> None:
    with pytest.raises(FrostError, match="zero scalar"):
        ciphersuite.scale_base(ciphersuite.ZERO)
    with pytest.raises(FrostError):
        ciphersuite.scale(ciphersuite.ZERO, BASE)
    with pytest.raises(FrostError, match="not on the curve"):
        ciphersuite.sum_elements([BASE, Element(OFF_THE_CURVE)])
    with pytest.raises(FrostError, match="not on the curve"):
        ciphersuite.subtract_elements(BASE, Element(OFF_THE_CURVE))
    assert ciphersuite.subtract_elements(BASE, BASE) == IDENTITY


@pytest.mark.parametrize("identifier", [-1, 0, 2**16])
def test_identifiers_out_of_range_are_refused(identifier: int) -> None:
    with pytest.raises(FrostError, match="identifier"):
        ciphersuite.encode_identifier(identifier)


@given(left=scalars, right=scalars)
def test_scalar_arithmetic_is_that_of_integers_modulo_the_order(left: int, right: int) -> None:
    one, other = public_scalar(left), public_scalar(right)
    assert ciphersuite.add(one, other) == public_scalar((left + right) % ORDER)
    assert ciphersuite.multiply(one, other) == public_scalar(left * right % ORDER)


@given(left=scalars, right=scalars)
def test_scaling_the_base_is_a_homomorphism(left: int, right: int) -> None:
    product = ciphersuite.multiply(public_scalar(left), public_scalar(right))
    base_left = ciphersuite.scale_base(public_scalar(left))
    assert ciphersuite.scale(public_scalar(right), base_left) == ciphersuite.scale_base(product)


def test_a_random_scalar_is_never_zero() -> None:
    outputs = [bytes(64), ORDER.to_bytes(64, "little"), (7).to_bytes(64, "little")]
    assert ciphersuite.random_scalar(lambda _: outputs.pop(0)) == public_scalar(7)
    assert ciphersuite.decode_scalar(ciphersuite.random_scalar(os.urandom)) != Scalar(bytes(32))
