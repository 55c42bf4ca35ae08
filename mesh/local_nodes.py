"""Several Ray nodes on this machine: started by name, started again when they die, and all ended at the end."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from mesh.errors import StartFailed
from mesh.nodes_file import LocalNodeSettings

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_TRIES_AT_FIRST = 3
_START_AGAIN_AFTER_S = 2.0
_LONGEST_AWAY_S = 60.0
# One that lived longer did not die of its start.
_STEADY_AFTER_S = 10.0
_ENDS_WITHIN_S = 60.0


class LocalNode(Protocol):
    """A running Ray node, by its processes."""

    @property
    def raylet_pid(self) -> int:
        """The process that is the node."""

    def is_alive(self) -> bool:
        """Whether that process runs."""

    def end(self, *, in_order: bool) -> None:
        """End the node and every process that it started; ``in_order`` lets them stop by themselves first."""


StartNode = Callable[[LocalNodeSettings], LocalNode]


class LocalNodes:
    """Keeps the nodes of a `--nodes` file running; ``record`` tells others each one's process, null while it is away.

    Args:
        nodes: what to run.
        start: starts one; raises where it can't.
        head: name and raylet process of the node that runs already.
        record: a JSON file, name to process id.
        start_again_after_s: how long a node that died stays away; each time longer while it dies at its start.
    """

    def __init__(
        self,
        nodes: tuple[LocalNodeSettings, ...],
        start: StartNode,
        *,
        head: tuple[str, int],
        record: Path,
        start_again_after_s: float = _START_AGAIN_AFTER_S,
    ) -> None:
        self._settings = {node.name: node for node in nodes}
        self._start = start
        self._head = head
        self._record = record
        self._start_again_after_s = start_again_after_s
        self._running: dict[str, LocalNode] = {}
        self._since: dict[str, float] = {}
        self._waits: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._stopping = threading.Event()
        self._acting = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="local-nodes", daemon=True)

    def start(self, stop: threading.Event) -> None:
        """Start all, and watch them from then on; what was started is ended when one can't be.

        Raises:
            StartFailed: a node did not start, or ``stop`` was set meanwhile.
        """
        try:
            for name, settings in self._settings.items():
                self._running[name] = self._start_patiently(settings, stop)
                self._since[name] = time.monotonic()
        except BaseException:
            self.stop()
            raise
        self._write()
        self._thread.start()

    def stop_watching(self) -> None:
        """Start none again; returns when no start is under way."""
        self._stopping.set()
        if self._acting.acquire(timeout=_ENDS_WITHIN_S):
            self._acting.release()

    def stop(self) -> None:
        """End all of them."""
        self.stop_watching()
        # At once: each one's processes take a second or two to stop.
        enders = [threading.Thread(target=node.end, kwargs={"in_order": True}) for node in self._running.values()]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        self._running.clear()
        self._record.unlink(missing_ok=True)
        self._ended.set()

    def raylet_pids(self) -> Mapping[str, int | None]:
        """Each node's process; None while it is away."""
        name, pid = self._head
        away: dict[str, int | None] = dict.fromkeys(self._settings)
        return {name: pid, **away, **{each: node.raylet_pid for each, node in self._running.items()}}

    def _start_patiently(self, settings: LocalNodeSettings, stop: threading.Event) -> LocalNode:
        """On a machine that has much else to do a node may not come up in the time that Ray gives it."""
        for tries_left in reversed(range(_TRIES_AT_FIRST)):
            if stop.is_set():
                break
            try:
                return self._start(settings)
            except Exception as failure:
                if not tries_left:
                    raise
                _LOG.warning("it is tried again: %s", failure)
        raise StartFailed("stopped before it was ready")

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for name in self._settings:
                with self._acting:
                    self._look_after(name)
        # The kernel ends a process with the thread that started it: that must not be before its turn.
        self._ended.wait()

    def _look_after(self, name: str) -> None:
        node = self._running.get(name)
        if self._stopping.is_set():
            return
        if node is None:
            if time.monotonic() >= self._due[name]:
                self._start_again(name)
        elif not node.is_alive():
            self._lose(name, node)

    def _lose(self, name: str, node: LocalNode) -> None:
        wait_s = self._stay_away(name, lived_s=time.monotonic() - self._since[name])
        _LOG.warning("node %s (process %d) died; it is started again in %g s", name, node.raylet_pid, wait_s)
        del self._running[name]
        self._write()
        try:
            node.end(in_order=False)
        except Exception:  # noqa: BLE001 - whatever Ray raises, the nodes must go on being watched
            _LOG.exception("node %s: not all of its processes were ended", name)

    def _stay_away(self, name: str, *, lived_s: float) -> float:
        self._waits[name] = wait_s = next_wait_s(
            self._waits.get(name), lived_s=lived_s, first_s=self._start_again_after_s
        )
        self._due[name] = time.monotonic() + wait_s
        return wait_s

    def _start_again(self, name: str) -> None:
        try:
            started = self._start(self._settings[name])
        except Exception as failure:  # noqa: BLE001 - whatever Ray raises, the nodes must go on being watched
            wait_s = self._stay_away(name, lived_s=0.0)
            is_news = not isinstance(failure, StartFailed)
            _LOG.warning("node %s is tried again in %g s: %s", name, wait_s, failure, exc_info=is_news)
            return
        self._running[name], self._since[name] = started, time.monotonic()
        _LOG.warning("node %s is back (process %d)", name, started.raylet_pid)
        self._write()

    def _write(self) -> None:
        partial = self._record.with_suffix(".partial")
        with contextlib.suppress(OSError):  # a full disk must not end the watch; the next change is written again
            partial.write_text(json.dumps(self.raylet_pids()))
            partial.replace(self._record)


def next_wait_s(before_s: float | None, *, lived_s: float, first_s: float) -> float:
    """How long a node that lived ``lived_s`` stays away; twice as long as before while it dies at its start."""
    if before_s is None or lived_s >= _STEADY_AFTER_S:
        return first_s
    return min(2 * before_s, _LONGEST_AWAY_S)
