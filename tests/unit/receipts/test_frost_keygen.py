"""Distributed key generation: honest runs agree, and each way of cheating names the cheat."""

import os
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.frost import keygen
from receipts.frost.ciphersuite import (
    ORDER,
    Element,
    Scalar,
    add,
    public_scalar,
    scale,
    scale_base,
    subtract_elements,
    sum_elements,
)
from receipts.frost.errors import FrostError
from receipts.frost.signing_package import lagrange_coefficient


def run(threshold: int, members: int) -> tuple[Mapping[int, keygen.KeyShare], keygen.GroupKey]:
    """An honest run among ``members`` participants."""
    everyone = range(1, members + 1)
    polynomials = {each: keygen.SecretPolynomial.generate(threshold, os.urandom) for each in everyone}
    commitments = {each: polynomials[each].commit() for each in everyone}
    for each in everyone:
        proof = polynomials[each].prove_possession(each, os.urandom)
        keygen.check_commitments(each, commitments[each], proof, threshold)
    group = keygen.group_key(commitments)
    shares = {}
    for recipient in everyone:
        received = {
            sender: keygen.check_received_share(
                sender, recipient, polynomials[sender].share_for(recipient), commitments[sender]
            )
            for sender in everyone
        }
        shares[recipient] = keygen.combine(recipient, threshold, received, group)
    return shares, group


@settings(max_examples=15, deadline=None)
@given(sizes=st.integers(2, 6).flatmap(lambda members: st.tuples(st.integers(2, members), st.just(members))))
def test_any_quorum_of_shares_is_the_key(sizes: tuple[int, int]) -> None:
    threshold, members = sizes
    shares, group = run(threshold, members)
    keygen.check_group_key(threshold, group)
    for quorum in (list(range(1, threshold + 1)), list(range(members - threshold + 1, members + 1))):
        # Only a test ever adds shares up: here to see that they make the key of the public element.
        terms = [
            int.from_bytes(lagrange_coefficient(each, quorum), "little") * int.from_bytes(shares[each].secret, "little")
            for each in quorum
        ]
        assert scale_base(public_scalar(sum(terms) % ORDER)) == group.public_key


def published(identifier: int = 2, threshold: int = 3) -> tuple[tuple[Element, ...], bytes]:
    polynomial = keygen.SecretPolynomial.generate(threshold, os.urandom)
    return polynomial.commit(), polynomial.prove_possession(identifier, os.urandom)


def refused(identifier: int, commitments: object, proof: bytes, threshold: int = 3) -> None:
    with pytest.raises(FrostError) as caught:
        keygen.check_commitments(identifier, commitments, proof, threshold)  # type: ignore[arg-type]
    assert caught.value.culprits == {identifier}


def test_a_proof_serves_one_identifier_only() -> None:
    """Otherwise a participant could publish another's commitments as its own and cancel them out."""
    commitments, proof = published(identifier=2)
    keygen.check_commitments(2, commitments, proof, 3)
    refused(3, commitments, proof)


def test_a_rogue_key_has_no_proof() -> None:
    """A commitment chosen to cancel the others' out: its owner cannot know the constant term."""
    others, _ = published(identifier=1)
    mine, proof = published(identifier=2)
    rogue = subtract_elements(mine[0], others[0])
    refused(2, (rogue, *mine[1:]), proof)


@settings(deadline=None)
@given(bit=st.integers(0, 511))
def test_each_bit_of_a_proof_counts(bit: int) -> None:
    commitments, proof = published()
    changed = bytearray(proof)
    changed[bit // 8] ^= 1 << bit % 8
    refused(2, commitments, bytes(changed))


def test_malformed_publications_name_their_sender() -> None:
    commitments, proof = published()
    identity = public_scalar(1)
    refused(2, commitments[:2], proof)
    refused(2, (*commitments, commitments[0]), proof)
    refused(2, (commitments[0], identity, commitments[2]), proof)
    refused(2, (identity, *commitments[1:]), proof)
    refused(2, (b"short", *commitments[1:]), proof)
    refused(2, commitments, proof[:-1])
    refused(2, commitments, proof[:32] + bytes(32))
    refused(2, commitments, proof[:32] + ORDER.to_bytes(32, "little"))


def test_a_share_that_was_not_committed_to_names_its_sender() -> None:
    polynomial = keygen.SecretPolynomial.generate(3, os.urandom)
    commitments = polynomial.commit()
    good = polynomial.share_for(5)
    assert keygen.check_received_share(4, 5, good, commitments) == good
    wrong = [add(good, public_scalar(1)), polynomial.share_for(1), bytes(32), b"", ORDER.to_bytes(32, "little")]
    for share in wrong:
        with pytest.raises(FrostError) as caught:
            keygen.check_received_share(4, 5, share, commitments)
        assert caught.value.culprits == {4}


def test_a_verifying_share_of_another_group_is_named() -> None:
    _, group = run(3, 5)
    _, other = run(3, 5)
    for stranger in (4, 5):
        mixed = keygen.GroupKey(
            public_key=group.public_key,
            verifying_shares={**group.verifying_shares, stranger: other.verifying_shares[stranger]},
        )
        with pytest.raises(FrostError) as caught:
            keygen.check_group_key(3, mixed)
        assert caught.value.culprits == {stranger}


def test_shares_that_do_not_make_the_verifying_share_are_refused() -> None:
    shares, group = run(2, 3)
    received = {1: shares[1].secret, 2: public_scalar(1)}
    with pytest.raises(FrostError, match="do not make its key share"):
        keygen.combine(1, 2, received, group)


def test_commitments_that_cancel_out_make_no_group() -> None:
    first = keygen.SecretPolynomial.generate(2, os.urandom).commit()
    minus_one = Scalar((ORDER - 1).to_bytes(32, "little"))
    cancelling = tuple(scale(minus_one, each) for each in first)
    assert sum_elements([first[0], cancelling[0]]) == public_scalar(1)
    with pytest.raises(FrostError, match="not a valid element"):
        keygen.group_key({1: first, 2: cancelling})


@pytest.mark.parametrize("coefficients", [[], [bytes(32)], [ORDER.to_bytes(32, "little")], [b"short"]])
def test_a_polynomial_needs_canonical_non_zero_coefficients(coefficients: list[bytes]) -> None:
    with pytest.raises(FrostError):
        keygen.SecretPolynomial(coefficients)
