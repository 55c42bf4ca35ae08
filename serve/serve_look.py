"""One look at Ray Serve's status and Ray's nodes, for the watch over the pools."""

from collections.abc import Mapping
from typing import Any

import ray.serve as ray_serve

from clusters.node_inventory import node_facts
from clusters.nodes import Inventory, NodeCatalogue
from serve.pool_watch import DeploymentState, PoolsSeen, pools_seen
from serve.pools import Pool

# Those that a node is drained of still answer, and each has another on its way.
_COMING = ("STARTING", "UPDATING", "RECOVERING", "PENDING_MIGRATION")


class ServeLook:
    """A look at Ray Serve's status and Ray's nodes. ``selectors`` are the pools' node labels, by pool."""

    def __init__(
        self, app_name: str, pools: Mapping[str, Pool], selectors: Mapping[str, Mapping[str, str]], nodes: NodeCatalogue
    ) -> None:
        self._app_name = app_name
        self._pools = pools
        self._selectors = selectors
        self._nodes = nodes

    def __call__(self) -> PoolsSeen:
        """Blocks while Ray's head answers."""
        application = ray_serve.status().applications.get(self._app_name)
        deployments = {} if application is None else application.deployments
        states = {name: _state(overview) for name, overview in deployments.items()}
        return pools_seen(self._pools, states, self._selectors, Inventory.read(node_facts(), self._nodes))


def _state(overview: Any) -> DeploymentState:  # noqa: ANN401 - Ray Serve's own overview of a deployment
    counts: Mapping[str, int] = overview.replica_states
    return DeploymentState(
        status=str(overview.status.value),
        running=counts.get("RUNNING", 0),
        coming=sum(counts.get(each, 0) for each in _COMING),
        message=overview.message,
    )
