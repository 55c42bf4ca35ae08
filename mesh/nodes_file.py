"""The file of `jc up --nodes`: several Ray nodes on this machine, each a stand-in for one in another place."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clusters.nodes import (
    INGRESS_ROLE,
    OPERATOR_LABEL,
    REGION_LABEL,
    ROLE_LABEL,
    SILICON_LABEL,
    NodeCatalogue,
    NodeFacts,
    label_faults,
)
from mesh.errors import BadSettings
from mesh.settings import Label
from mesh.yaml_document import Fault, YamlDocument

# As Ray takes a label's name: a word, and before it the domain of whoever defines it.
_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelName = Annotated[str, Field(pattern=rf"^([A-Za-z0-9]([A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_WORD}$")]
_RAYS_OWN = "ray.io/"
NodeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
# Ray takes no less.
_LEAST_STORE_MIB = 80


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeadNode(_Strict):
    """The node beside the `jc` process: ingresses, signers, ledger and meter, no pool. ``cpus`` are logical."""

    name: NodeName = "head"
    cpus: Annotated[int, Field(ge=1)] = 2
    object_store_mib: Annotated[int, Field(ge=_LEAST_STORE_MIB)] = 128


class LocalNodeSettings(_Strict):
    """One more Ray node: a site's (operator/region), or with the ingress role.

    ``cpus`` and ``gpus`` are what Ray's scheduler counts, not what the machine has; ``labels`` are added as they are.
    """

    name: NodeName
    site: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    silicon: str | None = None
    role: str | None = None
    labels: dict[LabelName, Label] = {}
    cpus: Annotated[int, Field(ge=0)]
    gpus: Annotated[int, Field(ge=0)] = 0
    object_store_mib: Annotated[int, Field(ge=_LEAST_STORE_MIB)] = 128

    @model_validator(mode="after")
    def _each_label_once(self) -> Self:
        for label in self._own_labels():
            if label in self.labels:
                raise ValueError(f"label {label} is given twice")
        for label in self.labels:
            if label.startswith(_RAYS_OWN):
                raise ValueError(f"label {label}: what begins with {_RAYS_OWN} is Ray's own")
        return self

    def all_labels(self) -> dict[str, str]:
        """What the node is started with."""
        return {**self._own_labels(), **self.labels}

    def _own_labels(self) -> dict[str, str]:
        operator, _, region = (self.site or "").partition("/")
        own = {OPERATOR_LABEL: operator, REGION_LABEL: region, SILICON_LABEL: self.silicon, ROLE_LABEL: self.role}
        return {label: value for label, value in own.items() if value}


class NodesFile(_Strict):
    """The whole file."""

    head: HeadNode = HeadNode()
    nodes: Annotated[tuple[LocalNodeSettings, ...], Field(min_length=1)]

    def head_labels(self) -> dict[str, str]:
        """The head carries ingresses, so that a pool's node can be lost without the door."""
        return {ROLE_LABEL: INGRESS_ROLE}


def load_nodes(path: Path, catalogue: NodeCatalogue) -> NodesFile:
    """Read the file; its labels must be those of the catalogue.

    Raises:
        BadSettings: names the file and every fault with its line.
    """
    try:
        document = YamlDocument(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise BadSettings(f"cannot read {path}: {unreadable}") from unreadable
    try:
        nodes = NodesFile.model_validate(document.value)
    except ValidationError as wrong:
        raise document.refusal(Fault(fault["loc"], fault["msg"]) for fault in wrong.errors()) from wrong
    faults = _faults(nodes, catalogue)
    if faults:
        raise document.refusal(faults)
    return nodes


def _faults(file: NodesFile, catalogue: NodeCatalogue) -> list[Fault]:
    faults: list[Fault] = []
    names = {file.head.name}
    for place, node in enumerate(file.nodes):
        at = ("nodes", place)
        if node.name in names:
            faults.append(Fault((*at, "name"), f"there is another node {node.name!r}"))
        names.add(node.name)
        facts = NodeFacts(
            node_id="",
            name=node.name,
            address="",
            is_alive=True,
            labels=node.all_labels(),
            cpus=node.cpus,
            gpus=node.gpus,
        )
        faults += [Fault(at, fault) for fault in label_faults(facts, catalogue)]
    return faults
