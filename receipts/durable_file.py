"""Whole files that are either the old one or the new one, also after a power cut."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write ``content`` to ``path`` with permission bits ``mode``; on return it is on the disk.

    The content goes to a file beside it, which is synced and renamed: a reader never sees half of it.

    Raises:
        OSError: the folder is missing, full or not writable.
    """
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    # The rename lives in the folder: without this sync a power cut can undo it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
