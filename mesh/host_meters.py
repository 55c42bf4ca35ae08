"""A meter for every physical host of the cluster, and for those that join later."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from clusters.nodes import Inventory, NodeCatalogue
from mesh.hosts import Host, changes_of, detected_silicon, hosts_of, is_changed, place_nodes
from mesh.meter_enrolments import MeterEnrolments
from mesh.meter_setup import HostMeterSetup
from serve.messages import MeterCard

if TYPE_CHECKING:  # ray reads its environment when it is imported, which must not be before `start_ray`
    from ray.actor import ActorHandle

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 5.0
_ANSWERS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 10.0

MakeSetup = Callable[[tuple[int, ...]], HostMeterSetup]


class HostMeters:
    """Starts the meters, and one more where a new host, or a known one under a new Ray node, joins.

    Args:
        make_setup: what a host's meter is made of, given the roots of the mesh's own processes there.
        namespace: the mesh's.
        is_cluster_ours: whether the cluster's servers are this process's children.
        catalogue: what nodes' labels may say.
    """

    def __init__(
        self, make_setup: MakeSetup, namespace: str, *, is_cluster_ours: bool, catalogue: NodeCatalogue
    ) -> None:
        self._make_setup = make_setup
        self._namespace = namespace
        self._is_cluster_ours = is_cluster_ours
        self._catalogue = catalogue
        self._meters: dict[str, ActorHandle[Any]] = {}
        self._cards: dict[str, MeterCard] = {}
        self._hosts: dict[str, Host] = {}
        self._refused: frozenset[str] = frozenset()
        self._enrolments: MeterEnrolments | None = None
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="host-meters", daemon=True)

    @property
    def meters(self) -> Mapping[str, "ActorHandle[Any]"]:
        """The meters by their host's boot id."""
        return self._meters

    def find_hosts(self) -> tuple[Host, ...]:
        """Every host with a living node that answers, as `hosts_of` orders them."""
        import ray

        from clusters.node_inventory import node_facts

        own = str(ray.get_runtime_context().get_node_id())
        return hosts_of(place_nodes(node_facts(), within_s=_ANSWERS_WITHIN_S), own_node_id=own)

    def start(self, host: Host) -> tuple[MeterCard, tuple[str, ...]]:
        """Start a host's meter: its card, and how energy is measured there, a line each."""
        import ray

        from serve.meter_actor import boot_id, start_meter

        # A local cluster's own servers are children of this process, beside the Ray nodes.
        ours = (os.getpid(),) if self._is_cluster_ours and host.boot_id == boot_id() else ()
        setup = self._make_setup((*ours, *(node.raylet_pid for node in host.nodes)))
        meter = start_meter(host.node_id, host.boot_id, setup, self._namespace)
        card = cast("MeterCard", ray.get(meter.card.remote(), timeout=_ANSWERS_WITHIN_S))
        notes = cast("tuple[str, ...]", ray.get(meter.notes.remote(), timeout=_ANSWERS_WITHIN_S))
        self._meters[host.boot_id], self._cards[host.boot_id], self._hosts[host.boot_id] = meter, card, host
        return card, notes

    def inventory(self) -> Inventory:
        """The nodes as of now, judged by their labels and by what the meters detected."""
        from clusters.node_inventory import read_inventory

        silicon = {host: card.silicon for host, card in self._cards.items()}
        return read_inventory(self._catalogue, detected_silicon(self._hosts.values(), silicon))

    def watch(self, enrolments: MeterEnrolments) -> None:
        """Look for new hosts in a thread from now on; ``enrolments`` make their meters known to the signers."""
        self._enrolments = enrolments
        self._thread.start()

    def stop(self) -> None:
        """Look no longer; returns when no look is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_ENDS_WITHIN_S)

    def _go_on(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            try:
                self._look()
                self._trouble = None
            except Exception as away:  # noqa: BLE001 - Ray's head may be away for a while; the watch must go on
                trouble = type(away).__name__
                if not self._stopping.is_set() and trouble != self._trouble:
                    _LOG.exception("the cluster's hosts can't be seen now")
                self._trouble = trouble

    def _look(self) -> None:
        from clusters.node_inventory import node_facts

        living = frozenset(facts.node_id for facts in node_facts() if facts.is_alive)
        if not is_changed(self._hosts.values(), living):
            return
        changes = changes_of(self._hosts, self.find_hosts(), living)
        self._hosts = dict(changes.stay)
        for boot_id in changes.left:
            _LOG.warning("a host left: none of its nodes lives (boot id %s)", boot_id)
        for host in changes.joined:
            self._join(host)
        self._warn_of_refused()

    def _join(self, host: Host) -> None:
        import ray

        assert self._enrolments is not None, "watch() gave them"
        lost = self._meters.pop(host.boot_id, None)
        if lost is not None:
            ray.kill(lost, no_restart=True)  # held to a node that is gone, it would keep its name
        card, notes = self.start(host)
        _LOG.warning("host %s joined: its meter measures %s", card.node, card.energy_method or "nothing: NOT BILLED")
        for note in notes:
            _LOG.warning("  %s", note)
        self._enrolments.add(host.boot_id, self._meters[host.boot_id])

    def _warn_of_refused(self) -> None:
        refusals = frozenset(self.inventory().refusals())
        for refusal in sorted(refusals - self._refused):
            _LOG.warning("refused: %s", refusal)
        self._refused = refusals
