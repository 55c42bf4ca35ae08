"""Stands where Ray Serve looks for HAProxy: makes the configuration private, then becomes HAProxy.

`python -m mesh.haproxy_launcher HAPROXY HEADERS_WITHIN_S …`, the rest as Ray Serve calls HAProxy.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from mesh.haproxy_config import made_private

_PR_SET_PDEATHSIG = 1
_CONFIG_OPTION = "-f"


def main(arguments: list[str]) -> None:
    """Does not return.

    Raises:
        ConfigNotUnderstood: as `made_private`; Ray Serve shows it as HAProxy's own reason.
    """
    binary, headers_within_s, *haproxy = arguments
    config = Path(haproxy[haproxy.index(_CONFIG_OPTION) + 1])
    private = made_private(config.read_text(), headers_within_s=float(headers_within_s))
    # Ray Serve looks for its workers by this very path: what it wrote is replaced.
    beside = config.with_suffix(".private")
    beside.write_text(private)
    beside.replace(config)
    # Ray kills its actors without asking them: what HAProxy's would leave behind holds the mesh's port.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *haproxy])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
