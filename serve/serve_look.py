"""One look at Ray Serve's status and Ray's nodes, for the watch over the pools."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
import ray.serve as ray_serve
from ray.actor import ActorHandle
from ray.exceptions import RayError

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
        application = ray_serve.status().applications.get(self._app_name)
        deployments = {} if application is None else application.deployments
        states = {name: _state(overview) for name, overview in deployments.items()}
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


def _state(overview: Any) -> DeploymentState:  # noqa: ANN401 - Ray Serve's own overview of a deployment
    counts: Mapping[str, int] = overview.replica_states
    return DeploymentState(
        status=str(overview.status.value),
        running=counts.get("RUNNING", 0),
        coming=sum(counts.get(each, 0) for each in _COMING),
        message=overview.message,
    )
