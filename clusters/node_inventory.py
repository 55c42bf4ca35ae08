"""What Ray says of its nodes; the only module of this room that knows Ray. Whoever calls it refreshes it."""

from collections.abc import Mapping
from typing import Any, cast

import ray

from clusters.nodes import Inventory, NodeCatalogue, NodeFacts


def node_facts(detected: Mapping[str, str] | None = None) -> tuple[NodeFacts, ...]:
    """Every node that Ray knows, dead ones too. Asks Ray's head: not on a request's way, nor on an event loop.

    ``detected`` is the silicon model by node id, where it is known.
    """
    models = detected or {}
    return tuple(_facts(each, models) for each in cast("list[dict[str, Any]]", ray.nodes()))


def read_inventory(catalogue: NodeCatalogue, detected: Mapping[str, str] | None = None) -> Inventory:
    """The cluster's inventory as of now; arguments as `Inventory.read` and `node_facts` take them."""
    return Inventory.read(node_facts(detected), catalogue)


def _facts(node: Mapping[str, Any], detected: Mapping[str, str]) -> NodeFacts:
    node_id, address = str(node["NodeID"]), str(node["NodeManagerAddress"])
    resources = cast("Mapping[str, float]", node.get("Resources") or {})
    return NodeFacts(
        node_id=node_id,
        name=str(node.get("NodeName") or address),
        address=address,
        is_alive=bool(node["Alive"]),
        labels=dict(node.get("Labels") or {}),
        cpus=float(resources.get("CPU", 0.0)),
        gpus=float(resources.get("GPU", 0.0)),
        detected=detected.get(node_id),
    )
