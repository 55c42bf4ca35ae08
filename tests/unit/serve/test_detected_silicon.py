from collections.abc import Mapping

from clusters.nodes import OPERATOR_LABEL, REGION_LABEL, SILICON_LABEL, Inventory, NodeCatalogue, NodeFacts
from clusters.silicon_kinds import SiliconKind
from serve.detected_silicon import DetectedSilicon


def node(node_id: str, address: str, *, is_alive: bool = True, labels: Mapping[str, str] | None = None) -> NodeFacts:
    return NodeFacts(
        node_id=node_id, name=node_id, address=address, is_alive=is_alive, labels=labels or {}, cpus=1.0, gpus=0.0
    )


class Meters:
    """What meters would answer, by the node that each is on; counts how often they are asked."""

    def __init__(self, **silicon: str) -> None:
        self.silicon = silicon
        self.asked = 0
        self.now_s = 50.0

    def __call__(self) -> Mapping[str, str]:
        self.asked += 1
        return dict(self.silicon)

    def clock(self) -> float:
        return self.now_s


def found(silicon: DetectedSilicon, *nodes: NodeFacts) -> list[str | None]:
    return [each.detected for each in silicon.added_to(nodes)]


def test_every_node_of_a_host_has_what_its_one_meter_found():
    meters = Meters(head="EPYC")
    silicon = DetectedSilicon(meters, meters.clock)
    nodes = node("head", "10.0.0.1"), node("a", "10.0.0.1"), node("b", "10.0.0.2")
    assert found(silicon, *nodes) == ["EPYC", "EPYC", None]


def test_meters_are_asked_again_only_while_a_living_node_is_unknown_and_not_at_every_look():
    meters = Meters(head="EPYC")
    silicon = DetectedSilicon(meters, meters.clock)
    dead = node("c", "10.0.0.3", is_alive=False)
    for _ in range(20):
        assert found(silicon, node("head", "10.0.0.1"), dead) == ["EPYC", None]
        meters.now_s += 1
    assert meters.asked == 1
    meters.silicon["b"] = "XEON"
    for _ in range(7):
        found(silicon, node("head", "10.0.0.1"), node("b", "10.0.0.2"), node("own container", "10.0.0.4"))
        meters.now_s += 1
    assert meters.asked == 3
    assert found(silicon, node("b", "10.0.0.2")) == ["XEON"]


def test_a_host_that_took_a_lost_ones_address_is_asked_for_itself():
    meters = Meters(old="EPYC")
    silicon = DetectedSilicon(meters, meters.clock)
    assert found(silicon, node("old", "10.0.0.1")) == ["EPYC"]
    meters.silicon = {"new": "XEON"}
    meters.now_s += 10
    assert found(silicon, node("old", "10.0.0.1", is_alive=False), node("new", "10.0.0.1"))[1] == "XEON"


def test_a_mislabelled_node_that_joins_later_is_refused():
    catalogue = NodeCatalogue(
        sites=frozenset({("acme", "eu-fi")}),
        kinds={"h100": SiliconKind(kind="h100", detected_as="NVIDIA H100*", simulated=False)},
    )
    labels = {OPERATOR_LABEL: "acme", REGION_LABEL: "eu-fi", SILICON_LABEL: "h100"}
    meters = Meters(late="AMD EPYC")
    silicon = DetectedSilicon(meters, meters.clock)
    inventory = Inventory.read(silicon.added_to([node("late", "10.0.0.7", labels=labels)]), catalogue)
    assert "its meter found 'AMD EPYC'" in str(inventory.why_unavailable(labels))
