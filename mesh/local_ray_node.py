"""One more Ray node on this machine, as a child of this process; Ray's private interface, which is pinned, stays here.

The processes of a node end with this one (the kernel sees to it), and listen on the loopback interface only.
"""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mesh.errors import StartFailed
from mesh.nodes_file import LocalNodeSettings
from metering.process_tree import ProcessTrees

_MIB = 1024 * 1024
_TREE = "node"
_POLL_S = 0.1
_LOOPBACK = "127.0.0.1"
_REGISTERED_WITHIN_S = 60.0
_LOOK_S = 1
# Workers and agents see that their raylet is gone, and leave by themselves; what they started may not.
_LEAVES_WITHIN_S = 3.0


def start_ray_node(gcs_address: str, settings: LocalNodeSettings) -> "RayNode":
    """Start a node of the cluster and wait until the cluster knows it.

    Raises:
        StartFailed: it did not come up; nothing of it is left.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=gcs_address,
        node_ip_address=_LOOPBACK,
        node_name=settings.name,
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        object_store_memory=settings.object_store_mib * _MIB,
        labels=settings.all_labels(),
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        include_log_monitor=False,  # type: ignore[arg-type]  # a flag; the head's reads all logs of this machine
    )
    # Its agent's port must not be the one of the head's.
    parameters.dashboard_agent_listen_port = None
    # In two steps, so that what a start that fails has started can be ended.
    node, started = Node.__new__(Node), None
    try:
        node.__init__(parameters, head=False, shutdown_at_exit=False, spawn_reaper=True)  # type: ignore[misc]
        started = RayNode(node, ProcessTrees(Path("/proc"), monotonic_ns=time.monotonic_ns))
        wait_until_known(partial(_is_known, gcs_address, node), started.is_alive, within_s=_REGISTERED_WITHIN_S)
    except BaseException as failure:
        if started is not None:
            started.end(in_order=False)
        elif hasattr(node, "all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        if not isinstance(failure, Exception):
            raise
        raise StartFailed(f"node {settings.name} did not start: {failure}") from failure
    return started


def wait_until_known(is_known: Callable[[], bool], is_alive: Callable[[], bool], *, within_s: float) -> None:
    """Return when the cluster knows the node.

    Raises:
        StartFailed: its raylet died before, or it took longer.
    """
    give_up = time.monotonic() + within_s
    while not is_known():
        if not is_alive():
            raise StartFailed("its raylet died")
        if time.monotonic() > give_up:
            raise StartFailed(f"it was not known to Ray within {within_s:g} s")


def _is_known(gcs_address: str, node: Any) -> bool:  # noqa: ANN401 - Ray's private class has no types
    """Looks for a second."""
    from ray._private import services

    try:
        services.wait_for_node(gcs_address, node.plasma_store_socket_name, _LOOK_S)
    except TimeoutError:
        return False
    return True


def head_raylet_pid() -> int:
    """The process of the node that `ray.init` started."""
    from ray._private.worker import _global_node

    assert _global_node is not None, "ray.init has started a cluster"
    return int(_raylet(_global_node).pid)


class RayNode:
    """A `LocalNode` on Ray's own handle of its processes."""

    def __init__(self, node: Any, trees: ProcessTrees) -> None:  # noqa: ANN401 - Ray's private class has no types
        self._node = node
        self._raylet = _raylet(node)
        self._trees = trees
        self._trees.add(_TREE, self.raylet_pid)

    @property
    def raylet_pid(self) -> int:
        """As `LocalNode.raylet_pid`."""
        return int(self._raylet.pid)

    def is_alive(self) -> bool:
        """As `LocalNode.is_alive`; looks after the node's processes too, which must be known when it dies."""
        self._trees.sample()
        return self._raylet.poll() is None

    def end(self, *, in_order: bool) -> None:
        """As `LocalNode.end`."""
        self._trees.sample()
        self._node.kill_all_processes(check_alive=False, allow_graceful=in_order, wait=True)
        end_all(self._left, within_s=_LEAVES_WITHIN_S if in_order else 0.0)

    def _left(self) -> frozenset[int]:
        self._trees.sample()
        return self._trees.pids(_TREE)


def end_all(left: Callable[[], frozenset[int]], *, within_s: float) -> None:
    """Wait until none of the processes is left; kill those that take longer."""
    give_up = time.monotonic() + within_s
    while pids := left():
        if time.monotonic() > give_up:
            for pid in pids:
                _kill(pid)
            return
        time.sleep(_POLL_S)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _raylet(node: Any) -> Any:  # noqa: ANN401 - Ray's private class has no types
    return node.all_processes["raylet"][0].process
