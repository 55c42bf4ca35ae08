"""The mesh's nodes: what their labels say, which are accepted, and why the others are not.

Labels are static facts of a Ray node (`ray start --labels`): whose it is, where, what silicon, and whether it
carries ingresses instead of pools.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clusters.silicon_kinds import SiliconKind

_PREFIX = "joule-mesh.io/"
OPERATOR_LABEL = _PREFIX + "operator"
REGION_LABEL = _PREFIX + "region"
SILICON_LABEL = _PREFIX + "silicon"
ROLE_LABEL = _PREFIX + "role"
INGRESS_ROLE = "ingress"
_KNOWN = (OPERATOR_LABEL, REGION_LABEL, SILICON_LABEL, ROLE_LABEL)
_POOL_LABELS = (OPERATOR_LABEL, REGION_LABEL, SILICON_LABEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What Ray says of a node, and the silicon model that its host's meter detected (None: not known here).

    ``cpus`` and ``gpus`` are Ray's logical counts.
    """

    node_id: str
    name: str
    address: str
    is_alive: bool
    labels: Mapping[str, str]
    cpus: float
    gpus: float
    detected: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCatalogue:
    """What labels may say: the sites as (operator, region), and the silicon kinds by name."""

    sites: frozenset[tuple[str, str]]
    kinds: Mapping[str, SiliconKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A living node and what is wrong with its labels; accepted when that is nothing."""

    facts: NodeFacts
    faults: tuple[str, ...]

    @property
    def is_accepted(self) -> bool:
        """Whether pools may count on it."""
        return not self.faults

    @property
    def site(self) -> tuple[str, str] | None:
        """Operator and region that its labels name, or None where they name none."""
        labels = self.facts.labels
        operator, region = labels.get(OPERATOR_LABEL), labels.get(REGION_LABEL)
        return None if operator is None or region is None else (operator, region)

    @property
    def silicon(self) -> str | None:
        """The silicon kind that its label names."""
        return self.facts.labels.get(SILICON_LABEL)

    @property
    def carries_ingresses(self) -> bool:
        """Whether it has the ingress role."""
        return self.facts.labels.get(ROLE_LABEL) == INGRESS_ROLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The nodes of a cluster as of one reading; ``dead`` are those that Ray still remembers."""

    accepted: tuple[Node, ...]
    refused: tuple[Node, ...]
    dead: tuple[NodeFacts, ...]

    @classmethod
    def read(cls, nodes: Iterable[NodeFacts], catalogue: NodeCatalogue) -> "Inventory":
        """Judge each node; in order of name, then of id."""
        ordered = sorted(nodes, key=lambda facts: (facts.name, facts.node_id))
        living = [Node(facts=facts, faults=label_faults(facts, catalogue)) for facts in ordered if facts.is_alive]
        return cls(
            accepted=tuple(node for node in living if node.is_accepted),
            refused=tuple(node for node in living if not node.is_accepted),
            dead=tuple(facts for facts in ordered if not facts.is_alive),
        )

    @property
    def has_pool_labels(self) -> bool:
        """Whether any living node says whose it is: then pools go by labels."""
        return any(label in node.facts.labels for node in (*self.accepted, *self.refused) for label in _POOL_LABELS)

    def matching(self, selector: Mapping[str, str]) -> tuple[Node, ...]:
        """The accepted nodes with all of these labels."""
        return tuple(node for node in self.accepted if _has(node, selector))

    def why_unavailable(self, selector: Mapping[str, str]) -> str | None:
        """Why a pool with this selector has no node to run on just now; None when it has one."""
        if self.matching(selector):
            return None
        refused = [node for node in self.refused if _has(node, selector)]
        if refused:
            return "; ".join(f"node {node.facts.name} is refused: {', '.join(node.faults)}" for node in refused)
        return f"no living node carries {_shown(selector)}" if selector else "the cluster has no accepted node"

    def refusals(self) -> tuple[str, ...]:
        """A line for each refused node, with all its reasons."""
        return tuple(
            f"node {node.facts.name} ({node.facts.address}): {'; '.join(node.faults)}" for node in self.refused
        )


def needs_labels(*, sites: int, is_silicon_named: bool, has_pool_labels: bool) -> bool:
    """Whether pools go by node labels: with one site, no silicon named by any pool and no labelled node, any node does.

    ``sites`` is how many are declared; ``has_pool_labels`` is the inventory's.
    """
    return sites > 1 or is_silicon_named or has_pool_labels


def pool_selector(*, operator: str, region: str, silicon: str | None, is_labelled: bool) -> dict[str, str]:
    """The label selector of a pool's replicas; ``is_labelled`` is what `needs_labels` says of the mesh."""
    if not is_labelled:
        return {}
    selector = {OPERATOR_LABEL: operator, REGION_LABEL: region}
    return selector if silicon is None else {**selector, SILICON_LABEL: silicon}


def ingress_selector(inventory: Inventory) -> dict[str, str]:
    """The label selector of ingresses: nodes with that role where there are any, else any node."""
    is_named = any(node.carries_ingresses for node in inventory.accepted)
    return {ROLE_LABEL: INGRESS_ROLE} if is_named else {}


def label_faults(facts: NodeFacts, catalogue: NodeCatalogue) -> tuple[str, ...]:
    """Everything that is wrong with a node's labels, a phrase each. Labels of other owners are none of our business."""
    ours = {label: value for label, value in facts.labels.items() if label.startswith(_PREFIX)}
    faults = [f"label {label} is unknown; known: {', '.join(_KNOWN)}" for label in sorted(ours) if label not in _KNOWN]
    faults += _role_faults(ours)
    faults += _site_faults(ours, catalogue)
    faults += _silicon_faults(ours, facts.detected, catalogue)
    return tuple(faults)


def _role_faults(labels: Mapping[str, str]) -> list[str]:
    role = labels.get(ROLE_LABEL)
    if role is None:
        return []
    if role != INGRESS_ROLE:
        return [f"role {role!r} is unknown; known: {INGRESS_ROLE}"]
    pool_labels = [label for label in _POOL_LABELS if label in labels]
    return [f"it has the role {role!r} and {', '.join(pool_labels)}, which only pools need"] if pool_labels else []


def _site_faults(labels: Mapping[str, str], catalogue: NodeCatalogue) -> list[str]:
    operator, region = labels.get(OPERATOR_LABEL), labels.get(REGION_LABEL)
    if operator is None and region is None:
        return [f"{SILICON_LABEL} without {OPERATOR_LABEL} and {REGION_LABEL}"] if SILICON_LABEL in labels else []
    if operator is None or region is None:
        given, missing = (OPERATOR_LABEL, REGION_LABEL) if region is None else (REGION_LABEL, OPERATOR_LABEL)
        return [f"{given} without {missing}"]
    if (operator, region) in catalogue.sites:
        return []
    known = ", ".join(sorted("/".join(site) for site in catalogue.sites))
    return [f"no site is {operator}/{region}; known: {known}"]


def _silicon_faults(labels: Mapping[str, str], detected: str | None, catalogue: NodeCatalogue) -> list[str]:
    named = labels.get(SILICON_LABEL)
    if named is None:
        return []
    kind = catalogue.kinds.get(named)
    if kind is None:
        return [f"silicon {named!r} is unknown; known: {', '.join(sorted(catalogue.kinds)) or 'none'}"]
    if detected is None or kind.matches(detected):
        return []
    return [f"labelled {named!r}, which is detected as {kind.detected_as!r}, but its meter found {detected!r}"]


def _has(node: Node, selector: Mapping[str, str]) -> bool:
    return all(node.facts.labels.get(label) == value for label, value in selector.items())


def _shown(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{label}={value}" for label, value in selector.items())
