"""One live process for each signer's folder."""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from receipts.signing_errors import SigningError

_TRIES: Final = 20
_PAUSE_S: Final = 0.05


class FolderLock:
    """An flock on the folder itself, so that there is no file to create on a full disk or to leave behind.

    The kernel releases it when the process ends, however that comes about. A process that was killed may take a
    moment to end while its successor starts already, hence the tries.
    """

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            SigningError: another process has it; nothing is wrong with the folder, and trying again may help.
        """
        self._descriptor: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(self._descriptor, folder)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let others have it; doing it again is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int, folder: Path) -> None:
    for tried in range(1, _TRIES + 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if tried == _TRIES:
                raise SigningError(
                    f"another process uses {folder}; end it, or wait until it has ended: a signer runs once"
                ) from None
            time.sleep(_PAUSE_S)
        else:
            return
