"""Which signers are out because they broke the protocol: a note beside the group's record, until a person lifts it."""

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from receipts.durable_file import replace_file
from receipts.signing_errors import SigningError

_FILE: Final = "excluded-signers.json"
_MODE: Final = 0o644

_log = logging.getLogger(__name__)


class Exclusions:
    """Excluded signers by number, each with what it did.

    A coordinator that forgot them at its restart would take the same signer back and be held up again; and nobody
    would ever look at it.
    """

    def __init__(self, path: Path, reasons: dict[int, str]) -> None:
        self._path = path
        # Replaced whole and never changed: who goes through it while another is excluded sees the one or the other.
        self._reasons = reasons
        self._noted = reasons
        self._writing = asyncio.Lock()

    @classmethod
    def beside(cls, record_path: Path, members: Collection[int]) -> "Exclusions":
        """Those noted beside the group's record; none where there is no note.

        With a note that cannot be read all ``members`` are out, for that reason: who was excluded is not known.
        Receipts wait then, and the ledger does its other work.
        """
        path = record_path.with_name(_FILE)
        try:
            reasons = _read(path, members)
        except FileNotFoundError:
            reasons = {}
        except (OSError, ValueError) as error:
            why = f"{path} cannot be read ({error}), so that nobody knows who is excluded"
            _log.error("no receipt is signed: %s; take back each signer that is sound: jc signers readmit N", why)
            reasons = dict.fromkeys(members, why)
        return cls(path, reasons)

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why each is out, by number."""
        return MappingProxyType(self._reasons)

    def add(self, identifier: int, why: str) -> None:
        """Exclude a signer from now on; after a restart once it is noted."""
        self._reasons = {**self._reasons, identifier: why}

    async def note(self) -> None:
        """Write down who was added. Does nothing when nobody was since it was last called.

        Raises:
            OSError: the note could not be written; who is out is so until the restart.
        """
        async with self._writing:
            if self._noted is not self._reasons:
                self._noted = self._reasons
                await asyncio.to_thread(self._write, self._reasons)

    async def lift(self, identifier: int) -> None:
        """Take a signer back, once that is written down.

        Raises:
            SigningError: it is not excluded, or the note could not be written; it stays excluded.
        """
        async with self._writing:
            before = self._reasons
            if identifier not in before:
                raise SigningError(f"signer {identifier} is not excluded")
            rest = _without(before, identifier)
            try:
                await asyncio.to_thread(self._write, rest)
            except OSError as error:
                raise SigningError(f"{self._path} could not be written: {error.strerror}") from error
            # Somebody else may have been added meanwhile.
            self._reasons = rest if self._reasons is before else _without(self._reasons, identifier)
            self._noted = rest

    def _write(self, reasons: Mapping[int, str]) -> None:
        content = {str(each): reasons[each] for each in sorted(reasons)}
        replace_file(self._path, (json.dumps(content, indent=2) + "\n").encode(), mode=_MODE)


def _read(path: Path, members: Collection[int]) -> dict[int, str]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - it is the file that is wrong
    reasons: dict[int, str] = {}
    for name, why in content.items():
        if int(name) not in members or not isinstance(why, str):
            raise ValueError(f"{name}: {why!r} is not a signer's number with what it did")
        reasons[int(name)] = why
    return reasons


def _without(reasons: Mapping[int, str], identifier: int) -> dict[int, str]:
    return {each: why for each, why in reasons.items() if each != identifier}
