"""One look at Ray Serve's status and Ray's nodes, for the watch over the pools."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve.context import _get_global_client

from clusters.node_inventory import node_facts
from clusters.nodes import Inventory, NodeCatalogue
from serve.detected_silicon import DetectedSilicon
from serve.pool_watch import DeploymentState, PoolsSeen, pools_seen
from serve.pools import Pool

_LOG = logging.getLogger(__name__)
_METERS_ANSWER_WITHIN_S = 2.0
# Those that a node is drained of still answer, and each has another on its way.
_COMING = ("STARTING", "UPDATING", "RECOVERING", "PENDING_MIGRATION")


class ServeLook:
    """A look at Ray Serve's status and Ray's nodes. ``selectors`` are the pools' node labels, by pool; ``meters``
    finds the hosts' meters.
    """

    def __init__(
        self,
        app_name: str,
        pools: Mapping[str, Pool],
        selectors: Mapping[str, Mapping[str, str]],
        nodes: NodeCatalogue,
        *,
        meters: Callable[[], Sequence[ActorHandle[Any]]],
    ) -> None:
        self._app_name = app_name
        self._pools = pools
        self._selectors = selectors
        self._nodes = nodes
        self._silicon = DetectedSilicon(partial(_detected, meters), time.monotonic)

    def __call__(self) -> PoolsSeen:
        """Blocks while Ray's head answers."""
        states = _states(self._app_name)
        inventory = Inventory.read(self._silicon.added_to(node_facts()), self._nodes)
        return pools_seen(self._pools, states, self._selectors, inventory)


def _detected(meters: Callable[[], Sequence[ActorHandle[Any]]]) -> dict[str, str]:
    """The silicon by the node that its meter is on; a meter that does not answer in time is left out."""
    asked: list[Any] = [meter.detected.remote() for meter in meters()]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_METERS_ANSWER_WITHIN_S) if asked else ([], [])
    found: dict[str, str] = {}
    for answer in answered:
        try:
            node_id, silicon = ray.get(answer)
        except RayError as gone:
            _LOG.warning("a host's meter is away: %s", type(gone).__name__)
        else:
            found[node_id] = silicon
    return found


def _states(app_name: str) -> dict[str, DeploymentState]:
    """What Ray Serve's controller tells of the application's deployments; Ray's private interface, which is pinned.

    `ray.serve.status` makes objects of all settings out of the same answer, pickled classes among them: nearly ten
    times the processor time, each second, in which no request of this ingress goes on.
    """
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    applications = {} if client is None else client.get_serve_details()["applications"]
    deployments = applications.get(app_name, {}).get("deployments", {})
    return {name: deployment_state(details) for name, details in deployments.items()}


def deployment_state(details: Mapping[str, Any]) -> DeploymentState:
    """One deployment as the controller tells of it."""
    counts = Counter(replica["state"].value for replica in details["replicas"])
    return DeploymentState(
        status=details["status"].value,
        running=counts["RUNNING"],
        coming=sum(counts[each] for each in _COMING),
        message=details["message"],
    )
