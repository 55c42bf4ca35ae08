"""Values that pass between the room's actors: what a replica streams to the ingress, how a meter introduces itself."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First item of an attempt that succeeds: which silicon answers. ``energy_method`` is None when unavailable."""

    replica: str
    silicon: str
    energy_method: str | None


@dataclass(frozen=True, slots=True)
class Payload:
    """One server-sent event of a stream (with its blank line), or the whole JSON body of a unary answer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """Last item: the receipt's signed bytes, durably stored."""

    receipt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """First and only item when the engine finds the request wrong; no energy was used and no receipt is made."""

    status: int
    message: str
    param: str | None


ReplicaItem = Started | Payload | Settled | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterCard:
    """What others need to know of a host's meter. ``energy_method`` is None when nothing can be metered.

    ``public_key`` signs its statements; ``maximum_power_milliwatts`` is the most that its counters can honestly count.
    """

    public_key: bytes
    maximum_power_milliwatts: int
    interval_s: float
    node: str
    socket_path: str
    silicon: str
    gpu_ids: tuple[str, ...]
    energy_method: str | None

    def gpus_of(self, assigned: Sequence[int | str]) -> tuple[str, ...]:
        """UUIDs of the GPUs that Ray gave a replica: it names them by index, or by UUID where it was told to."""
        return tuple(self.gpu_ids[int(each)] if str(each).isdecimal() else str(each) for each in assigned)
