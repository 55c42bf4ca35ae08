from hypothesis import given
from hypothesis import strategies as st

from clusters.nodes import OPERATOR_LABEL, NodeFacts
from mesh.hosts import PlacedNode, detected_silicon, hosts_of


def _node(node_id: str, host: str, *, address: str = "10.0.0.1", name: str | None = None, pool: bool = False):
    facts = NodeFacts(
        node_id=node_id,
        name=name or node_id,
        address=address,
        is_alive=True,
        labels={OPERATOR_LABEL: "nordlys"} if pool else {},
        cpus=1,
        gpus=0,
    )
    return PlacedNode(facts=facts, host=host, raylet_pid=1)


def test_many_nodes_of_one_machine_are_one_host():
    (host,) = hosts_of([_node("a", "boot-1", pool=True), _node("head", "boot-1")], own_node_id="head")
    assert host.boot_id == "boot-1"
    assert [node.facts.node_id for node in host.nodes] == ["head", "a"]


def test_what_there_is_one_of_runs_beside_this_process_and_not_where_pools_come_and_go():
    nodes = [
        _node("own", "here", address="10.0.0.9", pool=True),
        _node("a", "here", address="10.0.0.9"),
        _node("b", "there", address="10.0.0.2", pool=True),
        _node("c", "there", address="10.0.0.2"),
    ]
    assert [host.node_id for host in hosts_of(nodes, own_node_id="own")] == ["own", "c"]


@given(
    st.permutations(
        [("own", "h1", "10.0.0.3"), ("a", "h2", "10.0.0.1"), ("b", "h3", "10.0.0.2"), ("c", "h3", "10.0.0.2")]
    )
)
def test_the_order_of_hosts_is_the_same_whatever_order_ray_lists_nodes_in(listed):
    hosts = hosts_of([_node(node, host, address=address) for node, host, address in listed], own_node_id="own")
    assert [host.boot_id for host in hosts] == ["h1", "h2", "h3"]
    assert [node.facts.node_id for node in hosts[2].nodes] == ["b", "c"]


def test_hosts_keep_their_order_when_a_reboot_gives_them_other_names():
    before = hosts_of([_node("a", "x", address="10.0.0.1"), _node("b", "y", address="10.0.0.2")], own_node_id="none")
    after = hosts_of([_node("c", "z", address="10.0.0.1"), _node("d", "w", address="10.0.0.2")], own_node_id="none")
    assert [host.nodes[0].facts.address for host in before] == [host.nodes[0].facts.address for host in after]


def test_each_node_has_the_silicon_that_its_hosts_meter_detected():
    hosts = hosts_of([_node("a", "x"), _node("b", "x"), _node("c", "y")], own_node_id="a")
    assert detected_silicon(hosts, {"x": "AMD EPYC"}) == {"a": "AMD EPYC", "b": "AMD EPYC"}
