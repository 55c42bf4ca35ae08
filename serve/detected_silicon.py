"""What the hosts' meters detected, for the watch over the nodes: a label that says otherwise is refused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from clusters.nodes import NodeFacts

_ASK_EVERY_S = 5.0


class DetectedSilicon:
    """Adds to nodes what is known of their silicon. ``ask`` gives it by the ids of the nodes that meters are on.

    Nodes with one address are on one host, of which one meter speaks. A node in a container with an address of its own
    stays unknown where its host's meter is elsewhere: there a replica finds out when it starts. Asks only while some
    living node is unknown, every few seconds; ``clock`` is in seconds, monotonic.
    """

    def __init__(self, ask: Callable[[], Mapping[str, str]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._asked_at: float | None = None
        self._by_node: dict[str, str] = {}

    def added_to(self, nodes: Sequence[NodeFacts]) -> tuple[NodeFacts, ...]:
        """The same nodes, each with its ``detected`` where that is known."""
        living = {node.node_id: node.address for node in nodes if node.is_alive}
        self._by_node = {node: silicon for node, silicon in self._by_node.items() if node in living}
        if not set(living.values()) <= {living[node] for node in self._by_node} and self._may_ask():
            self._by_node |= {node: silicon for node, silicon in self._ask().items() if node in living}
        by_address = {living[node]: silicon for node, silicon in self._by_node.items()}
        return tuple(replace(node, detected=by_address.get(node.address)) for node in nodes)

    def _may_ask(self) -> bool:
        now = self._clock()
        if self._asked_at is not None and now - self._asked_at < _ASK_EVERY_S:
            return False
        self._asked_at = now
        return True
