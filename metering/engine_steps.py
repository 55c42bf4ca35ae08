"""How the engine's scheduler tells the host meter what each step computes, out of the engine's child process.

The sending end must never block the engine, raise into it, or grow without bound; the receiving end must survive
whatever arrives. In between is a Unix stream socket with one JSON array a line:

    ["b", replica, step, monotonic ns, lost before, [[request, prompt, prefill, cached, decode, context], ...]]
    ["e", replica, step, monotonic ns, lost before, {request: tokens produced, ...}]

``lost before`` counts messages that the sender had to drop since the one it sent before.
This module needs the standard library only: it is imported inside the engine.
"""

import contextlib
import json
import socket
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from metering.private_socket import listen_privately

_SENDER_BUFFER_BYTES = 4 * 1024 * 1024
_RETRY_SECONDS = 0.05
_LONGEST_LINE_BYTES = 4 * 1024 * 1024
_READ_BYTES = 256 * 1024
_MOST_READ_PER_DRAIN_BYTES = 16 * 1024 * 1024
_MOST_CONNECTIONS = 256


class RequestWork(NamedTuple):
    """What one engine step computes for one request, in tokens.

    ``prompt_tokens`` is the whole prompt's length, of several prompts that of all which the engine has come to;
    ``prefill_tokens`` of it are computed in this step;
    ``cached_tokens`` were taken from the prefix cache (told in the step that first lists the request);
    ``decode_tokens`` are scheduled after the prompt; ``context_tokens`` is the length attended to.
    A tuple, not a dataclass: the engine makes hundreds a step, and they go onto the wire as they are.
    """

    request_id: str
    prompt_tokens: int
    prefill_tokens: int
    cached_tokens: int
    decode_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBegan:
    """The engine scheduled a step. With async scheduling the step before it may still be running."""

    replica: str
    step: int
    at_monotonic_ns: int
    work: tuple[RequestWork, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """The step's results are in; ``produced`` counts the tokens that it added to each answer."""

    replica: str
    step: int
    at_monotonic_ns: int
    produced: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsLost:
    """The sender dropped this many messages, oldest first, because the meter didn't read."""

    replica: str
    messages: int


StepEvent = StepBegan | StepEnded | StepsLost


class StepReporter:
    """The sending end, in the engine's process.

    A message goes out at once when the meter reads. Otherwise it waits in a bounded buffer, which a daemon thread
    empties and which keeps the newest: a meter that restarts gets what is left and the count of what isn't.
    """

    def __init__(self, socket_path: str, replica: str, *, buffer_bytes: int = _SENDER_BUFFER_BYTES) -> None:
        self._path = socket_path
        self._replica = replica
        self._buffer_bytes = buffer_bytes
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._sending = b""
        self._sent = 0
        self._lost = 0
        self._socket: socket.socket | None = None
        self._flusher: threading.Thread | None = None
        self._closed = threading.Event()

    def began(self, step: int, at_monotonic_ns: int, work: Sequence[RequestWork]) -> None:
        """Report a step and what it computes. Never blocks, never raises."""
        self._post("b", step, at_monotonic_ns, work)

    def ended(self, step: int, at_monotonic_ns: int, produced: Mapping[str, int]) -> None:
        """Report a step's end and the tokens that it produced. Never blocks, never raises."""
        self._post("e", step, at_monotonic_ns, produced)

    def close(self) -> None:
        """Send what can be sent at once and let go of the socket."""
        self._closed.set()
        with self._lock:
            self._send_waiting()
            self._disconnect()

    def _post(self, kind: str, step: int, at_monotonic_ns: int, body: object) -> None:
        with self._lock:
            message = [kind, self._replica, step, at_monotonic_ns, self._lost, body]
            line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
            self._waiting.append((self._lost, line))
            self._waiting_bytes += len(line)
            self._lost = 0
            if self._send_waiting():
                return
            self._drop_oldest()
            self._flush_later()

    def _drop_oldest(self) -> None:
        """Keep the buffer in its bound; what a dropped message told of lost ones is told by the next."""
        dropped = 0
        while self._waiting_bytes > self._buffer_bytes and self._waiting:
            lost_before, line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            dropped += lost_before + 1
        self._lost += dropped

    def _send_waiting(self) -> bool:
        """Send as much as the socket takes; whether nothing is left."""
        if self._socket is None and not self._connect():
            return False
        while self._sending or self._waiting:
            if not self._sending:
                _, self._sending = self._waiting.popleft()
                self._waiting_bytes -= len(self._sending)
                self._sent = 0
            if not self._send_some():
                return False
        return True

    def _send_some(self) -> bool:
        if self._socket is None:
            return False
        try:
            self._sent += self._socket.send(self._sending[self._sent :])
        except BlockingIOError:
            return False
        except OSError:
            # The meter is gone, and a half line with it: the next connection gets the line from its start.
            self._disconnect()
            return False
        if self._sent == len(self._sending):
            self._sending = b""
        return True

    def _connect(self) -> bool:
        candidate = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        candidate.settimeout(0)
        try:
            candidate.connect(self._path)
        except OSError:
            candidate.close()
            return False
        self._socket = candidate
        self._sent = 0
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._sent = 0

    def _flush_later(self) -> None:
        if self._flusher is not None or self._closed.is_set():
            return
        flusher = threading.Thread(target=self._flush, name="step-reporter", daemon=True)
        # Refused while the interpreter shuts down; the engine is ending and so are its steps.
        with contextlib.suppress(RuntimeError):
            flusher.start()
            self._flusher = flusher

    def _flush(self) -> None:
        while not self._closed.wait(_RETRY_SECONDS):
            with self._lock:
                if self._send_waiting():
                    self._flusher = None
                    return


class StepInbox:
    """The receiving end, in the meter's process: listens on a socket that only its own user can write to."""

    def __init__(self, socket_path: Path) -> None:
        """Listen; a socket file that nobody listens on any more is replaced.

        Raises:
            SocketUnusable: another process listens there, or the path can't be bound.
        """
        self._path = socket_path
        self._listener = listen_privately(socket_path, backlog=_MOST_CONNECTIONS)
        self._connections: list[_Connection] = []
        self._garbage_lines = 0

    @property
    def garbage_lines(self) -> int:
        """Lines received that were no step message."""
        return self._garbage_lines

    def drain(self) -> list[StepEvent]:
        """Everything that has arrived, per sender in the order in which it was sent. Never blocks."""
        self._accept()
        events: list[StepEvent] = []
        for connection in self._connections:
            for line in connection.lines():
                self._parse(line, events)
        self._garbage_lines += sum(connection.overlong for connection in self._connections)
        self._connections = [connection for connection in self._connections if connection.is_open]
        return events

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        for connection in self._connections:
            connection.close()
        self._connections = []
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while len(self._connections) < _MOST_CONNECTIONS:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # nobody waits, or out of descriptors: the next drain tries again
                return
            self._connections.append(_Connection(accepted))

    def _parse(self, line: bytes, events: list[StepEvent]) -> None:
        try:
            lost, event = _event(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            self._garbage_lines += 1
            return
        if lost:
            events.append(StepsLost(replica=event.replica, messages=lost))
        events.append(event)


class _Connection:
    """One sender's byte stream, cut into lines."""

    def __init__(self, accepted: socket.socket) -> None:
        accepted.settimeout(0)
        self._socket = accepted
        self._partial = bytearray()
        self.is_open = True
        self.overlong = 0

    def lines(self) -> list[bytes]:
        """The whole lines that have arrived."""
        received = 0
        while self.is_open and received < _MOST_READ_PER_DRAIN_BYTES:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.close()
            received += len(data)
            self._partial += data
        *whole, rest = self._partial.split(b"\n")
        self._partial = rest
        if len(rest) > _LONGEST_LINE_BYTES:
            self.overlong = 1
            self.close()
        return [bytes(line) for line in whole]

    def close(self) -> None:
        self.is_open = False
        self._socket.close()


def _event(message: Any) -> tuple[int, StepBegan | StepEnded]:  # noqa: ANN401 - parsed JSON
    """Messages lost before this one, and this one.

    Raises:
        ValueError, TypeError: it isn't a step message.
    """
    kind, replica, step, at_monotonic_ns, lost, body = message
    if not isinstance(replica, str) or not _counts(step, at_monotonic_ns, lost):
        raise ValueError("not a step message")
    if kind == "b":
        return lost, StepBegan(replica=replica, step=step, at_monotonic_ns=at_monotonic_ns, work=_work(body))
    if kind == "e" and isinstance(body, dict) and _counts(*body.values()):
        return lost, StepEnded(replica=replica, step=step, at_monotonic_ns=at_monotonic_ns, produced=body)
    raise ValueError("not a step message")


def _work(entries: Iterable[Iterable[Any]]) -> tuple[RequestWork, ...]:
    """The works of one step, checked by column: a busy engine sends ten thousand entries a second."""
    work = tuple(map(RequestWork._make, entries))
    if not work:
        return work
    request_ids, *tokens = zip(*work, strict=True)
    if set(map(type, request_ids)) != {str} or not all(_counts(*column) for column in tokens):
        raise ValueError("not a request's work")
    return work


def _counts(*values: object) -> bool:
    """Whether all are integers (no booleans) and none is negative."""
    return not values or (set(map(type, values)) == {int} and min(cast("tuple[int, ...]", values)) >= 0)
