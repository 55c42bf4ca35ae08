"""Both signing rounds and the aggregate: any quorum signs, and whoever cheats is named."""

import copy
import os
import pickle
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from receipts.frost import keygen, round_one, round_two
from receipts.frost.aggregate import aggregate
from receipts.frost.ciphersuite import ORDER, Element, Scalar, add, public_scalar, scale_base
from receipts.frost.errors import FrostError
from receipts.frost.round_one import SigningNonces
from receipts.frost.signing_package import SigningPackage, bind, lagrange_coefficient

ORDER_EIGHT = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


class Dealt:
    """A group whose shares were dealt by the test: key generation has its own tests."""

    def __init__(self, threshold: int, members: int) -> None:
        polynomial = keygen.SecretPolynomial.generate(threshold, os.urandom)
        self.public_key = polynomial.commit()[0]
        self.shares = {
            each: keygen.KeyShare(
                identifier=each,
                threshold=threshold,
                secret=polynomial.share_for(each),
                public_key=self.public_key,
            )
            for each in range(1, members + 1)
        }
        self.verifying_shares = {each: scale_base(share.secret) for each, share in self.shares.items()}

    def round_one(self, quorum: list[int], message: bytes) -> tuple[SigningPackage, dict[int, SigningNonces]]:
        nonces = {each: round_one.commit(each, self.shares[each].secret, os.urandom) for each in sorted(quorum)}
        package = SigningPackage(message=message, commitments=tuple(each.commitment for each in nonces.values()))
        return package, nonces

    def round_two(self, package: SigningPackage, nonces: dict[int, SigningNonces]) -> dict[int, bytes]:
        return {each: round_two.sign(package, nonces[each], self.shares[each]) for each in nonces}

    def aggregate(self, package: SigningPackage, shares: dict[int, bytes]) -> bytes:
        return aggregate(package, shares, public_key=self.public_key, verifying_shares=self.verifying_shares)


@pytest.fixture(scope="module")
def group() -> Dealt:
    return Dealt(threshold=3, members=5)


def signed_by(group: Dealt, quorum: list[int], message: bytes) -> bytes:
    package, nonces = group.round_one(quorum, message)
    return group.aggregate(package, group.round_two(package, nonces))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.integers(2, 6).flatmap(lambda members: st.tuples(st.integers(2, members), st.just(members))),
    data=st.data(),
    message=st.binary(max_size=300),
)
def test_any_quorum_makes_a_signature_that_other_libraries_accept(
    sizes: tuple[int, int], data: st.DataObject, message: bytes
) -> None:
    threshold, members = sizes
    group = Dealt(threshold, members)
    quorum = data.draw(st.permutations(range(1, members + 1)).flatmap(lambda all_: st.just(all_[:threshold])))
    signature = signed_by(group, quorum, message)
    VerifyKey(group.public_key).verify(message, signature)
    Ed25519PublicKey.from_public_bytes(group.public_key).verify(signature, message)


def test_all_five_may_sign_together_and_signatures_differ_each_time(group: Dealt) -> None:
    signatures = {signed_by(group, [1, 2, 3, 4, 5], b"message") for _ in range(3)}
    assert len(signatures) == 3


def test_fewer_than_the_threshold_get_no_share(group: Dealt) -> None:
    package, nonces = group.round_one([1, 2], b"message")
    with pytest.raises(FrostError, match="3 must sign"):
        round_two.sign(package, nonces[1], group.shares[1])


def test_nonces_serve_once(group: Dealt) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    round_two.sign(package, nonces[1], group.shares[1])
    with pytest.raises(FrostError, match="already used"):
        round_two.sign(replace(package, message=b"another"), nonces[1], group.shares[1])


def test_a_failed_attempt_consumes_the_nonces_too(group: Dealt) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    with pytest.raises(FrostError):
        round_two.sign(replace(package, commitments=package.commitments[1:]), nonces[1], group.shares[1])
    with pytest.raises(FrostError, match="already used"):
        round_two.sign(package, nonces[1], group.shares[1])


def test_a_package_with_another_commitment_of_ours_is_refused(group: Dealt) -> None:
    package, _ = group.round_one([1, 2, 3], b"message")
    _, other_nonces = group.round_one([1, 2, 3], b"message")
    with pytest.raises(FrostError, match="does not hold this participant's commitment"):
        round_two.sign(package, other_nonces[2], group.shares[2])


@pytest.mark.parametrize("field", ["hiding", "binding"])
@pytest.mark.parametrize("bad", [ORDER_EIGHT, bytes(32), b"short"])
def test_an_invalid_commitment_names_its_owner(group: Dealt, field: str, bad: bytes) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    spoiled = replace(package.commitments[2], **{field: bad})
    package = replace(package, commitments=(*package.commitments[:2], spoiled))
    with pytest.raises(FrostError) as caught:
        round_two.sign(package, nonces[1], group.shares[1])
    assert caught.value.culprits == {3}


