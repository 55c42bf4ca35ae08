"""Clients that keep a mesh busy and remember what they were told: unary, streaming, and some that hang up."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final, Self

import requests

KINDS: Final = ("unary", "stream", "hang-up")
_WEIGHTS: Final = (50, 30, 20)
_WORDS: Final = {"unary": (1, 8), "stream": (5, 30), "hang-up": (200, 400)}
_HANGS_UP_AFTER_EVENTS: Final = (1, 12)
_THINKS_S: Final = (0.02, 0.15)
_AFTER_A_FAILURE_S: Final = 0.2
_TIMEOUT_S: Final = 60.0
_DETAIL_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request as its client saw it.

    ``outcome``: "answered" (to the end, with its energy), "hung up" (by the client), "broken" (the answer began and
    broke off), "refused" (an error status), "no answer" (no HTTP response), or "malformed" (none that can be right).
    ``joules`` counts only if "answered"; then None says that the mesh had told so.
    """

    kind: str
    account: str
    words: int
    begun_s: float
    ended_s: float
    outcome: str
    status: int | None = None
    receipt_id: str | None = None
    joules: Decimal | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """An account and one of its keys."""

    account: str
    key: str


class ChatClient:
    """Sends one request at a time and says what came of it."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"

    def ask(self, customer: Customer, kind: str, words: int, hang_up_after: int = 0) -> Exchange:
        """Any failure is an outcome, none is raised."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "word " * words}]}
        return self.send(customer, kind, body, words=words, hang_up_after=hang_up_after)

    def send(
        self,
        customer: Customer,
        kind: str,
        body: Mapping[str, Any],
        *,
        words: int,
        headers: Mapping[str, str] | None = None,
        hang_up_after: int = 0,
    ) -> Exchange:
        """As `ask`, with this body and these headers; at most ``words`` tokens may be billed for it."""
        begun = Exchange(
            kind=kind, account=customer.account, words=words, begun_s=time.monotonic(), ended_s=0, outcome="no answer"
        )
        try:
            with requests.post(
                self._url,
                json={**body, "stream": kind != "unary"},
                headers={"Authorization": f"Bearer {customer.key}", **(headers or {})},
                stream=True,
                timeout=_TIMEOUT_S,
            ) as response:
                ended = _read(begun, response, hang_up_after)
        except requests.RequestException as failure:
            ended = replace(begun, detail=type(failure).__name__)
        return replace(ended, ended_s=time.monotonic())


def _read(begun: Exchange, response: requests.Response, hang_up_after: int) -> Exchange:
    seen = replace(begun, status=response.status_code, receipt_id=response.headers.get("X-Receipt-Id"))
    try:
        if response.status_code != requests.codes.ok:
            return replace(
                seen, outcome="refused", detail=response.text[:_DETAIL_CHARACTERS], receipt_id=_begun_id(response)
            )
        if seen.kind == "unary":
            return _unary(seen, response)
        return _streamed(seen, response, hang_up_after)
    except requests.RequestException as failure:
        return replace(seen, outcome="broken", detail=f"{type(failure).__name__}: {failure}"[:300])
    except (ValueError, KeyError) as wrong:
        return replace(seen, outcome="malformed", detail=f"{type(wrong).__name__}: {wrong}"[:300])


def _begun_id(response: requests.Response) -> str | None:
    """The receipt's id of a request whose answer had begun when it failed; other errors promise nothing."""
    try:
        error = response.json()["error"]
    except ValueError:
        return None
    return f"rcpt_{error['request_id']}" if error["message"].startswith("the answer broke off") else None


def _unary(seen: Exchange, response: requests.Response) -> Exchange:
    energy = json.loads(response.text, parse_float=Decimal)["energy"]
    told = _answered(seen, energy)
    header = response.headers["X-Energy-Joules"]
    if header != "unavailable" and Decimal(header) != told.joules:
        raise ValueError(f"the header says {header} J, the body {told.joules}")
    return told


