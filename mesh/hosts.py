"""The physical hosts under a cluster's Ray nodes: what is one per host goes by these, however many nodes there are."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from clusters.nodes import OPERATOR_LABEL, NodeFacts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedNode:
    """A living Ray node, the physical host that it is on (its boot id), and its raylet's process there."""

    facts: NodeFacts
    host: str
    raylet_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A physical host and its nodes; the first is the one to rely on, for the others may come and go."""

    boot_id: str
    nodes: tuple[PlacedNode, ...]

    @property
    def node_id(self) -> str:
        """Where what there is one of per host runs."""
        return self.nodes[0].facts.node_id


def hosts_of(nodes: Iterable[PlacedNode], *, own_node_id: str) -> tuple[Host, ...]:
    """Group nodes by host: this process's own host first, the others by their nodes' addresses.

    The order is the same at the next start, since what lies on a host's disk must be found there again. On a host the
    node that this process is connected to comes first, then those that carry no pool, then by name.
    """
    grouped: dict[str, list[PlacedNode]] = {}
    for node in nodes:
        grouped.setdefault(node.host, []).append(node)

    def reliability(node: PlacedNode) -> tuple[bool, bool, str, str]:
        facts = node.facts
        return facts.node_id != own_node_id, OPERATOR_LABEL in facts.labels, facts.name, facts.node_id

    hosts = [Host(boot_id=host, nodes=tuple(sorted(each, key=reliability))) for host, each in grouped.items()]

    def order(host: Host) -> tuple[bool, str, str]:
        first = min((node.facts.address, node.facts.name) for node in host.nodes)
        return host.node_id != own_node_id, *first

    return tuple(sorted(hosts, key=order))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChanges:
    """What a look at the cluster means for its meters.

    ``joined`` need one, new hosts and those whose meter's node is gone; ``stay`` keep theirs, by boot id; of ``left``
    no node lives.
    """

    joined: tuple[Host, ...]
    stay: Mapping[str, Host]
    left: tuple[str, ...]


def is_changed(known: Collection[Host], living: Collection[str]) -> bool:
    """Whether a node (``living``: their ids) is new, or one that a host's meter runs on is gone."""
    nodes = {node.facts.node_id for host in known for node in host.nodes}
    return any(node not in nodes for node in living) or any(host.node_id not in living for host in known)


def changes_of(known: Mapping[str, Host], found: Sequence[Host], living: Collection[str]) -> HostChanges:
    """Compare the hosts that have meters with those that answered; a host with a living node may answer next time.

    A meter stays where it is, also where another node would now be the one to rely on: it is the host's first.
    """
    joined, answered = [], {host.boot_id for host in found}
    stay = {boot: host for boot, host in known.items() if boot not in answered and _any_lives(host, living)}
    for host in found:
        before = known.get(host.boot_id)
        if before is None or before.node_id not in living:
            joined.append(host)
        else:
            nodes = sorted(host.nodes, key=lambda node, first=before.node_id: node.facts.node_id != first)  # type: ignore[misc]
            stay[host.boot_id] = Host(boot_id=host.boot_id, nodes=tuple(nodes))
    left = tuple(boot for boot in known if boot not in answered and boot not in stay)
    return HostChanges(joined=tuple(joined), stay=stay, left=left)


def _any_lives(host: Host, living: Collection[str]) -> bool:
    return any(node.facts.node_id in living for node in host.nodes)


def detected_silicon(hosts: Iterable[Host], silicon: Mapping[str, str]) -> dict[str, str]:
    """The silicon of each node by its id; ``silicon`` is what each host's meter detected, by boot id."""
    return {
        node.facts.node_id: silicon[host.boot_id] for host in hosts if host.boot_id in silicon for node in host.nodes
    }


def place_nodes(facts: Sequence[NodeFacts], *, within_s: float) -> list[PlacedNode]:
    """Ask each living node where it is; one that does not answer in time is left out, and said so in the log."""
    import ray

    asked = {_on_node(ray.remote(_who_runs_here), each.node_id).remote(): each for each in facts if each.is_alive}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=within_s) if asked else ([], [])
    placed = [_placed(reference, each, answered) for reference, each in asked.items()]
    return [node for node in placed if node is not None]


def _placed(reference: Any, facts: NodeFacts, answered: Collection[Any]) -> PlacedNode | None:  # noqa: ANN401
    import ray
    from ray.exceptions import RayError

    if reference not in answered:
        _LOG.warning("node %s (%s) does not answer", facts.name, facts.address)
        return None
    try:
        host, raylet_pid = cast("tuple[str, int]", ray.get(reference))
    except RayError as gone:  # it died between Ray's list of nodes and now
        _LOG.warning("node %s (%s) is gone: %s", facts.name, facts.address, type(gone).__name__)
        return None
    return PlacedNode(facts=facts, host=host, raylet_pid=raylet_pid)


def _who_runs_here() -> tuple[str, int]:
    """The physical host that this Ray worker is on, and the process of its Ray node."""
    from serve.meter_actor import boot_id

    return boot_id(), os.getppid()


def _on_node(function: Any, node_id: str) -> Any:  # noqa: ANN401 - Ray's remote functions have no type
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return function.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
