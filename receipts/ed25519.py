"""Ed25519 as the receipts room uses it: one strict verifier, and the name of a key."""

import hashlib

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``public_key``'s Ed25519 signature over ``message``; never raises.

    The rule is libsodium's, which is stricter than RFC 8032 demands: S below the group order, a key and an
    R that are canonically encoded and not of small order, and the cofactorless equation. Two honest verifiers
    that differ on such corner cases would disagree about a receipt, so there is one rule, and it is this one.
    """
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public_key).verify(message, signature)
    except BadSignatureError:
        return False
    return True


def key_id_of(public_key: bytes) -> str:
    """The short name of a public key on receipts: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]
