"""A signer's secrets at rest: files of mode 0600, sealed under a share secret that lives elsewhere."""

import hashlib
import json
import stat
from pathlib import Path

from nacl.bindings import sodium_memcmp
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from receipts.durable_file import replace_file
from receipts.frost.ciphersuite import RandomBytes
from receipts.frost.secrecy import Redacted
from receipts.signing_errors import ShareUnusable

SHARE_SECRET_BYTES = 32
_FORMAT = "joule-mesh.sealed/v1"
_FILE_MODE = 0o600
_MAX_FILE_BYTES = 1 << 20


class Vault(Redacted):
    """Reads and writes the sealed files in one signer's own folder.

    Each file has its own key: keyed BLAKE2b of the file's name and the signer's identifier. The share secret
    is 32 random bytes, not a password, so a slow derivation such as Argon2 would add nothing. A check value,
    another BLAKE2b output, lies beside the sealed bytes: it tells a wrong secret from a damaged file.
    """

    __slots__ = ("_folder", "_identifier", "_random_bytes", "_share_secret")

    def __init__(self, *, folder: Path, identifier: int, share_secret: bytes, random_bytes: RandomBytes) -> None:
        """Open the folder, creating it with mode 0700.

        Raises:
            ShareUnusable: no share secret, or one of a wrong length.
        """
        if not share_secret:
            raise ShareUnusable(f"signer {identifier}: the share secret is missing")
        if len(share_secret) != SHARE_SECRET_BYTES:
            raise ShareUnusable(
                f"signer {identifier}: the share secret has {len(share_secret)} bytes, "
                f"not {SHARE_SECRET_BYTES} random ones"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._identifier = identifier
        self._share_secret = share_secret
        self._random_bytes = random_bytes

    def read(self, name: str) -> bytes | None:
        """The content of a sealed file, or None when there is no such file.

        Raises:
            ShareUnusable: other users can read the file; it is damaged; it is another signer's; or the share
                secret is not the one that it was sealed under.
        """
        path = self._path(name)
        try:
            mode = path.stat().st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise ShareUnusable(f"{path} can be read by other users; run: chmod 600 {path}")
            with path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        identifier, secret_check, sealed = _parse(path, name, data)
        if identifier != self._identifier:
            raise ShareUnusable(f"{path} belongs to signer {identifier}, not to signer {self._identifier}")
        key = self._file_key(name)
        if not sodium_memcmp(secret_check, _check_value(key)):
            raise ShareUnusable(
                f"{path} was sealed under another share secret than the one given; start with the one it was made with"
            )
        try:
            return SecretBox(key).decrypt(sealed)
        except (CryptoError, ValueError) as error:
            raise _damaged(path) from error

    def write(self, name: str, content: bytes) -> None:
        """Seal ``content`` into a file; durable on return.

        Raises:
            OSError: the folder is full or not writable.
        """
        key = self._file_key(name)
        sealed = SecretBox(key).encrypt(content, self._random_bytes(SecretBox.NONCE_SIZE))
        body = {
            "format": _FORMAT,
            "name": name,
            "identifier": self._identifier,
            "secret_check": _check_value(key).hex(),
            "sealed": bytes(sealed).hex(),
        }
        data = json.dumps({**body, "sha256": _checksum(body)}).encode()
        replace_file(self._path(name), data, mode=_FILE_MODE)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.sealed"

    def _file_key(self, name: str) -> bytes:
        purpose = f"{name}/{self._identifier}".encode()
        return hashlib.blake2b(
            purpose, key=self._share_secret, person=b"jm signer file", digest_size=SecretBox.KEY_SIZE
        ).digest()


def _check_value(key: bytes) -> bytes:
    return hashlib.blake2b(key=key, person=b"jm secret check", digest_size=16).digest()


def _checksum(body: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _damaged(path: Path) -> ShareUnusable:
    return ShareUnusable(f"{path} is damaged; restore it from a copy")


def _parse(path: Path, name: str, data: bytes) -> tuple[int, bytes, bytes]:
    """The identifier, check value and sealed bytes, once the checksum says that nothing was damaged."""
    try:
        body = json.loads(data)
        checksum = body.pop("sha256")
        if body["format"] != _FORMAT or body["name"] != name or checksum != _checksum(body):
            raise _damaged(path)
        return int(body["identifier"]), bytes.fromhex(body["secret_check"]), bytes.fromhex(body["sealed"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
