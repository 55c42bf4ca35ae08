import importlib.resources
from pathlib import Path

import pytest

from clusters.nodes import OPERATOR_LABEL, REGION_LABEL, ROLE_LABEL, SILICON_LABEL, NodeCatalogue
from clusters.silicon_kinds import SiliconKind
from mesh.errors import BadSettings
from mesh.nodes_file import load_nodes
from mesh.placement_setup import node_catalogue
from mesh.settings import load_settings

_CATALOGUE = NodeCatalogue(
    sites=frozenset({("nordlys", "eu-fi")}),
    kinds={"epyc": SiliconKind(kind="epyc", detected_as="AMD EPYC*", simulated=False)},
)


def _load(tmp_path: Path, text: str):
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    return load_nodes(path, _CATALOGUE)


def test_the_example_fits_its_settings():
    folder = Path(str(importlib.resources.files("clusters")))
    settings = load_settings(folder / "three-sites.yaml", port=None, data_dir=None)
    nodes = load_nodes(folder / "three-sites-nodes.yaml", node_catalogue(settings))
    assert [(node.name, node.site, node.silicon) for node in nodes.nodes] == [
        ("eu-fi", "nordlys/eu-fi", "mi300x"),
        ("eu-de", "rheinwerk/eu-de", "h100"),
        ("us-east", "tidewater/us-east", "grace"),
    ]


def test_a_node_gets_the_labels_of_its_site_silicon_and_role(tmp_path):
    file = _load(
        tmp_path,
        "nodes:\n"
        "  - {name: one, site: nordlys/eu-fi, silicon: epyc, cpus: 1, labels: {rack: r7}}\n"
        "  - {name: door, role: ingress, cpus: 1}\n",
    )
    assert file.nodes[0].all_labels() == {
        OPERATOR_LABEL: "nordlys",
        REGION_LABEL: "eu-fi",
        SILICON_LABEL: "epyc",
        "rack": "r7",
    }
    assert file.nodes[1].all_labels() == {ROLE_LABEL: "ingress"}
    assert file.head_labels() == {ROLE_LABEL: "ingress"}
    assert file.head.name == "head"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("nodes: []", 1, "at least 1 item"),
        ("nodes:\n  - {name: one, cpus: 1, colour: red}", 2, "colour"),
        ("nodes:\n  - {name: One, cpus: 1}", 2, "pattern"),
        ("nodes:\n  - {name: one, cpus: -1}", 2, "greater than or equal to 0"),
        ("nodes:\n  - {name: one, cpus: 1, object_store_mib: 10}", 2, "greater than or equal to 80"),
        ("nodes:\n  - {name: one, cpus: 1}\n  - {name: one, cpus: 1}", 3, "another node 'one'"),
        ("nodes:\n  - {name: head, cpus: 1}", 2, "another node 'head'"),
        ("nodes:\n  - {name: one, site: nordlys, cpus: 1}", 2, "pattern"),
        ("nodes:\n  - {name: one, site: nordlys/us, cpus: 1}", 2, "no site is nordlys/us"),
        ("nodes:\n  - {name: one, site: nordlys/eu-fi, silicon: tpu, cpus: 1}", 2, "silicon 'tpu' is unknown"),
        ("nodes:\n  - {name: one, silicon: epyc, cpus: 1}", 2, "silicon without"),
        ("nodes:\n  - {name: one, role: boss, cpus: 1}", 2, "role 'boss' is unknown"),
        ("nodes:\n  - {name: one, role: ingress, site: nordlys/eu-fi, cpus: 1}", 2, "only pools need"),
        ("nodes:\n  - {name: one, cpus: 1, labels: {rack: a b}}", 2, "pattern"),
        ("nodes:\n  - {name: one, cpus: 1, labels: {a rack: b}}", 2, "pattern"),
        ("nodes:\n  - {name: one, cpus: 1, labels: {ray.io/node-id: b}}", 2, "Ray's own"),
        ('nodes:\n  - {name: one, cpus: 1, labels: {joule-mesh.io/colour: "red"}}', 2, "colour is unknown"),
        (
            "nodes:\n  - {name: one, site: nordlys/eu-fi, cpus: 1, labels: {joule-mesh.io/region: eu}}",
            2,
            "given twice",
        ),
    ],
)
def test_a_fault_is_told_with_file_and_line(tmp_path, text, line, says):
    with pytest.raises(BadSettings, match=r"nodes\.yaml is not valid") as refused:
        _load(tmp_path, text)
    assert f"line {line}, nodes" in str(refused.value)
    assert says in str(refused.value)


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(BadSettings) as refused:
        _load(tmp_path, "nodes:\n  - {name: one, role: boss, cpus: 1}\n  - {name: one, site: a/b, cpus: 1}\n")
    assert len(str(refused.value).splitlines()) == 4


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadSettings, match=r"cannot read .*nodes\.yaml"):
        load_nodes(tmp_path / "nodes.yaml", _CATALOGUE)
