"""Whether a signer's marks are still the ones that it last wrote: deleted ones, and older copies, are told.

Marks are what keeps a signer from vouching for two receipts in one place. Without them it could be led to: a group of
3 of 5 is safe from forks only while the one signer that any two quorums share remembers.

A signer begins a new epoch, a random number that it writes into the marks and, sealed, beside them, every time it
opens its marks and whenever their log (the file ``-wal``) was written over into the database. Marks of an epoch that
is not the sealed one were put there by somebody. While the signer runs, and after it was killed, the last epoch stands
in the log only: without its log the database is of an epoch before, and is told like any older copy.

What this cannot see: a copy of the marks, or of their log, made and put back within one epoch; a log whose end was cut
off there; one that was lost just while it was written over; and a copy of the whole folder.
"""

import json
from functools import partial
from pathlib import Path
from typing import Final

from receipts.frost.ciphersuite import RandomBytes
from receipts.signer_store import MarkStore
from receipts.signer_vault import Vault
from receipts.signing_errors import ShareUnusable, SigningError

_FILE: Final = "marks-epoch"
_EPOCH_BYTES: Final = 16
_WHAT_TO_DO: Final = (
    "put back the marks as they were when it last ran, both files; if they are lost, take the signer out of service "
    "(move its folder away): the others go on without it"
)


def open_marks(
    path: Path,
    *,
    vault: Vault,
    identifier: int,
    public_key: bytes,
    random_bytes: RandomBytes,
    is_first_use: bool,
    has_epochs: bool,
) -> MarkStore:
    """Open the marks at ``path`` and begin an epoch; only at a share's first use may there be none yet.

    Only one process at a time may do so. ``has_epochs`` says that the signer has opened these marks before, under
    a program that knows epochs: then one is sealed.

    Raises:
        ShareUnusable: the marks are gone, another group's, or not the ones that this signer wrote last.
        SigningError: they cannot be opened now, as when the disk is full.
    """
    if not is_first_use and not path.exists():
        raise ShareUnusable(f"signer {identifier} has lost its marks, {path}: {_WHAT_TO_DO}")
    marks = MarkStore.open(path, public_key=public_key)
    try:
        _check_epoch(marks, path, identifier, _sealed_epochs(vault) or ([] if has_epochs else [None]))
        marks.begin_epoch = partial(_begin_epoch, marks, vault, random_bytes)
        # Or the log of a signer that is killed again and again would grow for ever.
        marks.checkpoint()
    except BaseException:
        marks.close()
        raise
    return marks


def _check_epoch(marks: MarkStore, path: Path, identifier: int, expected: list[bytes | None]) -> None:
    if marks.epoch not in expected:
        raise ShareUnusable(
            f"signer {identifier}: {path} is not what it wrote last, but another copy, or one without its "
            f"{path.name}-wal: {_WHAT_TO_DO}"
        )


def _begin_epoch(marks: MarkStore, vault: Vault, random_bytes: RandomBytes) -> None:
    current = marks.epoch
    sealed = _sealed_epochs(vault) or []
    # An epoch that was sealed and could not be written is taken again: a log may hold it all the same.
    following = sealed[1] if len(sealed) == 2 and sealed[0] == current else None
    following = following or random_bytes(_EPOCH_BYTES)
    # Both, until the marks have the new one: a crash between the two writes must not look like a wrong copy.
    _seal_epochs(vault, [current, following])
    marks.write_epoch(following)
    _seal_epochs(vault, [following])


def _sealed_epochs(vault: Vault) -> list[bytes | None] | None:
    content = vault.read(_FILE)
    return None if content is None else [each and bytes.fromhex(each) for each in json.loads(content)]


def _seal_epochs(vault: Vault, epochs: list[bytes | None]) -> None:
    try:
        vault.write(_FILE, json.dumps([each and each.hex() for each in epochs]).encode())
    except OSError as error:
        raise SigningError(f"the epoch of the signer's marks could not be written: {error.strerror}") from error
