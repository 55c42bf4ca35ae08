"""FROST(Ed25519, SHA-512) against published vectors: RFC 9591 appendix E.1, and ZcashFoundation/frost's DKG."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.signing import VerifyKey

from receipts.frost import keygen, round_one, round_two
from receipts.frost.aggregate import aggregate
from receipts.frost.ciphersuite import Element, Scalar, decode_element, decode_scalar, scale_base
from receipts.frost.signing_package import SigningPackage, bind, binding_factor_inputs

RFC_VECTOR = Path(__file__).parent / "data" / "rfc9591-frost-ed25519-sha512.json"
DKG_VECTOR = Path(__file__).parents[2].parent / "shared" / "vectors" / "frost-ed25519-dkg.json"


class Rfc:
    """The appendix, with the run of our code that it describes."""

    def __init__(self) -> None:
        document = json.loads(RFC_VECTOR.read_text())
        inputs = document["inputs"]
        self.message = bytes.fromhex(inputs["message"])
        self.secret_key = bytes.fromhex(inputs["group_secret_key"])
        self.public_key = bytes.fromhex(inputs["group_public_key"])
        self.coefficients = [bytes.fromhex(each) for each in inputs["share_polynomial_coefficients"]]
        self.shares = {
            each["identifier"]: decode_scalar(bytes.fromhex(each["participant_share"]))
            for each in inputs["participant_shares"]
        }
        self.round_one = {each["identifier"]: each for each in document["round_one_outputs"]["outputs"]}
        self.round_two = {each["identifier"]: each for each in document["round_two_outputs"]["outputs"]}
        self.signature = bytes.fromhex(document["final_output"]["sig"])
        self.threshold = int(document["config"]["MIN_PARTICIPANTS"])

    def nonces(self, identifier: int) -> round_one.SigningNonces:
        output = self.round_one[identifier]
        random = replay(output["hiding_nonce_randomness"], output["binding_nonce_randomness"])
        return round_one.commit(identifier, self.shares[identifier], random)

    def package(self) -> SigningPackage:
        commitments = tuple(self.nonces(each).commitment for each in sorted(self.round_one))
        return SigningPackage(message=self.message, commitments=commitments)

    def key_share(self, identifier: int) -> keygen.KeyShare:
        return keygen.KeyShare(
            identifier=identifier,
            threshold=self.threshold,
            secret=self.shares[identifier],
            public_key=decode_element(self.public_key),
        )

    def signature_shares(self) -> dict[int, Scalar]:
        package = self.package()
        return {each: round_two.sign(package, self.nonces(each), self.key_share(each)) for each in package.identifiers}


def replay(*outputs: str) -> Callable[[int], bytes]:
    """A random source that gives these values (hex), once each."""
    left = [bytes.fromhex(each) for each in outputs]

    def random_bytes(count: int) -> bytes:
        value = left.pop(0)
        assert len(value) == count
        return value

    return random_bytes


@pytest.fixture
def rfc() -> Rfc:
    return Rfc()


def test_the_group_key_and_shares_come_from_the_polynomial(rfc: Rfc) -> None:
    polynomial = keygen.SecretPolynomial([rfc.secret_key, *rfc.coefficients])
    assert polynomial.commit()[0] == rfc.public_key
    assert {each: polynomial.share_for(each) for each in rfc.shares} == rfc.shares


@pytest.mark.parametrize("identifier", [1, 3])
def test_round_one_nonces(rfc: Rfc, identifier: int) -> None:
    output = rfc.round_one[identifier]
    hiding, binding = rfc.nonces(identifier).take()
    assert hiding.hex() == output["hiding_nonce"]
    assert binding.hex() == output["binding_nonce"]


@pytest.mark.parametrize("identifier", [1, 3])
def test_round_one_commitments(rfc: Rfc, identifier: int) -> None:
    output = rfc.round_one[identifier]
    commitment = rfc.nonces(identifier).commitment
    assert commitment.hiding.hex() == output["hiding_nonce_commitment"]
    assert commitment.binding.hex() == output["binding_nonce_commitment"]


@pytest.mark.parametrize("identifier", [1, 3])
def test_round_one_binding_factors(rfc: Rfc, identifier: int) -> None:
    output = rfc.round_one[identifier]
    package = rfc.package()
    assert binding_factor_inputs(package, rfc.public_key)[identifier].hex() == output["binding_factor_input"]
    assert bind(package, rfc.public_key).factors[identifier].hex() == output["binding_factor"]


def test_the_group_commitment_is_the_first_half_of_the_signature(rfc: Rfc) -> None:
    assert bind(rfc.package(), rfc.public_key).group_commitment == rfc.signature[:32]


@pytest.mark.parametrize("identifier", [1, 3])
def test_round_two_signature_shares(rfc: Rfc, identifier: int) -> None:
    assert rfc.signature_shares()[identifier].hex() == rfc.round_two[identifier]["sig_share"]


def test_the_signature_and_two_other_libraries_on_it(rfc: Rfc) -> None:
    signature = aggregate(
        rfc.package(),
        rfc.signature_shares(),
        public_key=rfc.public_key,
        verifying_shares={each: scale_base(share) for each, share in rfc.shares.items()},
    )
    assert signature == rfc.signature
    VerifyKey(rfc.public_key).verify(rfc.message, signature)
    Ed25519PublicKey.from_public_bytes(rfc.public_key).verify(signature, rfc.message)


@pytest.fixture
def dkg() -> dict[int, dict[str, object]]:
    if not DKG_VECTOR.exists():
        pytest.skip(f"the DKG vector is not at {DKG_VECTOR}")
    inputs = json.loads(DKG_VECTOR.read_text())["inputs"]
    group = {"secret": inputs["secret"], "verifying_key": inputs["verifying_key"]}
    return {0: group, **{identifier: inputs[str(identifier)] for identifier in (1, 2, 3)}}


def hex_of(participant: dict[str, object], name: str) -> bytes:
    return bytes.fromhex(str(participant[name]))


def hex_list(participant: dict[str, object], name: str) -> list[bytes]:
    texts = participant[name]
    assert isinstance(texts, list)
    return [bytes.fromhex(each) for each in texts]


@pytest.mark.parametrize("identifier", [1, 2, 3])
def test_dkg_round_one(dkg: dict[int, dict[str, object]], identifier: int) -> None:
    vector = dkg[identifier]
    polynomial = keygen.SecretPolynomial([hex_of(vector, "signing_key"), hex_of(vector, "coefficient")])
    commitments = hex_list(vector, "vss_commitments")
    assert list(polynomial.commit()) == commitments
    keygen.check_commitments(identifier, commitments, hex_of(vector, "proof_of_knowledge"), threshold=2)


@pytest.mark.parametrize("identifier", [1, 2, 3])
def test_dkg_round_two_and_outcome(dkg: dict[int, dict[str, object]], identifier: int) -> None:
    vector = dkg[identifier]
    commitments = {each: [Element(c) for c in hex_list(dkg[each], "vss_commitments")] for each in (1, 2, 3)}
    received_texts = vector["signing_shares"]
    assert isinstance(received_texts, dict)
    received = {
        int(sender): keygen.check_received_share(int(sender), identifier, bytes.fromhex(text), commitments[int(sender)])
        for sender, text in received_texts.items()
    }
    for sender, share in received.items():
        theirs = dkg[sender]
        polynomial = keygen.SecretPolynomial([hex_of(theirs, "signing_key"), hex_of(theirs, "coefficient")])
        assert polynomial.share_for(identifier) == share
    own = keygen.SecretPolynomial([hex_of(vector, "signing_key"), hex_of(vector, "coefficient")])
    received[identifier] = own.share_for(identifier)
    group = keygen.group_key(commitments)
    assert group.public_key == hex_of(dkg[0], "verifying_key")
    assert group.verifying_shares[identifier] == hex_of(vector, "verifying_share")
    share = keygen.combine(identifier, 2, received, group)
    assert share.secret == hex_of(vector, "signing_share")
    keygen.check_group_key(2, group)
