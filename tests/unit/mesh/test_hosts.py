from hypothesis import given
from hypothesis import strategies as st

from clusters.nodes import OPERATOR_LABEL, NodeFacts
from mesh.hosts import Host, PlacedNode, changes_of, detected_silicon, hosts_of, is_changed


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


def _host(boot_id: str, *node_ids: str) -> Host:
    return Host(boot_id=boot_id, nodes=tuple(_node(node_id, boot_id) for node_id in node_ids))


class TestChanges:
    """What a look at the cluster means for the meters."""

    def test_nothing_has_changed_while_the_same_nodes_live(self):
        known = [_host("h1", "a", "b"), _host("h2", "c")]
        assert not is_changed(known, {"a", "b", "c"})
        assert not is_changed(known, {"a", "c"}), "no meter ran on it"
        assert is_changed(known, {"a", "b", "c", "d"})
        assert is_changed(known, {"a", "b"})

    def test_a_new_host_joins(self):
        changes = changes_of({"h1": _host("h1", "a")}, [_host("h1", "a"), _host("h2", "b")], {"a", "b"})
        assert [host.boot_id for host in changes.joined] == ["h2"]
        assert set(changes.stay) == {"h1"}

    def test_a_host_under_a_new_node_keeps_its_meter_where_it_is(self):
        changes = changes_of({"h1": _host("h1", "b")}, [_host("h1", "a", "b")], {"a", "b"})
        assert changes.joined == ()
        assert changes.stay["h1"].node_id == "b"
        assert {node.facts.node_id for node in changes.stay["h1"].nodes} == {"a", "b"}

    def test_a_host_whose_meters_node_is_gone_joins_again_under_another(self):
        changes = changes_of({"h1": _host("h1", "a", "b")}, [_host("h1", "b")], {"b"})
        assert [host.node_id for host in changes.joined] == ["b"]
        assert changes.stay == {}

    def test_a_host_of_which_no_node_lives_is_forgotten_and_the_next_look_is_at_peace(self):
        known = {"h1": _host("h1", "a"), "h2": _host("h2", "b")}
        changes = changes_of(known, [_host("h1", "a")], {"a"})
        assert (changes.left, changes.joined) == (("h2",), ())
        assert not is_changed(changes.stay.values(), {"a"})

    def test_a_host_that_lives_but_did_not_answer_is_kept(self):
        known = {"h1": _host("h1", "a"), "h2": _host("h2", "b")}
        changes = changes_of(known, [_host("h1", "a"), _host("h3", "c")], {"a", "b", "c"})
        assert set(changes.stay) == {"h1", "h2"}
        assert changes.left == ()

    @given(
        st.dictionaries(st.sampled_from("wxyz"), st.lists(st.sampled_from("abcd"), min_size=1, unique=True)),
        st.dictionaries(st.sampled_from("wxyz"), st.lists(st.sampled_from("abcd"), min_size=1, unique=True)),
        st.sets(st.sampled_from("abcd")),
    )
    def test_every_host_that_answers_has_a_meter_and_none_that_is_known_is_lost_unsaid(self, known, found, living):
        before = {boot: _host(boot, *nodes) for boot, nodes in known.items()}
        changes = changes_of(before, [_host(boot, *nodes) for boot, nodes in found.items()], living)
        joined = [host.boot_id for host in changes.joined]
        assert set(found) <= {*joined, *changes.stay}
        assert not set(joined) & set(changes.stay)
        assert set(known) <= {*joined, *changes.stay, *changes.left}
        assert not set(changes.left) & set(found)
