"""Ray and Ray Serve for one mesh: a local cluster of its own, or the one that RAY_ADDRESS names."""

import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mesh.errors import StartFailed

_OBJECT_STORE_BYTES = 256 * 1024 * 1024
# Read by Ray when it is imported, so they are set before. The first keeps a local cluster on the loopback
# interface: without it Ray listens on every address of the machine.
_LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySession:
    """A connection to a Ray cluster. ``is_ours`` when this process started it and ends it."""

    address: str
    namespace: str
    logs: Path
    dashboard_url: str | None
    is_ours: bool


def start_ray(name: str, environment: Mapping[str, str]) -> RaySession:
    """Start a local cluster, or join the one of ``RAY_ADDRESS``, in the mesh's own namespace.

    Raises:
        StartFailed: the cluster did not come up or cannot be reached.
    """
    address = environment.get("RAY_ADDRESS")
    os.environ.update({**_ENVIRONMENT, **({} if address else _LOCAL_ENVIRONMENT)})
    import ray
    import ray.serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Ray puts its own handlers in place, which end the process without stopping anything in order.
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    local: dict[str, Any] = {"include_dashboard": True, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        context = ray.init(
            # "local", since without an address Ray joins whatever cluster it finds on the machine.
            address=address or "local",
            namespace=name,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else local),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as failure:
        raise StartFailed(f"Ray did not start: {failure}") from failure
    for each, handler in handlers.items():
        signal.signal(each, handler)
    return RaySession(
        address=ray.get_runtime_context().gcs_address,
        namespace=name,
        logs=Path(cast("Any", context).address_info["session_dir"] or ".") / "logs",
        dashboard_url=f"http://{context.dashboard_url}" if context.dashboard_url else None,
        is_ours=address is None,
    )


def stop_ray(session: RaySession) -> None:
    """End the mesh's application, so that engines stop in order, then the local cluster; a joined one is left.

    The mesh's own actors belong to this process's job: Ray ends them when it disconnects.
    """
    import ray
    import ray.serve as ray_serve

    if session.is_ours:
        ray_serve.shutdown()
    else:
        ray_serve.delete(session.namespace)
    ray.shutdown()


def join_ray(address: str, namespace: str) -> None:
    """Connect to a running mesh's cluster as an operator.

    Raises:
        StartFailed: it cannot be reached.
    """
    os.environ.update(_ENVIRONMENT)
    import ray

    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as failure:
        raise StartFailed(f"cannot reach the mesh's Ray cluster at {address}: {failure}") from failure
