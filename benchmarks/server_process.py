"""A server in a process of its own, started, heard and stopped; where it ends early, its last words are shown."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, cast

import httpx

_STARTS_WITHIN_S = 600
_STOPS_WITHIN_S = 90
_LAST_LINES = 20


class Server:
    """It runs. What it says lies in a file, so that it never waits for somebody to hear it."""

    def __init__(self, process: "subprocess.Popen[bytes]", said: IO[bytes]) -> None:
        self._process = process
        self._said = said

    @property
    def pid(self) -> int:
        """Its process, the root of all that it starts."""
        return self._process.pid

    def hear(self, beginning: str) -> str:
        """Wait for a whole line that begins so, and say it; the benchmark ends if it doesn't come."""
        give_up = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < give_up and self._process.poll() is None:
            for line in self._lines():
                if line.startswith(beginning) and line.endswith("\n"):
                    return line.strip()
            time.sleep(0.2)
        return self._exit(f"it did not say {beginning!r}")

    def wait_for(self, url: str) -> None:
        """Wait until this address answers with success; the benchmark ends if it doesn't."""
        give_up = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                if httpx.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self._exit(f"{url} did not answer")

    def _exit(self, why: str) -> str:
        last = "".join(self._lines()[-_LAST_LINES:])
        command = " ".join(map(str, cast("Sequence[object]", self._process.args)))
        sys.exit(f"{command}: {why} (exit code {self._process.returncode})\n{last}")

    def _lines(self) -> list[str]:
        # The process writes at this file's place too: read without moving it.
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), size, 0).decode(errors="replace").splitlines(keepends=True)


@contextmanager
def running_server(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start it, with ``environment`` added to ours, and stop it."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        try:
            yield Server(process, said)
        finally:
            process.terminate()
            process.wait(_STOPS_WITHIN_S)
