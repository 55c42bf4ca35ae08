"""Reading a request's body: bounded in size and in time, and as JSON more strictly than `json` reads it."""

import asyncio
import json
import math
from collections.abc import AsyncIterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from serve.errors import RequestRefused

MAX_BODY_BYTES: Final = 10 * 1024 * 1024
BODY_WITHIN_S: Final = 60.0
"""For the whole of it: 10 MB at 1.4 Mbit/s."""
MOST_NESTED: Final = 100
"""What is behind the door goes through bodies by recursion; JSON schemas of tools have a tenth of that."""
_MOST_DIGITS: Final = 20
_SURROGATES: Final = (b"\\ud", b"\\uD")


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """The most bytes that a body may have, and the seconds in which all of it must have come."""

    most_bytes: int = MAX_BODY_BYTES
    within_s: float = BODY_WITHIN_S


async def read_json_object(request: Request, limits: BodyLimits) -> tuple[dict[str, Any], int]:
    """The request's body as a JSON object, and how many bytes it has.

    Raises:
        RequestRefused: as `check_content`, `read_body` and `parse_json_object`.
    """
    check_content(request.headers)
    body = await read_body(request.stream(), request.headers.get("content-length"), limits)
    return parse_json_object(body), len(body)


def check_content(headers: Headers) -> None:
    """Whether the body is what the routes take: JSON, in UTF-8, as it is. No type at all is taken for that.

    Raises:
        RequestRefused: 400.
    """
    kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
    if kind and kind != "application/json":
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "send `Content-Type: application/json`", "Content-Type")
    charsets = [each.partition("=")[2].strip('"') for each in parameters if each.startswith("charset=")]
    if any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "the body must be UTF-8", "Content-Type")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "send the body without Content-Encoding", "Content-Encoding")


async def read_body(chunks: AsyncIterable[bytes], content_length: str | None, limits: BodyLimits) -> bytes:
    """Read a body of so many bytes in so much time at most.

    Raises:
        RequestRefused: 413, as soon as the length is known to be too large; 408; 400 when the client went meanwhile.
    """
    # A length that is no number never comes so far, or is no length: the bytes are counted all the same.
    if content_length is not None and content_length.isdecimal() and int(content_length) > limits.most_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.within_s):
            async for chunk in chunks:
                body += chunk
                if len(body) > limits.most_bytes:
                    raise _too_large(limits)
    except TimeoutError as late:
        message = f"the body did not come within {limits.within_s:g} s"
        raise RequestRefused(HTTPStatus.REQUEST_TIMEOUT, message) from late
    except ClientDisconnect as gone:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "the body ended before its end") from gone
    return bytes(body)


def _too_large(limits: BodyLimits) -> RequestRefused:
    most = f"{limits.most_bytes // 2**20} MB" if limits.most_bytes >= 2**20 else f"{limits.most_bytes // 2**10} kB"
    return RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {most}")


def parse_json_object(data: bytes) -> dict[str, Any]:
    """A JSON object, strictly (RFC 8259 as I-JSON narrows it, RFC 7493): UTF-8, no NaN or Infinity, no number beyond
    what a double or 20 digits hold, no duplicate keys, no half of a surrogate pair, no nesting beyond `MOST_NESTED`.

    Raises:
        RequestRefused: 400, saying what is wrong and where.
    """
    try:
        value = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short,
            object_pairs_hook=_unique_keys,
        )
        _check_depth(data, value)
        _check_surrogates(data, value)
    except UnicodeDecodeError as wrong:
        raise _bad(f"the body is not UTF-8: bad byte at {wrong.start}") from wrong
    except json.JSONDecodeError as wrong:
        where = f"line {wrong.lineno} column {wrong.colno}"
        raise _bad(f"the body is not valid JSON: {wrong.msg} at {where}") from wrong
    except ValueError as wrong:
        raise _bad(f"the body is not valid JSON: {wrong}") from wrong
    except RecursionError as wrong:
        raise _bad("the body is nested too deeply") from wrong
    if not isinstance(value, dict):
        raise _bad("the body must be a JSON object")
    return value


def _bad(message: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.BAD_REQUEST, message)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _short(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number has more than {_MOST_DIGITS} digits")
    return int(text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return value


def _check_depth(data: bytes, value: object) -> None:
    if data.count(b"{") + data.count(b"[") <= MOST_NESTED:
        return
    level: list[object] = [value]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise RecursionError


def _check_surrogates(data: bytes, value: object) -> None:
    if any(mark in data for mark in _SURROGATES):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as wrong:
            raise ValueError("an escape is half of a surrogate pair") from wrong
