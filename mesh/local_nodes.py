"""Several Ray nodes on this machine: started by name, started again when they die, and all ended at the end."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from mesh.nodes_file import LocalNodeSettings

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_TRIES_AT_FIRST = 3
_START_AGAIN_AFTER_S = 2.0
_TRY_AGAIN_AFTER_S = 10.0
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
        start_again_after_s: how long a node that died stays away.
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
        self._due: dict[str, float] = {}
        self._stopping = threading.Event()
        self._acting = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="local-nodes", daemon=True)

    def start(self) -> None:
        """Start all, and watch them from then on; what was started is ended when one can't be."""
        try:
            for name, settings in self._settings.items():
                self._running[name] = self._start_patiently(settings)
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

    def _start_patiently(self, settings: LocalNodeSettings) -> LocalNode:
        """On a machine that has much else to do a node may not come up in the time that Ray gives it."""
        for _ in range(_TRIES_AT_FIRST - 1):
            try:
                return self._start(settings)
            except Exception as failure:  # noqa: BLE001 - whatever Ray raises; the last try raises it
                _LOG.warning("it is tried again: %s", failure)
        return self._start(settings)

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
        _LOG.warning("node %s (process %d) died; it is started again", name, node.raylet_pid)
        del self._running[name]
        self._due[name] = time.monotonic() + self._start_again_after_s
        self._write()
        self._try(name, lambda: node.end(in_order=False))

    def _start_again(self, name: str) -> None:
        started = self._try(name, lambda: self._start(self._settings[name]))
        if started is None:
            self._due[name] = time.monotonic() + _TRY_AGAIN_AFTER_S
            return
        self._running[name] = started
        _LOG.warning("node %s is back (process %d)", name, started.raylet_pid)
        self._write()

    def _try(self, name: str, act: Callable[[], LocalNode | None]) -> LocalNode | None:
        try:
            return act()
        except Exception:  # noqa: BLE001 - whatever Ray raises, the other nodes must go on being watched
            _LOG.exception("node %s: it is tried again", name)
            return None

    def _write(self) -> None:
        partial = self._record.with_suffix(".partial")
        with contextlib.suppress(OSError):  # a full disk must not end the watch; the next change is written again
            partial.write_text(json.dumps(self.raylet_pids()))
            partial.replace(self._record)
