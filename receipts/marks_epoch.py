"""Whether a signer's marks are still the ones that it last wrote: deleted ones, and older copies, are told.

Marks are what keeps a signer from vouching for two receipts in one place. Without them it could be led to: a group of
3 of 5 is safe from forks only while the one signer that any two quorums share remembers.

Every time a signer opens its marks it begins a new epoch, a random number that it writes into the marks and, sealed,
beside them. Marks of an epoch that is not the sealed one were put there by somebody. What this cannot see: a copy
made and put back between two starts of the signer, and a copy of the whole folder.
"""

import json
from pathlib import Path
from typing import Final

from receipts.frost.ciphersuite import RandomBytes
from receipts.signer_store import MarkStore
from receipts.signer_vault import Vault
from receipts.signing_errors import ShareUnusable

_FILE: Final = "marks-epoch"
_EPOCH_BYTES: Final = 16
_WHAT_TO_DO: Final = (
    "put back the marks as they were when it last ran; if they are lost, take the signer out of service (move its "
    "folder away): the others go on without it"
)


def open_marks(
    path: Path, *, vault: Vault, identifier: int, public_key: bytes, random_bytes: RandomBytes, is_first_use: bool
) -> MarkStore:
    """Open the marks at ``path`` and begin an epoch; only at a share's first use may there be none yet.

    Raises:
        ShareUnusable: the marks are gone, another group's, or not the ones that this signer wrote last.
    """
    if not is_first_use and not path.exists():
        raise ShareUnusable(f"signer {identifier} has lost its marks, {path}: {_WHAT_TO_DO}")
    marks = MarkStore.open(path, public_key=public_key)
    try:
        _check_epoch(marks, path, vault, identifier)
        epoch = random_bytes(_EPOCH_BYTES)
        # Both, until the marks have the new one: a crash between the two writes must not look like a wrong copy.
        _seal_epochs(vault, [marks.epoch, epoch])
        marks.begin_epoch(epoch)
        _seal_epochs(vault, [epoch])
    except BaseException:
        marks.close()
        raise
    return marks


def _check_epoch(marks: MarkStore, path: Path, vault: Vault, identifier: int) -> None:
    sealed = _sealed_epochs(vault) or [None]
    if marks.epoch not in sealed:
        raise ShareUnusable(f"signer {identifier}: {path} is not what it wrote last, but another copy: {_WHAT_TO_DO}")


def _sealed_epochs(vault: Vault) -> list[bytes | None] | None:
    content = vault.read(_FILE)
    return None if content is None else [each and bytes.fromhex(each) for each in json.loads(content)]


def _seal_epochs(vault: Vault, epochs: list[bytes | None]) -> None:
    try:
        vault.write(_FILE, json.dumps([each and each.hex() for each in epochs]).encode())
    except OSError as error:
        raise ShareUnusable(f"the epoch of the signer's marks could not be written: {error.strerror}") from error
