"""What the composition root makes inside each ingress replica."""

from collections.abc import Mapping
from dataclasses import dataclass

from clusters.nodes import NodeCatalogue
from serve.door import Door
from serve.door_limits import DoorLimits
from serve.payments.protocol import PaymentProvider
from serve.request_pins import RequestPins


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The door and its limits, the pins of accounts, what the watch over the pools looks for, and who moves money.

    ``selectors`` are the pools' node labels by pool; ``nodes`` says what labels may say. Accounts that are to be
    recharged are looked for every ``recharge_every_s``.
    """

    door: Door
    limits: DoorLimits
    pins: RequestPins
    selectors: Mapping[str, Mapping[str, str]]
    nodes: NodeCatalogue
    payments: PaymentProvider
    recharge_every_s: float
