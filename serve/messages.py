"""Values that pass between the room's actors: what a replica is to answer and streams back, and a meter's card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from serve.shapes import Shape

EVENT_END = b"\n\n"
"""The blank line that ends each event of a stream, and is nowhere inside one."""

DONE = b"data: [DONE]" + EVENT_END
"""The event that ends a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What is held for a request when an attempt at it begins, and what its energy costs on the attempt's pool.

    ``lease_s`` is how long a hold lasts that nobody renews.
    """

    account: str
    usd_picos: int
    usd_per_kwh: float
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTask:
    """One attempt as its replica gets it. ``context`` is what the receipt says beside the meter's figures.

    ``delivered`` are the answer's token ids that its client has from earlier attempts, which this one goes on after.
    Without ``allowance`` its running charge is not compared with a hold.
    """

    request_id: str
    shape: Shape
    context: bytes
    body: Mapping[str, Any]
    delivered: tuple[int, ...] = ()
    allowance: Allowance | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First item of an attempt that succeeds: which silicon answers. ``energy_method`` is None when unavailable."""

    replica: str
    silicon: str
    energy_method: str | None


@dataclass(frozen=True, slots=True)
class Payload:
    """One server-sent event of a stream (with its blank line), or the whole JSON body of a unary answer.

    ``token_ids``: the answer's tokens that were consumed for it since the event before; with those of the earlier
    events they are what another replica goes on after. Empty where the answer can't be resumed.
    """

    data: bytes
    token_ids: tuple[int, ...] = ()

    def is_last(self, *, is_stream: bool) -> bool:
        """Whether the answer is whole with it, and only its receipt is to come."""
        return not is_stream or self.data == DONE


@dataclass(frozen=True, slots=True)
class Working:
    """A unary answer makes progress; it says no more than that."""


@dataclass(frozen=True)
class Settled:
    """Last item: the receipt's signed bytes, durably stored. Without slots, for these leave no room for `document`."""

    receipt: bytes

    @cached_property
    def document(self) -> dict[str, Any]:
        """The receipt, parsed once for all who read it; not to be changed."""
        document: dict[str, Any] = json.loads(self.receipt)
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """First and only item when the engine finds the request wrong; no energy was used and no receipt is made."""

    status: int
    message: str
    param: str | None


@dataclass(frozen=True, slots=True)
class Opening:
    """The first two items of an attempt in one message, of which each costs more than what is in it."""

    started: Started
    first: Payload | Working


ReplicaItem = Started | Payload | Working | Settled | Refused
"""What is said of an attempt, one after the other."""

ReplicaMessage = Opening | Payload | Working | Settled | Refused
"""What a replica sends of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """What became of an attempt that the door waits for no longer, as its host's meter has it.

    ``is_charged``: it had been settled as finished or aborted before, so its account pays for it; else the mesh does.
    ``energy_microjoules`` is what it drew, None where that isn't known, or nothing of it ran on that host.
    """

    is_charged: bool
    energy_microjoules: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCard:
    """What others need to know of a host's meter. ``energy_method`` is None when nothing can be metered.

    ``public_key`` signs its statements; ``maximum_power_milliwatts`` is the most that its counters can honestly count.
    Engines report their steps to ``steps_socket``, replicas their attempts to ``line_socket``: paths on its host.
    """

    public_key: bytes
    maximum_power_milliwatts: int
    interval_s: float
    node: str
    steps_socket: str
    line_socket: str
    silicon: str
    gpu_ids: tuple[str, ...]
    energy_method: str | None

    def gpus_of(self, assigned: Sequence[int | str]) -> tuple[str, ...]:
        """UUIDs of the GPUs that Ray gave a replica: it names them by index, or by UUID where it was told to."""
        return tuple(self.gpu_ids[int(each)] if str(each).isdecimal() else str(each) for each in assigned)
