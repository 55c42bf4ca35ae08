"""A client that costs little beside what it measures: requests over kept connections, timed as answers come."""

import asyncio
import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_CONTENT = re.compile(rb'"content": ?"[^"]')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_LENGTH = re.compile(rb"content-length: ?(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: ?close", re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_NEEDLE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server that is measured, and how it is asked."""

    name: str
    url: str
    key: str
    model: str

    def chat(self, body: Mapping[str, Any]) -> bytes:
        """The bytes of a request for a chat completion; its model is added."""
        data = json.dumps({**body, "model": self.model}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request as its client saw it. Times are seconds since it was sent; ``events`` are a stream's."""

    status: int
    first_content_s: float | None
    whole_s: float
    events: int
    tokens: int

    @property
    def per_event_s(self) -> float | None:
        """Between two events, from the first with content to the last; None where there are no two."""
        if self.first_content_s is None or self.events < 2:
            return None
        return (self.whole_s - self.first_content_s) / (self.events - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a run of many exchanges came to."""

    exchanges: Sequence[Exchange]
    elapsed_s: float

    @property
    def whole_ms(self) -> float:
        """Median time of an exchange."""
        return 1000 * statistics.median(each.whole_s for each in self.exchanges)

    @property
    def first_content_ms(self) -> float:
        """Median time to the first event with content."""
        return 1000 * statistics.median(each.first_content_s or each.whole_s for each in self.exchanges)

    @property
    def per_event_ms(self) -> float:
        """Median time between two events of a stream."""
        return 1000 * statistics.median(each.per_event_s or 0.0 for each in self.exchanges)

    @property
    def per_s(self) -> float:
        """Exchanges in a second."""
        return len(self.exchanges) / self.elapsed_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers in a second."""
        return sum(each.tokens for each in self.exchanges) / self.elapsed_s


class _Connection(asyncio.Protocol):
    """One kept connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Exchange] | None = None
        self.is_open = True
        self._reset()

    def _reset(self) -> None:
        self._head = b""
        self._status = 0
        self._left: int | None = None
        self._tail = b""
        self._first_s: float | None = None
        self._events = 0
        self._tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server hung up"))

    async def ask(self, request: bytes) -> Exchange:
        assert self._transport is not None, "not connected"
        self._reset()
        self._done = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        assert self._transport is not None, "not connected"
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._head += data
            head, end, data = self._head.partition(_HEADERS_END)
            if not end:
                return
            self._status = int(head.split(b" ", 2)[1])
            self.is_open = not _CLOSES.search(head)
            length = _LENGTH.search(head)
            self._left = int(length.group(1)) if length else None
        self._look(data)
        if self._left is not None:
            self._left -= len(data)
        if self._left == 0 or (self._left is None and self._tail.endswith(_LAST_CHUNK)):
            self._finish()

    def _look(self, data: bytes) -> None:
        """Count what has come; what lies across two pieces is found with the second one."""
        seen = self._tail + data
        self._events += seen.count(b"data: {") - self._tail.count(b"data: {")
        if self._first_s is None and _CONTENT.search(seen):
            self._first_s = time.perf_counter() - self._began
        if b"completion_tokens" in seen and (found := _TOKENS.findall(seen)):
            self._tokens = int(found[-1])
        self._tail = seen[-_NEEDLE_BYTES:]

    def _finish(self) -> None:
        assert self._done is not None, "nothing was asked"
        self._done.set_result(
            Exchange(
                status=self._status,
                first_content_s=self._first_s,
                whole_s=time.perf_counter() - self._began,
                events=self._events,
                tokens=self._tokens,
            )
        )


async def run_load(target: Target, requests: Sequence[bytes], at_once: int) -> Load:
    """Send all requests, so many at a time, and see each answered.

    Raises:
        RuntimeError: one was refused.
    """
    address = urlsplit(target.url)
    loop = asyncio.get_running_loop()
    left = iter(requests)
    exchanges: list[Exchange] = []

    async def client() -> None:
        _, connection = await loop.create_connection(_Connection, address.hostname, address.port)
        for request in left:
            if not connection.is_open:
                connection.close()
                _, connection = await loop.create_connection(_Connection, address.hostname, address.port)
            exchange = await connection.ask(request)
            if exchange.status != 200:
                raise RuntimeError(f"{target.name} answered {exchange.status}")
            exchanges.append(exchange)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return Load(exchanges=exchanges, elapsed_s=time.perf_counter() - began)
