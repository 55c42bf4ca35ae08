"""What the composition root makes inside each ingress replica."""

from collections.abc import Mapping
from dataclasses import dataclass

from clusters.nodes import NodeCatalogue
from serve.door import Door
from serve.request_pins import RequestPins


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The door, the pins of accounts, and what the watch over the pools looks for.

    ``selectors`` are the pools' node labels by pool; ``nodes`` says what labels may say.
    """

    door: Door
    pins: RequestPins
    selectors: Mapping[str, Mapping[str, str]]
    nodes: NodeCatalogue
