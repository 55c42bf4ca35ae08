"""Ray and Ray Serve for one mesh: a local cluster of its own, or the one that RAY_ADDRESS names."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from mesh.errors import StartFailed
from mesh.local_nodes import LocalNodes
from mesh.nodes_file import NodesFile
from mesh.run_state import RunState

_LOG = logging.getLogger(__name__)
_STOP_POLL_S = 0.2
_NODES_RECORD = "nodes.json"
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
# Read by Ray when it is imported, so they are set before.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # The short way for each streamed chunk: measured, eight streams on two cores get 1.5 times the tokens with it.
    # Our own code never blocks its event loop, which is what separate threads and loops would guard against.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # From an ingress to a replica and back; gRPC's own 4 MB are less than a request or a list of embeddings may have.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
    # Serve counts its requests all the same, and hands the counts on less often than ten times a second.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    # One that answers nothing can't stop by itself: waited for, it would keep its processors from the one in its place.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # An answer has one id, not Ray Serve's beside the mesh's.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy_callback:middlewares",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySession:
    """A connection to a Ray cluster. ``is_ours`` when this process started it and ends it.

    ``was_serving`` when a joined cluster had Ray Serve running before, which then goes on. ``nodes`` are the local
    cluster's beside this process's own, where there are any.
    """

    address: str
    namespace: str
    logs: Path
    dashboard_url: str | None
    is_ours: bool
    was_serving: bool
    nodes: LocalNodes | None = None


def start_ray(
    name: str,
    data_dir: Path,
    environment: Mapping[str, str],
    stop: threading.Event,
    nodes_file: NodesFile | None = None,
    fast_path: Mapping[str, str] | None = None,
) -> RaySession:
    """Start a local cluster, or join the one of ``RAY_ADDRESS``, in the mesh's own namespace.

    A local cluster takes calls only from who can read its token, which lies in ``data_dir``. With ``nodes_file`` it is
    made of several Ray nodes; setting ``stop`` ends their start. ``fast_path`` is as `fast_path_environment` makes it.

    Raises:
        StartFailed: the cluster did not come up or cannot be reached, nodes were given for one that runs already, or
            the start was stopped.
    """
    assert "ray" not in sys.modules, "ray reads its environment when it is imported, which must not be before this"
    address = environment.get("RAY_ADDRESS") or None
    if address is not None and nodes_file is not None:
        raise StartFailed("RAY_ADDRESS names a cluster, which has its own nodes: give one of RAY_ADDRESS and --nodes")
    (data_dir / _NODES_RECORD).unlink(missing_ok=True)  # of a mesh that was killed
    if address is None:
        _make_token(_token_path(data_dir))
    os.environ.update({**_ENVIRONMENT, **({} if address else _local_environment(data_dir)), **(fast_path or {})})
    import ray
    import ray.serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Ray puts its own handlers in place, which end the process without stopping anything in order.
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    local: dict[str, Any] = {"include_dashboard": True, **_head(nodes_file)}
    try:
        context = ray.init(
            # "local", since without an address Ray joins whatever cluster it finds on the machine.
            address=address or "local",
            namespace=name,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else local),
        )
    except Exception as failure:  # a node that takes too long to start is no more to Ray than an Exception
        ray.shutdown()
        raise StartFailed(f"Ray did not start: {failure}") from failure
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    # Ray prints to a driver's standard output what goes wrong anywhere in its cluster.
    sys.modules["ray._private.worker"].print_to_stdstream = log_trouble  # type: ignore[attr-defined]
    gcs_address = ray.get_runtime_context().gcs_address
    return RaySession(
        address=gcs_address,
        namespace=name,
        logs=Path(cast("Any", context).address_info["session_dir"] or ".") / "logs",
        dashboard_url=f"http://{context.dashboard_url}" if context.dashboard_url else None,
        is_ours=address is None,
        was_serving=address is not None and _is_serving(),
        nodes=_start_nodes(nodes_file, gcs_address, data_dir, stop) if nodes_file is not None else None,
    )


def log_trouble(trouble: Mapping[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001, FBT001 - Ray's signature
    """A line in the log for what Ray tells of its cluster; what follows it is the end of a file beside Ray's logs."""
    for text in trouble["lines"]:
        _LOG.warning("Ray: %s", str(text).strip().partition("\n")[0])
        _LOG.debug("Ray: %s", text)


