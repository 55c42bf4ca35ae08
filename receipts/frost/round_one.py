"""Round one of signing: nonces and the commitments to them (RFC 9591, sections 4.1 and 5.1)."""

from dataclasses import dataclass

from receipts.frost.ciphersuite import RandomBytes, Scalar, h3, is_zero, scale_base
from receipts.frost.errors import FrostError
from receipts.frost.secrecy import Redacted

_NONCE_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class NonceCommitment:
    """What a participant publishes in round one: 32 bytes each. Untrusted until the package is bound."""

    identifier: int
    hiding: bytes
    binding: bytes


class SigningNonces(Redacted):
    """The two secrets behind one commitment. They serve for one signature share and are gone after it.

    Two shares from one pair of nonces over different messages give the key share away by subtraction,
    so the pair cannot be read, only taken, once.
    """

    __slots__ = ("_pair", "commitment")

    def __init__(self, *, identifier: int, hiding: Scalar, binding: Scalar) -> None:
        self._pair: tuple[Scalar, Scalar] | None = (hiding, binding)
        self.commitment = NonceCommitment(identifier=identifier, hiding=scale_base(hiding), binding=scale_base(binding))

    def take(self) -> tuple[Scalar, Scalar]:
        """Hand out (hiding, binding) and forget them.

        Raises:
            FrostError: they were taken before.
        """
        pair, self._pair = self._pair, None
        if pair is None:
            raise FrostError("these nonces were already used")
        return pair


def generate_nonce(secret: Scalar, random_bytes: RandomBytes) -> Scalar:
    """RFC 9591 nonce_generate: randomness and the key share hashed together.

    The share is mixed in so that a weak random source alone does not make the nonce guessable.
    """
    while True:
        nonce = h3(random_bytes(_NONCE_RANDOM_BYTES) + secret)
        if not is_zero(nonce):
            return nonce


def commit(identifier: int, secret: Scalar, random_bytes: RandomBytes) -> SigningNonces:
    """Make one pair of nonces; ``.commitment`` is what to publish.

    ``secret`` is the participant's key share; ``random_bytes`` is asked twice for 32 bytes, hiding first.
    """
    hiding = generate_nonce(secret, random_bytes)
    binding = generate_nonce(secret, random_bytes)
    return SigningNonces(identifier=identifier, hiding=hiding, binding=binding)
