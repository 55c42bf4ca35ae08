"""Joules on an answer: the headers, the ``energy`` object, and where in a stream it rides. Never an extra chunk."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from serve.messages import DONE, Payload, Settled
from serve.shapes import Shape

# Inside a text its quotation marks are escaped: none of these can be an answer's own words.
_FINISHED: Final = b'"finish_reason":"'
_NO_CHOICES: Final = b'"choices":[]'
_USAGE: Final = b'"usage":{'
_MESSAGE_DELTA: Final = b"event: message_delta\n"
_DATA: Final = b"data: "


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
    """The engine's JSON object, its bytes as they are, with the member ``energy`` at its end."""
    begin = body.rstrip().removesuffix(b"}")
    comma = b"" if begin.endswith(b"{") else b","
    return begin + comma + b'"energy":' + json.dumps(energy_object(receipt), separators=(",", ":")).encode() + b"}"


def with_energy(items: AsyncIterator[Payload | Settled], shape: Shape, *, include_usage: bool) -> AsyncIterator[bytes]:
    """The engine's events, the one that carries the energy held back until the receipt is there.

    Of Anthropic's streams it is the ``message_delta`` that tells the stop reason and the usage. ``include_usage`` is
    as OpenAI's clients have asked for it.
    """
    return _messages(items) if shape is Shape.MESSAGES else _chunks(items, include_usage=include_usage)


async def _messages(items: AsyncIterator[Payload | Settled]) -> AsyncIterator[bytes]:
    held: list[bytes] = []
    async for item in items:
        if isinstance(item, Settled):
            if held:
                yield _with_member(held[0], "energy", energy_object(item.document))
            for event in held[1:]:
                yield event
            return
        if item.data == DONE:  # Anthropic's streams end with their message_stop
            continue
        if held or item.data.startswith(_MESSAGE_DELTA):
            held.append(item.data)
        else:
            yield item.data


async def _chunks(items: AsyncIterator[Payload | Settled], *, include_usage: bool) -> AsyncIterator[bytes]:
    """OpenAI's streams. The engine always counts usage.

    With ``include_usage`` the energy rides on the usage chunk; otherwise that chunk is the mesh's own and is dropped,
    and the last chunk with a ``finish_reason`` carries the energy.
    """
    held: bytes | None = None
    async for item in items:
        if isinstance(item, Settled):
            if held is not None:
                yield _with_member(held, "energy", energy_object(item.document))
            yield DONE
            return
        event = item.data
        is_usage = _NO_CHOICES in event and _USAGE in event
        if event == DONE or (is_usage and not include_usage):
            continue
        if held is not None:
            yield held
            held = None
        if is_usage if include_usage else _FINISHED in event:
            held = event
        else:
            yield event


def _with_member(event: bytes, name: str, value: object) -> bytes:
    head, mark, data = event.partition(_DATA)
    chunk = json.loads(data)
    chunk[name] = value
    return head + mark + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