def test_packages_must_ascend_and_name_each_participant_once(group: Dealt) -> None:
    package, _ = group.round_one([1, 2, 3], b"message")
    first, second, third = package.commitments
    for commitments, says in [
        ((), "needs commitments"),
        ((second, first, third), "ascend"),
        ((first, first, third), "ascend"),
        ((replace(first, identifier=0), second), "identifier 0"),
    ]:
        bad = replace(package, commitments=commitments)
        with pytest.raises(FrostError, match=says):
            bind(bad, group.public_key)
        with pytest.raises(FrostError, match=says):
            group.aggregate(bad, {each.identifier: bytes(32) for each in commitments})


@pytest.mark.parametrize("culprits", [{1}, {2}, {1, 3}, {1, 2, 3}])
def test_wrong_shares_name_exactly_who_sent_them(group: Dealt, culprits: set[int]) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    shares = group.round_two(package, nonces)
    for each in culprits:
        shares[each] = add(Scalar(shares[each]), public_scalar(each))
    with pytest.raises(FrostError) as caught:
        group.aggregate(package, shares)
    assert caught.value.culprits == culprits


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), bytes(32), ORDER.to_bytes(32, "little"), b"\xff" * 32])
def test_a_malformed_share_names_its_sender(group: Dealt, bad: bytes) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    shares = {**group.round_two(package, nonces), 2: bad}
    with pytest.raises(FrostError) as caught:
        group.aggregate(package, shares)
    assert caught.value.culprits == {2}


def test_an_unreduced_share_is_not_silently_accepted(group: Dealt) -> None:
    """libsodium would reduce it and the signature would verify: two encodings of one share."""
    package, nonces = group.round_one([1, 2, 3], b"message")
    shares = group.round_two(package, nonces)
    shares[2] = (int.from_bytes(shares[2], "little") + ORDER).to_bytes(32, "little")
    with pytest.raises(FrostError) as caught:
        group.aggregate(package, shares)
    assert caught.value.culprits == {2}


def test_shares_for_another_message_are_named(group: Dealt) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    other = replace(package, message=b"another")
    shares = {
        each: round_two.sign(other if each == 2 else package, nonces[each], group.shares[each]) for each in nonces
    }
    with pytest.raises(FrostError) as caught:
        group.aggregate(package, shares)
    assert caught.value.culprits == {2}


def test_shares_must_come_from_the_quorum(group: Dealt) -> None:
    package, nonces = group.round_one([1, 2, 3], b"message")
    shares = group.round_two(package, nonces)
    for wrong in [{each: shares[each] for each in (1, 2)}, {**shares, 4: shares[1]}]:
        with pytest.raises(FrostError, match="exactly the participants"):
            group.aggregate(package, wrong)


@given(quorum=st.sets(st.integers(1, 200), min_size=1, max_size=8), secret=st.integers(1, ORDER - 1))
def test_lagrange_weights_recover_a_constant(quorum: set[int], secret: int) -> None:
    """The polynomial x -> secret + x, interpolated at zero, is the secret (for two points or more)."""
    ordered = sorted(quorum)
    weights = [int.from_bytes(lagrange_coefficient(each, ordered), "little") for each in ordered]
    assert sum(weights) % ORDER == 1
    if len(ordered) > 1:
        values = [secret + each for each in ordered]
        assert sum(w * v for w, v in zip(weights, values, strict=True)) % ORDER == secret


def test_a_stranger_or_a_repeated_member_has_no_weight() -> None:
    for identifier, quorum in [(4, [1, 2, 3]), (1, [1, 1, 2])]:
        with pytest.raises(FrostError, match="no weight"):
            lagrange_coefficient(identifier, quorum)


def test_secrets_are_redacted_and_never_pickled_or_copied(group: Dealt) -> None:
    nonces = round_one.commit(1, group.shares[1].secret, os.urandom)
    polynomial = keygen.SecretPolynomial.generate(2, os.urandom)
    for secret in (nonces, group.shares[1], polynomial):
        assert "redacted" in repr(secret)
        assert "redacted" in f"{secret}"
        for escape in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="never pickled"):
                escape(secret)


def test_the_error_keeps_its_culprits_between_processes() -> None:
    error = pickle.loads(pickle.dumps(FrostError("who", culprits=[3, 1])))  # noqa: S301 - our own bytes
    assert str(error) == "who"
    assert error.culprits == {1, 3}


def test_a_nonce_mixes_randomness_with_the_share(group: Dealt) -> None:
    """A random source that repeats itself still gives different signers different nonces."""
    stuck = bytes(32)
    first = round_one.generate_nonce(group.shares[1].secret, lambda _: stuck)
    assert first != round_one.generate_nonce(group.shares[2].secret, lambda _: stuck)
    assert Element(scale_base(first)) == round_one.commit(1, group.shares[1].secret, lambda _: stuck).commitment.hiding
