"""What a replica streams to the ingress while it answers one request."""

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
