"""Unix sockets of a host's meter, which only its own user can write to.

This module needs the standard library only: it is imported inside the engine.
"""

import contextlib
import os
import socket
import stat
from pathlib import Path

from metering.errors import SocketUnusable


def listen_privately(path: Path, *, backlog: int) -> socket.socket:
    """A stream socket that listens there and never blocks; a file that nobody listens on any more is replaced.

    Raises:
        SocketUnusable: another process listens there, or the path can't be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # The file takes its mode from the socket's, so it is never open to others, not even for a moment.
        path_mode = stat.S_IRUSR | stat.S_IWUSR
        _set_mode(listener, path_mode)
        listener.bind(str(path))
        path.chmod(path_mode)
        listener.listen(backlog)
        listener.settimeout(0)
    except OSError as wrong:
        listener.close()
        raise SocketUnusable(f"cannot listen on {path}: {wrong}") from wrong
    return listener


def _set_mode(listener: socket.socket, mode: int) -> None:
    # Linux honours this; elsewhere the chmod after binding does it.
    with contextlib.suppress(OSError):
        os.fchmod(listener.fileno(), mode)


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    else:
        raise FileExistsError("another meter listens there")
    finally:
        probe.close()