def _head(nodes_file: NodesFile | None) -> dict[str, Any]:
    """What the node of this process is started with."""
    if nodes_file is None:
        return {"object_store_memory": _OBJECT_STORE_BYTES}
    head = nodes_file.head
    return {
        "object_store_memory": head.object_store_mib * 1024 * 1024,
        "num_cpus": head.cpus,
        "num_gpus": 0,
        "labels": nodes_file.head_labels(),
        "_node_name": head.name,
    }


def _start_nodes(nodes_file: NodesFile, gcs_address: str, data_dir: Path, stop: threading.Event) -> LocalNodes:
    import ray

    from mesh.local_ray_node import head_raylet_pid, start_ray_node

    nodes = LocalNodes(
        nodes_file.nodes,
        partial(start_ray_node, gcs_address),
        head=(nodes_file.head.name, head_raylet_pid()),
        record=data_dir / _NODES_RECORD,
    )
    try:
        nodes.start(stop)
    except BaseException:
        ray.shutdown()
        raise
    return nodes


def stop_ray(session: RaySession, *, within_s: float) -> None:
    """End the mesh's application, so that engines stop in order, then the local cluster; a joined one is left.

    Engines get ``within_s`` to stop. Serve itself may wait much longer for what has died: it isn't waited for.

    The mesh's own actors belong to this process's job: Ray ends them when it disconnects. A signal to the whole
    process group may have ended Ray before us; then there is nothing left to ask, and asking would hang.
    """
    import ray

    deleting = threading.Thread(target=_delete_application, args=(session,), daemon=True)
    deleting.start()
    give_up = time.monotonic() + within_s
    while deleting.is_alive() and time.monotonic() < give_up and _answers(session.address):
        deleting.join(_STOP_POLL_S)
    if session.nodes is not None:
        session.nodes.stop_watching()
    ray.shutdown()
    # Last, for as long as we are connected Ray prints the logs of every node that ends.
    if session.nodes is not None:
        session.nodes.stop()


def _is_serving() -> bool:
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _delete_application(session: RaySession) -> None:
    import ray.serve as ray_serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    # Never deployed, or Ray is gone already: either way there is nothing to end.
    with contextlib.suppress(RayError, RayServeException):
        ray_serve.delete(session.namespace)
        if not session.is_ours and not session.was_serving:
            ray_serve.shutdown()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def join_ray(state: RunState, data_dir: Path) -> None:
    """Connect to a running mesh's cluster as an operator.

    Raises:
        StartFailed: it cannot be reached.
    """
    assert "ray" not in sys.modules, "ray reads its environment when it is imported, which must not be before this"
    os.environ.update({**_ENVIRONMENT, **(_local_environment(data_dir) if state.is_ray_ours else {})})
    import ray

    try:
        ray.init(address=state.ray_address, namespace=state.namespace, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as failure:
        raise StartFailed(f"cannot reach the mesh's Ray cluster at {state.ray_address}: {failure}") from failure


def _local_environment(data_dir: Path) -> dict[str, str]:
    return {
        # Keeps a local cluster on the loopback interface: otherwise Ray listens on every address of the machine.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray gives its workers a low priority, so that any other process of the machine would hold up the engine.
        "RAY_worker_niceness": "0",
        # A node whose process is gone refuses the connection at once: five times, and it is known to be lost after
        # three seconds instead of fourteen. One that is only busy still has ten seconds for each answer.
        "RAY_health_check_period_ms": "500",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token_path(data_dir)),
    }


def _token_path(data_dir: Path) -> Path:
    return data_dir / "ray-token"


def _make_token(path: Path) -> None:
    with contextlib.suppress(FileExistsError), open(path, "x", opener=_private_file) as file:
        file.write(secrets.token_hex(32))


def _private_file(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
