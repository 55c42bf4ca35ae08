"""Signatures that verifiers disagree about, and malformed ones: ours refuses them and never raises."""

import hashlib
import itertools
import json
import os
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_scalarmult_ed25519_base_noclamp,
)
from nacl.signing import SigningKey

from receipts.ed25519 import key_id_of, verify_signature
from receipts.frost.ciphersuite import ORDER

SPECCHECK = Path(__file__).parents[2].parent / "shared" / "vectors" / "ed25519-speccheck-cases.json"
ACCEPTED_SPECCHECK_CASES = {3}

FIELD = 2**255 - 19
SMALL_ORDER = [
    bytes.fromhex(each)
    for each in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    )
]
NON_CANONICAL = [(FIELD + y).to_bytes(32, "little") for y in range(19)] + [
    bytes([*(FIELD + y).to_bytes(32, "little")[:31], 0xFF]) for y in range(19)
]

MESSAGE = b"the joules of one request"


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey(bytes(range(32)))


@pytest.fixture(scope="module")
def signature(key: SigningKey) -> bytes:
    return key.sign(MESSAGE).signature


def second_opinion(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@pytest.mark.parametrize("number", range(12))
def test_speccheck(number: int) -> None:
    if not SPECCHECK.exists():
        pytest.skip(f"the speccheck cases are not at {SPECCHECK}")
    case = json.loads(SPECCHECK.read_text())[number]
    public_key, message, signature = (bytes.fromhex(case[each]) for each in ("pub_key", "message", "signature"))
    assert verify_signature(public_key, message, signature) is (number in ACCEPTED_SPECCHECK_CASES)


def test_an_honest_signature_is_accepted_by_both_libraries(key: SigningKey, signature: bytes) -> None:
    public_key = bytes(key.verify_key)
    assert verify_signature(public_key, MESSAGE, signature)
    assert second_opinion(public_key, MESSAGE, signature)


@given(bit=st.integers(0, 511))
def test_each_bit_of_a_signature_counts(key: SigningKey, signature: bytes, bit: int) -> None:
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    assert not verify_signature(bytes(key.verify_key), MESSAGE, bytes(changed))


@given(bit=st.integers(0, 8 * len(MESSAGE) - 1))
def test_each_bit_of_a_message_counts(key: SigningKey, signature: bytes, bit: int) -> None:
    changed = bytearray(MESSAGE)
    changed[bit // 8] ^= 1 << bit % 8
    assert not verify_signature(bytes(key.verify_key), bytes(changed), signature)


@given(bit=st.integers(0, 255))
def test_each_bit_of_a_key_counts(key: SigningKey, signature: bytes, bit: int) -> None:
    changed = bytearray(bytes(key.verify_key))
    changed[bit // 8] ^= 1 << bit % 8
    assert not verify_signature(bytes(changed), MESSAGE, signature)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 65, 96, 128, 4096])
def test_wrong_lengths_are_refused(key: SigningKey, signature: bytes, length: int) -> None:
    garbage = (signature * 64)[:length]
    assert not verify_signature(bytes(key.verify_key), MESSAGE, garbage)
    assert length == 32 or not verify_signature(garbage, MESSAGE, signature)


@given(public_key=st.binary(max_size=80), message=st.binary(max_size=80), signature=st.binary(max_size=160))
def test_garbage_never_raises(public_key: bytes, message: bytes, signature: bytes) -> None:
    assert not verify_signature(public_key, message, signature)


@given(public_key=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
def test_garbage_of_the_right_length_never_raises(public_key: bytes, signature: bytes) -> None:
    assert not verify_signature(public_key, MESSAGE, signature)


@pytest.mark.parametrize("multiple", [1, 2, 7])
def test_an_unreduced_s_is_refused(key: SigningKey, signature: bytes, multiple: int) -> None:
    """S + L satisfies the same equation: accepting it would make signatures malleable."""
    raised = int.from_bytes(signature[32:], "little") + multiple * ORDER
    malleated = signature[:32] + raised.to_bytes(32, "little")
    assert not verify_signature(bytes(key.verify_key), MESSAGE, malleated)


@pytest.mark.parametrize("point", SMALL_ORDER + NON_CANONICAL, ids=bytes.hex)
def test_a_small_order_or_non_canonical_key_signs_nothing(point: bytes) -> None:
    """With such a key, R = point and S = 0 satisfies the equation for many messages."""
    for s in (bytes(32), ORDER.to_bytes(32, "little")):
        for r in (point, *SMALL_ORDER):
            assert not any(verify_signature(point, bytes([each]), r + s) for each in range(8))


@pytest.mark.parametrize("point", SMALL_ORDER + NON_CANONICAL, ids=bytes.hex)
def test_a_small_order_or_non_canonical_r_is_refused(key: SigningKey, signature: bytes, point: bytes) -> None:
    assert not verify_signature(bytes(key.verify_key), MESSAGE, point + signature[32:])


def torsion_sum(multiple: int) -> bytes:
    """A multiple of the point of order 8, added up."""
    total, point = SMALL_ORDER[0], SMALL_ORDER[4]
    for _ in range(multiple % 8):
        total = crypto_core_ed25519_add(total, point)
    return total


@pytest.mark.parametrize("of_key", range(8))
def test_points_outside_the_main_group_count_by_the_cofactorless_equation(of_key: int) -> None:
    """A key A and an R with parts of small order, as in several of speccheck's cases.

    Multiplied by the cofactor 8, the equation S·B = R + h·A holds for all of these, and a verifier that multiplies
    accepts them. Ours does not multiply: it accepts only where the small parts cancel by themselves.
    """
    a, r = (crypto_core_ed25519_scalar_reduce(bytes([each]) * 64) for each in (7, 9))
    public_key = crypto_core_ed25519_add(crypto_scalarmult_ed25519_base_noclamp(a), torsion_sum(of_key))
    outcomes = set()
    for of_r, number in itertools.product(range(8), range(20)):
        commitment = crypto_core_ed25519_add(crypto_scalarmult_ed25519_base_noclamp(r), torsion_sum(of_r))
        message = bytes([number])
        h = crypto_core_ed25519_scalar_reduce(hashlib.sha512(commitment + public_key + message).digest())
        s = crypto_core_ed25519_scalar_add(r, crypto_core_ed25519_scalar_mul(h, a))
        cancels = (of_r + int.from_bytes(h, "little") * of_key) % 8 == 0
        assert verify_signature(public_key, message, commitment + s) is cancels
        outcomes.add(cancels)
    assert outcomes == {True, False}


def test_the_key_id_is_the_start_of_the_keys_sha256() -> None:
    # SHA-256 of 32 zero bytes, as sha256sum prints it.
    assert key_id_of(bytes(32)) == "66687aadf862bd77"


def test_both_libraries_agree_on_random_honest_signatures() -> None:
    for _ in range(20):
        key, message = SigningKey.generate(), os.urandom(40)
        signature = key.sign(message).signature
        assert verify_signature(bytes(key.verify_key), message, signature)
        assert second_opinion(bytes(key.verify_key), message, signature)
