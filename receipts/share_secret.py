"""Where a signer's share secret comes from: a file on another mount, or the environment of its node."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from receipts.frost.ciphersuite import RandomBytes
from receipts.signer_vault import SHARE_SECRET_BYTES
from receipts.signing_errors import ShareUnusable


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSecretSource:
    """Names one place; the secret itself is read at the signer's own node and never travels.

    The place holds 64 hex digits. Exactly one of the two is set. A secret beside the share that it seals
    protects a lost backup of the share's folder, and not a lost disk: that is fit for development only.
    """

    file: Path | None = None
    environment_variable: str | None = None

    def read(self, environment: Mapping[str, str]) -> bytes:
        """The secret, 32 bytes.

        Raises:
            ShareUnusable: nothing is there, or it is not 64 hex digits; the text never quotes it.
        """
        if (self.file is None) == (self.environment_variable is None):
            raise ShareUnusable("the share secret needs one source: a file or an environment variable")
        if self.environment_variable is not None:
            place = f"the environment variable {self.environment_variable}"
            text = environment.get(self.environment_variable)
        else:
            assert self.file is not None
            place = str(self.file)
            text = _read_file(self.file)
        if not text:
            raise ShareUnusable(f"the share secret is missing: {place} does not hold one")
        try:
            secret = bytes.fromhex(text.strip())
        except ValueError:
            secret = b""
        if len(secret) != SHARE_SECRET_BYTES:
            # "from None": the chained ValueError would quote a part of the secret.
            raise ShareUnusable(f"{place} does not hold {2 * SHARE_SECRET_BYTES} hex digits") from None
        return secret


def _read_file(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ShareUnusable(f"the share secret in {path} cannot be read") from error


def create_development_secret(path: Path, random_bytes: RandomBytes) -> None:
    """Write a random share secret to ``path``, mode 0600, unless there is one.

    Raises:
        OSError: the folder is missing or not writable.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(random_bytes(SHARE_SECRET_BYTES).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
