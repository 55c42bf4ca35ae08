"""The processes of a mesh's pools, found as the system has them, and whether any of them outlives the mesh."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import psutil

from mesh.run_state import DataFolder
from serve.pools import deployment_name

_ENGINE: Final = "EngineCore"
_LIVES_FOR_S: Final = 1.5
_POLL_S: Final = 0.05
_LOOKS_EVERY_S: Final = 0.5


class PoolProcesses:
    """Of the mesh that runs on this folder; ``nodes`` are its pools' Ray nodes by name."""

    def __init__(self, data_dir: Path, nodes: Mapping[str, str]) -> None:
        state = DataFolder(data_dir).running()
        self._mesh = psutil.Process(state.pid)
        self._application = state.namespace
        self._nodes_file = data_dir / "nodes.json"
        self._node_of = nodes

    def replicas(self, pool: str) -> list[psutil.Process]:
        """Those of one pool."""
        return _titled(self._mesh, f"ServeReplica:{self._application}:{deployment_name(pool)}")

    def engines(self, pool: str) -> list[psutil.Process]:
        """The processes that a pool's replicas have their engines in; the test engine has none."""
        return [engine for replica in self.replicas(pool) for engine in _titled(replica, _ENGINE)]

    def all_engines(self) -> list[psutil.Process]:
        """Every engine's process of every pool."""
        return _titled(self._mesh, _ENGINE)

    def node(self, pool: str) -> list[psutil.Process]:
        """The process of the pool's node, and everything that it started."""
        pid = json.loads(self._nodes_file.read_text())[self._node_of[pool]]
        if pid is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            raylet = psutil.Process(pid)
            return [raylet, *raylet.children(recursive=True)]
        return []

    def wait_until_alive(self, least: int, deadline_s: float) -> None:
        """Until so many pools have a replica that has been there for a while."""
        give_up = time.monotonic() + deadline_s
        while sum(map(self._is_alive, self._node_of)) < least:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{least} pools were not there within {deadline_s:g} s")
            time.sleep(_POLL_S)

    def _is_alive(self, pool: str) -> bool:
        with contextlib.suppress(psutil.Error):
            return any(
                each.status() != psutil.STATUS_STOPPED and time.time() - each.create_time() > _LIVES_FOR_S
                for each in self.replicas(pool)
            )
        return False


class Descendants:
    """Remembers every process that a mesh ever had, also those whose parents are gone."""

    def __init__(self, mesh_pid: int) -> None:
        self._mesh = psutil.Process(mesh_pid)
        self._seen: set[psutil.Process] = {self._mesh}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Take in those that are there now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(self._mesh.children(recursive=True))

    def alive(self) -> list[psutil.Process]:
        """Those that still run, orphans too."""
        return [each for each in list(self._seen) if _runs(each)]

    def _watch(self) -> None:
        while not self._ended.wait(_LOOKS_EVERY_S):
            self.look()


def send(process: psutil.Process, number: signal.Signals) -> None:
    """A signal, unless the process is gone."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        os.kill(process.pid, number)


def title(process: psutil.Process) -> str:
    """What the process calls itself; empty where it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _titled(parent: psutil.Process, words: str) -> list[psutil.Process]:
    """Processes below it with these words in their title."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [each for each in parent.children(recursive=True) if words in title(each) and _runs(each)]
    return []


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
