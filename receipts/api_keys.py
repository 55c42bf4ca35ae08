"""API keys: what is known of one, and what makes and finds it. The secret itself is seen once, when it is made."""

import base64
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from pydantic import StringConstraints, TypeAdapter, ValidationError

from receipts.errors import LedgerError

API_KEY_PREFIX: Final = "jc_LIVE_"
MOST_LIVE_KEYS: Final = 1000
"""Of one account: all live keys of all accounts are in the memory of the ledger's process."""

_API_KEY_BYTES: Final = 32
_ID_HEX_DIGITS: Final = 16
_KEY_NAME: Final[TypeAdapter[str]] = TypeAdapter(
    Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
)


class Scope(StrEnum):
    """What a key may be for: run models; read what its account has; deploy; manage keys, money and budgets."""

    INFERENCE = "inference"
    READ = "read"
    DEPLOY = "deploy"
    BILLING_ADMIN = "billing-admin"


SCOPES: Final = tuple(scope.value for scope in Scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secret. Times are in ns since 1970; one that expires opens nothing from that moment on."""

    key_id: str
    account: str
    name: str
    scopes: tuple[str, ...]
    created_unix_ns: int
    expires_unix_ns: int | None
    revoked_unix_ns: int | None

    def is_live(self, now_ns: int) -> bool:
        """Whether it opens its account at that moment."""
        return self.revoked_unix_ns is None and (self.expires_unix_ns is None or now_ns < self.expires_unix_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made, with its secret, which is kept nowhere."""

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        """Without the secret: what is printed or logged is no place for it."""
        return f"NewKey(key={self.key!r}, secret=…)"


def new_secret(random_bytes: Callable[[int], bytes]) -> str:
    """A secret of 256 random bits."""
    written = base64.urlsafe_b64encode(random_bytes(_API_KEY_BYTES)).rstrip(b"=")
    return API_KEY_PREFIX + written.decode("ascii")


def key_hash(secret: str) -> bytes:
    """By what a key is kept and found. Plain SHA-256 is enough: with 256 random bits there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def key_id_of_hash(key_sha256: bytes) -> str:
    """A key's id, which says nothing about the key: the beginning of a hash of its hash."""
    return f"key_{hashlib.sha256(key_sha256).hexdigest()[:_ID_HEX_DIGITS]}"


def checked_key_name(name: str) -> str:
    """The name, if a key may have it.

    Raises:
        LedgerError: it is no line of at most 256 characters.
    """
    try:
        return _KEY_NAME.validate_python(name, strict=True)
    except ValidationError as error:
        raise LedgerError("a key's name is a line of at most 256 characters") from error


def checked_scopes(scopes: Collection[str]) -> tuple[str, ...]:
    """The scopes, each once, in the order of `SCOPES`.

    Raises:
        LedgerError: there are none, or one is unknown.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        named = f"there is no scope {unknown[0][:64]!r}" if unknown else "a key has one scope at least"
        raise LedgerError(f"{named}; known are {', '.join(SCOPES)}")
    return tuple(each for each in SCOPES if each in scopes)
