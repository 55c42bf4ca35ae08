from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters.nodes import (
    INGRESS_ROLE,
    OPERATOR_LABEL,
    REGION_LABEL,
    ROLE_LABEL,
    SILICON_LABEL,
    Inventory,
    NodeCatalogue,
    NodeFacts,
    ingress_selector,
    label_faults,
    needs_labels,
    pool_selector,
)
from clusters.silicon_kinds import SiliconKind

_CATALOGUE = NodeCatalogue(
    sites=frozenset({("nordlys", "eu-fi"), ("rheinwerk", "eu-de")}),
    kinds={
        "epyc": SiliconKind(kind="epyc", detected_as="AMD EPYC*", simulated=False),
        "h100": SiliconKind(kind="h100", detected_as="NVIDIA H100*", simulated=True),
    },
)
_EU_FI = {OPERATOR_LABEL: "nordlys", REGION_LABEL: "eu-fi"}
_NAMES = st.text(alphabet="abc-", min_size=1, max_size=5)


def _facts(name: str = "a", *, detected: str | None = None, is_alive: bool = True, **labels: str) -> NodeFacts:
    named = {f"joule-mesh.io/{label}": value for label, value in labels.items()}
    return NodeFacts(
        node_id=f"id-{name}",
        name=name,
        address="127.0.0.1",
        is_alive=is_alive,
        labels=named,
        cpus=1,
        gpus=0,
        detected=detected,
    )


@pytest.mark.parametrize(
    "facts",
    [
        _facts(),
        _facts(operator="nordlys", region="eu-fi"),
        _facts(operator="nordlys", region="eu-fi", silicon="epyc", detected="AMD EPYC 9655"),
        _facts(operator="nordlys", region="eu-fi", silicon="epyc"),
        _facts(operator="nordlys", region="eu-fi", silicon="h100", detected="AMD EPYC 9655"),
        _facts(role="ingress"),
        replace(_facts(), labels={"ray.io/node-id": "x", "somebody.else/silicon": "y"}),
    ],
)
def test_labels_that_agree_are_accepted(facts):
    assert label_faults(facts, _CATALOGUE) == ()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (_facts(colour="red"), "joule-mesh.io/colour is unknown"),
        (_facts(operator="nordlys"), "operator without joule-mesh.io/region"),
        (_facts(region="eu-fi"), "region without joule-mesh.io/operator"),
        (_facts(operator="nordlys", region="eu-de"), "no site is nordlys/eu-de; known: nordlys/eu-fi, rheinwerk/eu-de"),
        (_facts(operator="nobody", region="eu-fi"), "no site is nobody/eu-fi"),
        (_facts(silicon="epyc"), "silicon without"),
        (_facts(operator="nordlys", region="eu-fi", silicon="tpu"), "silicon 'tpu' is unknown; known: epyc, h100"),
        (
            _facts(operator="nordlys", region="eu-fi", silicon="epyc", detected="Intel Xeon"),
            "its meter found 'Intel Xeon'",
        ),
        (_facts(role="boss"), "role 'boss' is unknown"),
        (_facts(role="ingress", operator="nordlys", region="eu-fi"), "which only pools need"),
    ],
)
def test_labels_that_are_unknown_or_contradict_are_refused_with_the_reason(facts, says):
    inventory = Inventory.read([facts], _CATALOGUE)
    assert not inventory.accepted
    (refusal,) = inventory.refusals()
    assert says in refusal
    assert refusal.startswith("node a (127.0.0.1): ")


def test_all_faults_of_a_node_are_told_at_once():
    faults = label_faults(_facts(colour="red", role="boss", region="eu-fi", silicon="tpu"), _CATALOGUE)
    assert len(faults) == 4


def test_the_dead_are_neither_accepted_nor_refused():
    inventory = Inventory.read([_facts("gone", colour="red", is_alive=False)], _CATALOGUE)
    assert not inventory.accepted
    assert not inventory.refused
    assert [facts.name for facts in inventory.dead] == ["gone"]


class TestSelectors:
    def test_one_site_on_unlabelled_nodes_needs_no_labels(self):
        assert not needs_labels(sites=1, is_silicon_named=False, has_pool_labels=False)
        assert pool_selector(operator="o", region="r", silicon=None, is_labelled=False) == {}

    @pytest.mark.parametrize(("sites", "named", "has"), [(2, False, False), (1, True, False), (1, False, True)])
    def test_everything_else_does(self, sites, named, has):
        assert needs_labels(sites=sites, is_silicon_named=named, has_pool_labels=has)

    def test_ingresses_go_where_a_node_has_their_role_if_any_has(self):
        plain = Inventory.read([_facts()], _CATALOGUE)
        assert ingress_selector(plain) == {}
        headed = Inventory.read([_facts(), _facts("head", role="ingress")], _CATALOGUE)
        assert ingress_selector(headed) == {ROLE_LABEL: INGRESS_ROLE}
        assert [node.facts.name for node in headed.matching(ingress_selector(headed))] == ["head"]

    @given(_NAMES, _NAMES, st.none() | _NAMES, _NAMES, _NAMES, st.none() | _NAMES)
    def test_a_pools_selector_finds_exactly_the_nodes_of_its_site_and_silicon(self, o1, r1, s1, o2, r2, s2):
        labels = {OPERATOR_LABEL: o2, REGION_LABEL: r2} | ({} if s2 is None else {SILICON_LABEL: s2})
        kinds = {name: SiliconKind(kind=name, detected_as="*", simulated=True) for name in (s1, s2) if name}
        catalogue = NodeCatalogue(sites=frozenset({(o1, r1), (o2, r2)}), kinds=kinds)
        inventory = Inventory.read([replace(_facts(), labels=labels)], catalogue)
        selector = pool_selector(operator=o1, region=r1, silicon=s1, is_labelled=True)
        assert bool(inventory.matching(selector)) == ((o1, r1) == (o2, r2) and s1 in (None, s2))
        (node,) = inventory.accepted
        assert (node.site, node.silicon) == ((o2, r2), s2)
        assert inventory.has_pool_labels


class TestUnavailable:
    def test_a_pool_with_a_node_is_available(self):
        inventory = Inventory.read([_facts(operator="nordlys", region="eu-fi")], _CATALOGUE)
        assert inventory.why_unavailable(_EU_FI) is None
        assert inventory.why_unavailable({}) is None

    def test_a_pool_without_one_says_which_labels_it_misses(self):
        inventory = Inventory.read([_facts(operator="nordlys", region="eu-fi", is_alive=False)], _CATALOGUE)
        assert inventory.why_unavailable(_EU_FI) == (
            "no living node carries joule-mesh.io/operator=nordlys, joule-mesh.io/region=eu-fi"
        )
        assert inventory.why_unavailable({}) == "the cluster has no accepted node"

    def test_a_pool_whose_only_node_is_refused_says_why(self):
        refused = _facts(operator="nordlys", region="eu-fi", silicon="epyc", detected="Intel Xeon")
        reason = Inventory.read([refused], _CATALOGUE).why_unavailable(_EU_FI)
        assert reason is not None
        assert "node a is refused" in reason
        assert "Intel Xeon" in reason
