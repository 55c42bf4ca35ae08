"""Which signers are out because they broke the protocol: a note beside the group's record, until a person lifts it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from receipts.durable_file import replace_file
from receipts.signing_errors import SigningError

_FILE: Final = "excluded-signers.json"
_MODE: Final = 0o644


class Exclusions:
    """Excluded signers by number, each with what it did.

    A coordinator that forgot them at its restart would take the same signer back and be held up again; and nobody
    would ever look at it.
    """

    def __init__(self, path: Path, reasons: dict[int, str]) -> None:
        self._path = path
        self._reasons = reasons

    @classmethod
    def beside(cls, record_path: Path) -> "Exclusions":
        """Those noted beside the group's record; none where there is no note.

        Raises:
            SigningError: the note cannot be read.
        """
        path = record_path.with_name(_FILE)
        try:
            reasons = {int(each): str(why) for each, why in json.loads(path.read_bytes()).items()}
        except FileNotFoundError:
            reasons = {}
        except (OSError, ValueError, AttributeError) as error:
            raise SigningError(f"{path} cannot be read ({error}); remove it to take all signers back") from error
        return cls(path, reasons)

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why each is out, by number."""
        return MappingProxyType(self._reasons)

    def add(self, identifier: int, why: str) -> None:
        """Exclude a signer, from now on and after a restart.

        Raises:
            OSError: the note could not be written; it is out until the restart.
        """
        self._reasons[identifier] = why
        self._write()

    def lift(self, identifier: int) -> None:
        """Take a signer back.

        Raises:
            SigningError: it is not excluded, or the note could not be written; it stays excluded.
        """
        why = self._reasons.pop(identifier, None)
        if why is None:
            raise SigningError(f"signer {identifier} is not excluded")
        try:
            self._write()
        except OSError as error:
            self._reasons[identifier] = why
            raise SigningError(f"{self._path} could not be written: {error.strerror}") from error

    def _write(self) -> None:
        content = {str(each): self._reasons[each] for each in sorted(self._reasons)}
        replace_file(self._path, (json.dumps(content, indent=2) + "\n").encode(), mode=_MODE)