def _streamed(seen: Exchange, response: requests.Response, hang_up_after: int) -> Exchange:
    energy: dict[str, Any] | None = None
    events = 0
    for line in response.iter_lines(chunk_size=None, decode_unicode=True):
        if not line:
            continue
        event = line.removeprefix("data: ")
        if event == "[DONE]":
            break
        chunk = json.loads(event, parse_float=Decimal)
        if "error" in chunk:
            return replace(seen, outcome="broken", detail=chunk["error"]["message"])
        energy = chunk.get("energy") or energy
        events += 1
        if hang_up_after and events >= hang_up_after:
            return replace(seen, outcome="hung up")
    else:
        return replace(seen, outcome="broken", detail="the stream ended without [DONE]")
    if energy is None:
        raise ValueError("the stream ended without its energy")
    return _answered(seen, energy)


def _answered(seen: Exchange, energy: Mapping[str, Any]) -> Exchange:
    if seen.receipt_id is None or energy["receipt_id"] != seen.receipt_id:
        raise ValueError(f"the answer's receipt is {energy['receipt_id']}, its header's {seen.receipt_id}")
    joules = energy["joules"]
    return replace(seen, outcome="answered", joules=None if joules is None else Decimal(joules))


class ChatLoad:
    """Threads that ask without end until the load is closed; what they saw is also written to a file."""

    def __init__(
        self, client: ChatClient, customers: Sequence[Customer], *, clients: int, seed: int, log: Path
    ) -> None:
        self._client = client
        self._customers = customers
        self._log = log.open("a")
        self._lock = threading.Condition()
        self._seen: list[Exchange] = []
        self._asking = 0
        self._flows = True
        self._closed = False
        self._threads = [
            threading.Thread(target=self._ask_on, args=(Random(f"{seed}/client {number}"),), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)
        self._log.close()

    @property
    def seen(self) -> list[Exchange]:
        """All that has ended so far."""
        with self._lock:
            return list(self._seen)

    def pause(self, deadline_s: float) -> bool:
        """Ask no more; whether every request under way has ended in time."""
        with self._lock:
            self._flows = False
            return self._lock.wait_for(lambda: self._asking == 0, deadline_s)

    def resume(self) -> None:
        """Go on asking."""
        with self._lock:
            self._flows = True
            self._lock.notify_all()

    def ask(self, customer: Customer) -> Exchange:
        """One short question out of turn, remembered like the others."""
        return self._remembered(self._client.ask(customer, "unary", 1))

    def _ask_on(self, random: Random) -> None:
        while self._may_ask():
            kind = random.choices(KINDS, _WEIGHTS)[0]
            hang_up_after = random.randint(*_HANGS_UP_AFTER_EVENTS) if kind == "hang-up" else 0
            words, customer = random.randint(*_WORDS[kind]), random.choice(self._customers)
            exchange = self._remembered(self._client.ask(customer, kind, words, hang_up_after))
            self._has_ended()
            time.sleep(random.uniform(*_THINKS_S))
            if exchange.outcome not in ("answered", "hung up"):
                time.sleep(_AFTER_A_FAILURE_S)

    def _may_ask(self) -> bool:
        with self._lock:
            self._lock.wait_for(lambda: self._flows or self._closed)
            self._asking += not self._closed
            return not self._closed

    def _has_ended(self) -> None:
        with self._lock:
            self._asking -= 1
            self._lock.notify_all()

    def _remembered(self, exchange: Exchange) -> Exchange:
        with self._lock:
            self._seen.append(exchange)
            self._log.write(json.dumps(asdict(exchange), default=str) + "\n")
            self._log.flush()
        return exchange


def count_by(exchanges: Sequence[Exchange], key: Callable[[Exchange], str]) -> dict[str, int]:
    """How many exchanges there are of each key."""
    counts: dict[str, int] = {}
    for exchange in exchanges:
        counts[key(exchange)] = counts.get(key(exchange), 0) + 1
    return counts
