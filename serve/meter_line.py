"""A replica's line to the meter of its host: each attempt's beginning and end, over a Unix socket.

Both are on every request's way, and a call of a Ray actor takes some milliseconds where this takes a tenth of one.
Everything else is asked of the meter's actor.

A message is four bytes of length and so much JSON; answers come in any order:

    [number, "begin", request id, replica, context]            ->  [number, null, null]
    [number, "settle", request id, replica, outcome, context]  ->  [number, receipt or null, null]
    what could not be done                                     ->  [number, null, the error's class]
"""

import asyncio
import itertools
import json
import logging
from asyncio import Future, StreamReader, StreamWriter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, Self, cast

from metering.private_socket import listen_privately
from serve.errors import NotBooked

_LOG = logging.getLogger(__name__)
_LENGTH_BYTES: Final = 4
_MOST_BYTES: Final = 16 * 1024 * 1024
_BACKLOG: Final = 256
_CONNECT_AGAIN_S: Final = 0.05
_ANSWERS_WITHIN_S: Final = 20.0
"""A beginning waits no longer for a meter that restarts, nor a replica's start for its meter."""
_CLOSES_WITHIN_S: Final = 5.0
_MOST_UNANSWERED: Final = 4096


class AttemptMeter(Protocol):
    """The meter as a replica's line has it. Whatever is raised, the replica hears its class."""

    def begin(self, request_id: str, replica: str, context: bytes) -> None:
        """As `metering.host_meter.HostMeter.begin`."""

    async def settle(self, request_id: str, replica: str, outcome: str, context: bytes) -> bytes | None:
        """The signed bytes of the attempt's receipt, durably stored; None where there is none.

        What comes before its first wait is done before the next message of the same line is looked at.
        """


