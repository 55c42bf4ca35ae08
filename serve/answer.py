"""Joules on an answer: the headers, the ``energy`` object, and where in a stream it rides. Never an extra chunk."""

import json
from collections.abc import AsyncIterator
from typing import Any

from serve.messages import DONE, Payload, Settled

_FINISHED = b'"finish_reason":"'
_USAGE = b'"choices":[],"usage":{'


def energy_object(receipt: dict[str, Any]) -> dict[str, Any]:
    """What a receipt says of its energy and how well it is known; nulls where it was not measured."""
    energy, grams = receipt["energy"], receipt["carbon"]["gco2eq_total"]
    return {
        "joules": energy["total_joules"],
        "method": energy["method"],
        "confidence": energy["method_confidence"],
        "carbon_mg": None if grams is None else round(grams * 1000, 9),
        "receipt_id": receipt["receipt_id"],
        "estimated_joules": energy["estimated_joules"],
        "scope": energy["scope"],
        "counter_period_ms": energy["counter_period_ms"],
        "mean_batch": energy["mean_batch"],
        "errors": energy["errors"],
    }


def energy_headers(receipt: dict[str, Any]) -> dict[str, str]:
    """``X-Energy-Joules`` and how well it is known, and ``X-Carbon-mg``; what is absent is the word ``unavailable``."""
    energy = energy_object(receipt)
    return {
        "X-Energy-Joules": _header(energy["joules"]),
        "X-Energy-Method": _header(energy["method"]),
        "X-Energy-Confidence": _header(energy["confidence"]),
        "X-Energy-Estimated-Joules": _header(energy["estimated_joules"]),
        "X-Energy-Scope": _header("+".join(energy["scope"]) or None),
        "X-Energy-Counter-Period-ms": _header(energy["counter_period_ms"]),
        "X-Energy-Mean-Batch": _header(energy["mean_batch"]),
        "X-Energy-Error-Percent": _errors(energy["errors"]),
        "X-Carbon-mg": _header(energy["carbon_mg"]),
    }


def _errors(errors: dict[str, Any]) -> str:
    """The three errors in one line: ``conservation=0, counter=30, allocation=unavailable``."""
    names = ("conservation", "counter", "allocation")
    return ", ".join(f"{name}={_header(errors[f'{name}_percent'])}" for name in names)


def _header(value: float | str | None) -> str:
    """Decimal, never exponent notation: a header is read by people and by simple parsers."""
    if value is None:
        return "unavailable"
    if isinstance(value, str):
        return value
    return f"{value:.9f}".rstrip("0").rstrip(".")


def unary_body(body: bytes, receipt: dict[str, Any]) -> bytes:
    """The engine's JSON body with the ``energy`` member."""
    return json.dumps({**json.loads(body), "energy": energy_object(receipt)}, ensure_ascii=False).encode()


async def with_energy(items: AsyncIterator[Payload | Settled], *, include_usage: bool) -> AsyncIterator[bytes]:
    """The engine's events, the one that carries the energy held back until the receipt is there.

    The engine always counts usage. With ``include_usage`` the energy rides on the usage chunk; otherwise that
    chunk is the mesh's own and is dropped, and the last chunk with a ``finish_reason`` carries the energy.
    """
    held: bytes | None = None
    async for item in items:
        if isinstance(item, Settled):
            if held is not None:
                yield _with_member(held, "energy", energy_object(item.document))
            yield DONE
            return
        event = item.data
        if event == DONE or (_USAGE in event and not include_usage):
            continue
        if held is not None:
            yield held
            held = None
        if (_USAGE if include_usage else _FINISHED) in event:
            held = event
        else:
            yield event


def _with_member(event: bytes, name: str, value: object) -> bytes:
    chunk = json.loads(event.removeprefix(b"data: "))
    chunk[name] = value
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
