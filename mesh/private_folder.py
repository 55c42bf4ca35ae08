"""Folders that only this user may read and write."""

import os
import stat
from pathlib import Path

from mesh.errors import StartFailed


def private_folder(folder: Path) -> Path:
    """The folder, made where it isn't there: in a temporary folder, another user may have made it first.

    Raises:
        StartFailed: it can't be made, is another user's, or others may use it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as unusable:
        raise StartFailed(f"cannot use {folder}: {unusable}") from unusable
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StartFailed(f"{folder} is not a folder that only this user can read and write")
    return folder