class MeterLine:
    """The replica's end; belongs to one event loop.

    What the meter hasn't answered when the connection breaks it is told again on the next one, in the same order: both
    messages mean nothing new the second time. What a replica wrote just before it died may be lost with it; then its
    meter ends what it had under way.
    """

    def __init__(self, path: str, *, answers_within_s: float = _ANSWERS_WITHIN_S) -> None:
        self._path = path
        self._answers_within_s = answers_within_s
        self._numbers = itertools.count(1)
        self._unanswered: dict[int, tuple[bytes, Future[bytes | None]]] = {}
        self._writer: StreamWriter | None = None
        self._is_connected = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep_connected())

    async def connected(self) -> None:
        """Return once there is a connection.

        Raises:
            ConnectionError: there is none in time.
        """
        try:
            async with asyncio.timeout(self._answers_within_s):
                await self._is_connected.wait()
        except TimeoutError:
            raise ConnectionError(f"the host's meter can't be reached at {self._path}") from None

    async def begin(self, request_id: str, replica: str, context: bytes) -> None:
        """Open the attempt's account.

        Raises:
            NotBooked: the meter could not take it in, or doesn't answer.
        """
        try:
            async with asyncio.timeout(self._answers_within_s):
                await self._tell("begin", request_id, replica, context.decode())
        except TimeoutError:
            raise NotBooked("the meter doesn't answer") from None

    def settle(self, request_id: str, replica: str, outcome: str, context: bytes) -> "Future[bytes | None]":
        """Close the attempt's account. It is told at once, whether anybody waits for the answer or not.

        Gives the receipt's signed bytes; `NotBooked` where there is none now that there should be.
        """
        return self._tell("settle", request_id, replica, outcome, context.decode())

    async def close(self) -> None:
        """Let go of the connection once all is answered, or after a while: the meter would not read the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSES_WITHIN_S):
                await asyncio.gather(*(answer for _, answer in self._unanswered.values()), return_exceptions=True)
        self._keeping.cancel()
        with suppress(asyncio.CancelledError):
            await self._keeping

    def _tell(self, *words: str) -> "Future[bytes | None]":
        number = next(self._numbers)
        answer: Future[bytes | None] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_look_at)
        if len(self._unanswered) >= _MOST_UNANSWERED:
            answer.set_exception(NotBooked("too much waits for the meter"))
            return answer
        message = _framed([number, *words])
        self._unanswered[number] = message, answer
        # One that closes would raise, or not; what is unanswered is told on the next connection.
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(message)
        return answer

    async def _keep_connected(self) -> None:
        is_said = False
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError as away:
                if not is_said:
                    is_said = True
                    _LOG.warning("the meter can't be reached at %s: %s", self._path, type(away).__name__)
                await asyncio.sleep(_CONNECT_AGAIN_S)
                continue
            is_said = False
            self._is_connected.set()
            try:
                writer.writelines(message for message, _ in self._unanswered.values())
                self._writer = writer
                await self._hear(reader)
            except (OSError, EOFError, ValueError, TypeError) as broken:
                _LOG.warning("the line to the meter broke: %s", type(broken).__name__)
            finally:
                self._writer = None
                await _closed(writer)
            await asyncio.sleep(_CONNECT_AGAIN_S)

    async def _hear(self, reader: StreamReader) -> None:
        while True:
            number, receipt, error = await _read(reader)
            _, answer = self._unanswered.pop(number, (b"", None))
            if answer is None or answer.done():  # nobody waits for it any more
                continue
            if error is None:
                answer.set_result(None if receipt is None else receipt.encode())
            else:
                answer.set_exception(NotBooked(error))


class MeterLines:
    """The meter's end of its replicas' lines."""

    def __init__(self, meter: AttemptMeter) -> None:
        self._meter = meter
        self._settling: set[asyncio.Task[None]] = set()
        self._connected: dict[StreamWriter, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    @classmethod
    async def open(cls, path: Path, meter: AttemptMeter) -> Self:
        """Listen there for replicas.

        Raises:
            metering.errors.SocketUnusable: another process does, or nobody can.
        """
        lines = cls(meter)
        listener = listen_privately(path, backlog=_BACKLOG)
        lines._server = await asyncio.start_unix_server(lines._serve, sock=listener, backlog=_BACKLOG)
        return lines

    async def close(self) -> None:
        """Let go of every line; what is being settled goes on."""
        if self._server is not None:
            self._server.close()
        for writer in self._connected:
            writer.close()
        if self._connected:
            await asyncio.wait(self._connected.values())

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._connected[writer] = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            while True:
                number, word, *rest = await _read(reader)
                if word == "begin":
                    self._begin(writer, number, *rest)
                    continue
                if word != "settle":
                    raise ValueError("no such word")  # noqa: TRY301
                settling = asyncio.create_task(self._settle(writer, number, *rest))
                self._settling.add(settling)
                settling.add_done_callback(self._settling.discard)
                await asyncio.sleep(0)  # the task's first step comes before the next message
        except (OSError, EOFError):
            pass  # the replica is gone; its open requests are the meter's to end
        except (ValueError, TypeError) as garbage:
            _LOG.warning("a replica's line was closed, for it sent what is no message: %s", type(garbage).__name__)
        finally:
            await _closed(writer)
            del self._connected[writer]

    def _begin(self, writer: StreamWriter, number: int, request_id: str, replica: str, context: str) -> None:
        error = None
        try:
            self._meter.begin(request_id, replica, context.encode())
        except Exception as trouble:  # noqa: BLE001 - the replica hears of it
            error = _class_of(trouble)
        _write(writer, [number, None, error])

    async def _settle(
        self, writer: StreamWriter, number: int, request_id: str, replica: str, outcome: str, context: str
    ) -> None:
        receipt = error = None
        try:
            signed_bytes = await self._meter.settle(request_id, replica, outcome, context.encode())
            receipt = None if signed_bytes is None else signed_bytes.decode()
        except Exception as trouble:  # noqa: BLE001 - the replica hears of it
            error = _class_of(trouble)
        _write(writer, [number, receipt, error])


def _class_of(trouble: Exception) -> str:
    """Its class alone, for a text could quote what nobody may log; of what Ray wraps, the cause's."""
    return type(getattr(trouble, "cause", None) or trouble).__name__


def _look_at(answer: "Future[bytes | None]") -> None:
    """Take note of an error, which asyncio would log as forgotten where nobody waited for the answer."""
    if not answer.cancelled():
        answer.exception()


def _framed(message: list[object]) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def _write(writer: StreamWriter, message: list[object]) -> None:
    if not writer.is_closing():
        writer.write(_framed(message))


async def _closed(writer: StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _read(reader: StreamReader) -> list[Any]:
    """The next message.

    Raises:
        EOFError, OSError: the line broke.
        ValueError: it is none; what is no list fails where it is unpacked.
    """
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    if length > _MOST_BYTES:
        raise ValueError("a message is too long")
    message: list[Any] = json.loads(await reader.readexactly(length))
    return message
