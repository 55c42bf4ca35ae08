"""The meter's own word: a signed statement for each settlement, chained so that none can be dropped or changed.

Signed bytes are the statement's canonical JSON: members in alphabetical order, no spaces, ASCII only, integers,
strings and null. Whoever reads one encodes it again and compares, so that a statement has one spelling. This is not
the encoder of `receipts.canonical`, which lies in a room above; on such values both give the same bytes.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from metering.errors import MeterKeyUnusable, StatementInvalid

STATEMENT_TYP: Final = "joule-mesh.meter-statement/v1"
_KEY_HEADER: Final = "joule-mesh.meter-key/v1"
_SEED_BYTES: Final = 32
_PUBLIC_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_SHA256_BYTES: Final = 32
_MOST_KEY_FILE_BYTES: Final = 4096
_MOST_STATEMENT_CHARACTERS: Final = 2048
_MOST_NAME_CHARACTERS: Final = 128
_MOST: Final = 2**63 - 1
# More statements than a meter can have made in the seconds that a power cut takes from its journal.
SKIPPED_AFTER_A_LOSS: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterStatement:
    """What a meter says of one settlement, and of all it has said before.

    ``meter`` is its public key, 64 hex digits. ``sequence`` counts from 1, and ``previous_sha256`` is the hash of the
    statement before, None for the first. ``microjoules`` were billed for this request, None when it isn't billed.
    ``charged_microjoules`` is the sum of all that was billed, this included; ``counted_microjoules`` is all that the
    host's counters have counted; ``open_ns`` is the age of the oldest interval that no counter has closed yet.
    """

    meter: str
    sequence: int
    previous_sha256: str | None
    request_id: str
    outcome: str
    microjoules: int | None
    charged_microjoules: int
    counted_microjoules: int
    open_ns: int

    def signed_bytes(self) -> bytes:
        """The canonical bytes that the meter signs."""
        document = {"typ": STATEMENT_TYP, **_members(self)}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    @property
    def sha256(self) -> str:
        """The hash of the signed bytes, 64 hex digits: the next statement's ``previous_sha256``."""
        return hashlib.sha256(self.signed_bytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStatement:
    """A statement as it travels: its canonical JSON, and the meter's signature over it, 128 hex digits.

    It may be anything that calls itself so; `check_statement` gives the statement in it.
    """

    statement: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """The end of a meter's chain: its last statement's number and hash, and what was billed until then."""

    sequence: int
    sha256: str
    charged_microjoules: int

    def after_a_loss(self) -> "ChainHead":
        """The head to go on from when statements made after it may have been lost, as by a power cut.

        Numbers that may have been used are skipped: no signer takes a second statement under one number.
        """
        return ChainHead(
            sequence=self.sequence + SKIPPED_AFTER_A_LOSS,
            sha256=self.sha256,
            charged_microjoules=self.charged_microjoules,
        )


class MeterKey:
    """A meter's Ed25519 key. It shows nothing of its secret and refuses to be copied or pickled."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        """``seed``: 32 random bytes."""
        self._key = SigningKey(seed)

    @classmethod
    def load_or_create(cls, path: Path, random_bytes: Callable[[int], bytes]) -> Self:
        """The key in this file, which is made with mode 0600 when there is none.

        Raises:
            MeterKeyUnusable: other users may read the file, it is damaged, or it cannot be read or made.
        """
        try:
            if not path.exists():
                _create(path, random_bytes(_SEED_BYTES))
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(_MOST_KEY_FILE_BYTES)
        except OSError as error:
            raise MeterKeyUnusable(f"the meter's key {path} cannot be read or made: {error.strerror}") from error
        if mode & 0o077:
            raise MeterKeyUnusable(f"{path} can be used by other users; run: chmod 600 {path}")
        lines = content.decode("ascii", "replace").split("\n")
        try:
            seed = bytes.fromhex(lines[1])
        except (ValueError, IndexError):
            seed = b""
        # "from None" by being outside of the handler: the ValueError would quote a part of the secret.
        if len(seed) != _SEED_BYTES or _key_file(seed) != content:
            raise MeterKeyUnusable(
                f"the meter's key {path} is damaged; restore it from a copy, or move it and the journal away: "
                "a new key is made then, and has to be enrolled with the signers"
            )
        return cls(seed)

    @property
    def public_key(self) -> bytes:
        """32 bytes, for everybody."""
        return bytes(self._key.verify_key)

    def sign(self, message: bytes) -> bytes:
        """The signature over these bytes, 64 bytes."""
        return bytes(self._key.sign(message).signature)

    def __repr__(self) -> str:
        return f"<MeterKey {self.public_key.hex()[:16]}, secret redacted>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("MeterKey holds a secret and is never pickled or copied")


class StatementChain:
    """Makes one statement after another. It keeps nothing: its owner records ``head`` with what was stated."""

    def __init__(self, key: MeterKey, head: ChainHead | None) -> None:
        """Go on after ``head``; None begins the chain of a key that has not signed yet."""
        self._key = key
        self._head = head

    @property
    def head(self) -> ChainHead | None:
        """The last statement, None before the first."""
        return self._head

    def state(
        self, *, request_id: str, outcome: str, microjoules: int | None, counted_microjoules: int, open_ns: int
    ) -> SignedStatement:
        """Make and sign the statement of one settlement; the arguments are those of `MeterStatement`."""
        before = self._head
        statement = MeterStatement(
            meter=self._key.public_key.hex(),
            sequence=before.sequence + 1 if before else 1,
            previous_sha256=before.sha256 if before else None,
            request_id=request_id,
            outcome=outcome,
            microjoules=microjoules,
            charged_microjoules=(before.charged_microjoules if before else 0) + (microjoules or 0),
            counted_microjoules=counted_microjoules,
            open_ns=open_ns,
        )
        signed_bytes = statement.signed_bytes()
        self._head = ChainHead(
            sequence=statement.sequence,
            sha256=hashlib.sha256(signed_bytes).hexdigest(),
            charged_microjoules=statement.charged_microjoules,
        )
        return SignedStatement(statement=signed_bytes.decode("ascii"), signature=self._key.sign(signed_bytes).hex())


def check_statement(signed: SignedStatement, public_key: bytes) -> MeterStatement:
    """The statement, if ``public_key`` (32 bytes) has signed it and it is well formed.

    Raises:
        StatementInvalid: it isn't signed by that key, not a statement of this version, or contradicts itself.
    """
    check_signature(signed, public_key)
    statement = read_statement(signed)
    if statement.meter != public_key.hex():
        raise StatementInvalid(f"it names the meter {statement.meter[:16]}…, and {public_key.hex()[:16]}… signed it")
    return statement


def check_signature(signed: SignedStatement, public_key: bytes) -> None:
    """Check that ``public_key`` (32 bytes) has signed it, whatever it says.

    The rule for signatures is libsodium's: canonical encodings only, no key or R of small order.

    Raises:
        StatementInvalid: it has not.
    """
    if not _is_signed(_signed_bytes(signed), signed.signature, public_key):
        raise StatementInvalid(f"it is not signed by the meter {public_key.hex()[:16]}…")


def read_statement(signed: SignedStatement) -> MeterStatement:
    """A statement that is well formed, whoever has signed it: it names the meter whose key to check it with.

    Raises:
        StatementInvalid: it is not a statement of this version, or contradicts itself.
    """
    return _parse(_signed_bytes(signed))


def _signed_bytes(signed: SignedStatement) -> bytes:
    if len(signed.statement) > _MOST_STATEMENT_CHARACTERS:
        raise StatementInvalid(f"it is longer than {_MOST_STATEMENT_CHARACTERS} characters")
    return signed.statement.encode("utf-8", "replace")


def _is_signed(signed_bytes: bytes, signature: str, public_key: bytes) -> bool:
    if not _is_hex(signature, _SIGNATURE_BYTES) or len(public_key) != _PUBLIC_KEY_BYTES:
        return False
    try:
        VerifyKey(public_key).verify(signed_bytes, bytes.fromhex(signature))
    except BadSignatureError:
        return False
    return True


def _parse(data: bytes) -> MeterStatement:
    try:
        document = json.loads(data)
        typ = document.pop("typ")
        statement = MeterStatement(**document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StatementInvalid("it is not a meter's statement") from error
    if typ != STATEMENT_TYP:
        raise StatementInvalid(f"it is of the type {str(typ)[:64]!r}, not {STATEMENT_TYP!r}")
    _check(statement)
    if statement.signed_bytes() != data:
        raise StatementInvalid("it is not in canonical form")
    return statement


def _check(statement: MeterStatement) -> None:
    """Types and ranges, which say that no member is of another kind, and what must agree within a statement."""
    values = _members(statement)
    for name in ("sequence", "charged_microjoules", "counted_microjoules", "open_ns", "microjoules"):
        value = values[name]
        if not (name == "microjoules" and value is None) and not (type(value) is int and 0 <= value <= _MOST):
            raise StatementInvalid(f"its {name} is not a whole number of 0 to 2^63 - 1")
    for name in ("request_id", "outcome"):
        if not (isinstance(values[name], str) and 1 <= len(values[name]) <= _MOST_NAME_CHARACTERS):
            raise StatementInvalid(f"its {name} is not a text of 1 to {_MOST_NAME_CHARACTERS} characters")
    if not _is_hex(statement.meter, _PUBLIC_KEY_BYTES):
        raise StatementInvalid("its meter is not a public key in 64 lower-case hex digits")
    if statement.previous_sha256 is not None and not _is_hex(statement.previous_sha256, _SHA256_BYTES):
        raise StatementInvalid("its previous_sha256 is not a hash in 64 lower-case hex digits")
    if statement.sequence < 1 or (statement.sequence == 1) != (statement.previous_sha256 is None):
        raise StatementInvalid("only the first statement, number 1, has no previous_sha256")
    if (statement.microjoules or 0) > statement.charged_microjoules:
        raise StatementInvalid("it bills more for the request than for all requests together")


def _members(statement: MeterStatement) -> Mapping[str, Any]:
    return {name: getattr(statement, name) for name in MeterStatement.__slots__}


def _is_hex(text: object, length_bytes: int) -> bool:
    """Whether it is so many bytes in lower-case hex digits, and nothing between them."""
    return isinstance(text, str) and len(text) == 2 * length_bytes and not text.strip("0123456789abcdef")


def _key_file(seed: bytes) -> bytes:
    """The public key stands beside the seed: a damaged seed would be another key."""
    public_key = bytes(SigningKey(seed).verify_key)
    return f"{_KEY_HEADER}\n{seed.hex()}\n{public_key.hex()}\n".encode("ascii")


def _create(path: Path, seed: bytes) -> None:
    """Write a new key file, whole and on the disk when this returns; one that another has made meanwhile stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_key_file(seed))
        file.flush()
        os.fsync(file.fileno())
    try:
        # Not a rename, which would put a second key over the first.
        path.hardlink_to(beside)
    except FileExistsError:
        pass
    finally:
        beside.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
