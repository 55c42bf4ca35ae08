"""The processes of a running mesh that can be killed, found by the titles that Ray gives them."""

import contextlib
import os
import signal
from collections.abc import Iterator
from random import Random
from typing import Final

import psutil

TITLES: Final = {
    "ledger": "ray::LedgerActor",
    "signer": "ray::SignerActor",
    "ingress": "ray::ServeReplica:joule-mesh:ingress",
    "replica": "ray::ServeReplica:joule-mesh:smollm2",
    "meter": "ray::MeterActor",
}
"""What can die, and how its processes are titled; all are of the mesh named in the built-in settings."""

WHOLE: Final = {"ledger": 1, "signer": 5, "ingress": 1, "replica": 1, "meter": 1}
"""How many processes of each a whole mesh has."""


class Victims:
    """Those of one mesh; ``mesh_pid`` is its first process, whose descendants they all are."""

    def __init__(self, mesh_pid: int) -> None:
        self._mesh = psutil.Process(mesh_pid)
        self._killed: set[psutil.Process] = set()

    def living(self, target: str) -> list[psutil.Process]:
        """The processes of a target, in the order of their ids, without those that were killed here."""
        return sorted((each for each, title in self._titles() if TITLES[target] in title), key=lambda each: each.pid)

    def is_whole(self) -> bool:
        """Whether every process that was killed has its successor."""
        titles = [title for _, title in self._titles()]
        return all(sum(TITLES[target] in title for title in titles) >= count for target, count in WHOLE.items())

    def kill(self, target: str, count: int, random: Random) -> int:
        """Kill up to so many processes of a target, all at once; how many there were to kill."""
        living = self.living(target)
        chosen = random.sample(living, min(count, len(living)))
        for victim in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        self._killed.update(chosen)
        return len(chosen)

    def _titles(self) -> Iterator[tuple[psutil.Process, str]]:
        for process in self._mesh.children(recursive=True):
            if process in self._killed:
                continue
            with contextlib.suppress(psutil.Error):
                yield process, " ".join(process.cmdline())
