"""Signing in batches gives what the plain functions of the RFC give, byte for byte, errors included."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from receipts.frost import keygen, round_one, round_two
from receipts.frost.aggregate import aggregate
from receipts.frost.batch import aggregate_batch, sign_batch
from receipts.frost.ciphersuite import ORDER, Scalar, add, public_scalar, scale_base
from receipts.frost.errors import FrostError
from receipts.frost.round_one import NonceCommitment, SigningNonces
from receipts.frost.signing_package import SigningPackage

ORDER_EIGHT = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


class Dealt:
    """Five shares of which three sign, dealt by the test."""

    def __init__(self) -> None:
        polynomial = keygen.SecretPolynomial.generate(3, os.urandom)
        self.public_key = polynomial.commit()[0]
        self.shares = {
            each: keygen.KeyShare(
                identifier=each, threshold=3, secret=polynomial.share_for(each), public_key=self.public_key
            )
            for each in range(1, 6)
        }
        self.verifying_shares = {each: scale_base(share.secret) for each, share in self.shares.items()}

    def commit(self, identifier: int, seed: bytes) -> SigningNonces:
        """The same nonces for the same seed, so that two functions can be given the same."""
        drawn = iter((seed + b"hiding".ljust(16, b"\0"), seed + b"binding".ljust(16, b"\0")))
        return round_one.commit(identifier, self.shares[identifier].secret, lambda _: next(drawn))

    def package(self, quorum: tuple[int, ...], message: bytes, seed: bytes) -> SigningPackage:
        commitments = tuple(self.commit(each, seed).commitment for each in sorted(quorum))
        return SigningPackage(message=message, commitments=commitments)

    def plain(self, package: SigningPackage, identifier: int, seed: bytes) -> bytes | str:
        try:
            return round_two.sign(package, self.commit(identifier, seed), self.shares[identifier])
        except FrostError as error:
            return f"{error} {sorted(error.culprits)}"

    def batched(self, packages: list[SigningPackage], identifier: int, seeds: list[bytes]) -> list[bytes | str]:
        nonces = [self.commit(identifier, seed) for seed in seeds]
        made = sign_batch(packages, nonces, self.shares[identifier])
        for each in nonces:
            with pytest.raises(FrostError, match="already used"):
                each.take()
        return [f"{each} {sorted(each.culprits)}" if isinstance(each, FrostError) else each for each in made]

    def aggregated(self, package: SigningPackage, shares: dict[int, bytes]) -> bytes | str:
        try:
            return aggregate(package, shares, public_key=self.public_key, verifying_shares=self.verifying_shares)
        except FrostError as error:
            return f"{error} {sorted(error.culprits)}"

    def aggregated_batch(self, packages: list[SigningPackage], shares: list[dict[int, bytes]]) -> list[bytes | str]:
        made = aggregate_batch(packages, shares, public_key=self.public_key, verifying_shares=self.verifying_shares)
        return [f"{each} {sorted(each.culprits)}" if isinstance(each, FrostError) else each for each in made]


@pytest.fixture(scope="module")
def group() -> Dealt:
    return Dealt()


quorums = st.permutations(range(1, 6)).flatmap(
    lambda order: st.integers(3, 5).map(lambda size: tuple(sorted(order[:size])))
)
seeds = st.binary(min_size=16, max_size=16)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(quorums, st.binary(max_size=200), seeds), min_size=1, max_size=4))
def test_shares_and_signatures_are_those_of_the_plain_functions(
    group: Dealt, asked: list[tuple[tuple[int, ...], bytes, bytes]]
) -> None:
    packages = [group.package(*each) for each in asked]
    shares: list[dict[int, bytes]] = [{} for _ in asked]
    for identifier in group.shares:
        mine = [place for place, (quorum, _, _) in enumerate(asked) if identifier in quorum]
        made = group.batched([packages[place] for place in mine], identifier, [asked[place][2] for place in mine])
        for place, share in zip(mine, made, strict=True):
            assert share == group.plain(packages[place], identifier, asked[place][2])
            assert isinstance(share, bytes)
            shares[place][identifier] = share
    signatures = group.aggregated_batch(packages, shares)
    for package, of_this, signature in zip(packages, shares, signatures, strict=True):
        assert signature == group.aggregated(package, of_this)
        VerifyKey(group.public_key).verify(package.message, signature)


SEED = bytes(range(16))


def spoil_hiding(package: SigningPackage, value: bytes, place: int = 1) -> SigningPackage:
    commitments = list(package.commitments)
    commitments[place] = replace(commitments[place], hiding=value)
    return replace(package, commitments=tuple(commitments))


def spoil_binding(package: SigningPackage, value: bytes) -> SigningPackage:
    commitments = list(package.commitments)
    commitments[1] = replace(commitments[1], binding=value)
    return replace(package, commitments=tuple(commitments))


SPOILED: list[Callable[[SigningPackage], SigningPackage]] = [
    lambda package: spoil_hiding(package, bytes(32)),
    lambda package: spoil_hiding(package, ORDER_EIGHT),
    lambda package: spoil_hiding(package, b"short"),
    lambda package: spoil_hiding(package, b"\xff" * 32),
    lambda package: spoil_hiding(package, scale_base(public_scalar(5)), place=0),
    lambda package: spoil_binding(package, bytes(32)),
    lambda package: spoil_binding(package, ORDER_EIGHT),
    lambda package: spoil_binding(package, b"short"),
    lambda package: replace(package, commitments=package.commitments[:2]),
    lambda package: replace(package, commitments=package.commitments[::-1]),
    lambda package: replace(package, commitments=(*package.commitments, package.commitments[2])),
    lambda package: replace(package, commitments=()),
    lambda package: replace(
        package, commitments=(*package.commitments, NonceCommitment(identifier=70_000, hiding=b"", binding=b""))
    ),
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_package_is_refused_with_the_same_words_and_culprits(group: Dealt, spoil) -> None:
    good = group.package((1, 2, 3), b"message", SEED)
    wrong = spoil(good)
    expected = group.plain(wrong, 1, SEED)
    assert isinstance(expected, str)
    assert group.batched([good, wrong, good], 1, [SEED] * 3) == [
        group.plain(good, 1, SEED),
        expected,
        group.plain(good, 1, SEED),
    ]


def test_used_nonces_give_nothing(group: Dealt) -> None:
    package = group.package((1, 2, 3), b"message", SEED)
    nonces = group.commit(1, SEED)
    first, second = sign_batch([package, package], [nonces, nonces], group.shares[1])
    assert isinstance(first, bytes)
    assert isinstance(second, FrostError)


def test_wrong_shares_and_commitments_are_told_as_the_plain_function_tells_them(group: Dealt) -> None:
    package = group.package((1, 2, 3), b"message", SEED)
    good = {each: group.plain(package, each, SEED) for each in (1, 2, 3)}
    off_by_one = {**good, 2: add(Scalar(good[2]), public_scalar(1))}
    cases = [
        (package, good),
        (package, off_by_one),
        (package, {**off_by_one, 3: add(Scalar(good[3]), public_scalar(ORDER - 1))}),
        (package, {**good, 3: b"short"}),
        (package, {**good, 3: b"\xff" * 32}),
        (package, {1: good[1], 2: good[2]}),
        *((spoil(package), good) for spoil in SPOILED),
    ]
    results = group.aggregated_batch([each for each, _ in cases], [each for _, each in cases])
    assert isinstance(results[0], bytes)
    assert sum(isinstance(each, bytes) for each in results) == 2, "errors in the others, but two that cancel out"
    assert results[1] == "wrong signature shares from [2] [2]"
    assert results == [group.aggregated(*each) for each in cases]
