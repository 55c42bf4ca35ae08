"""An engine that needs no model: it answers with the words of the last message, in the shapes of vLLM's four APIs.

`echo_script` says what it answers to tools and schemas, `echo_shapes` how.

It burns a little processor time per word, or text to embed, and reports its steps, so that a real meter has something
to meter.
A message starting with ``!refuse``, ``!break``, ``!crash`` or ``!hang`` does that instead, and ``!raise`` fails with an
error that quotes the message. ``!refuse-late`` is refused at its last word, as an answer that can't be put into its
form. With ``!slow`` it is told a word a second, and with ``!freeze`` the whole process stands still for a while.
``!pace SECONDS`` is told a word in so many seconds. ``!break-once``, ``!crash-once``, ``!hang-once`` and
``!freeze-once`` do it only where no word was delivered before, so that a stream that is resumed gets over it.

A word's token id is made from the word and its place: the same on every replica, and a resume with others is noticed.
"""

import asyncio
import itertools
import os
import time
import zlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from echo_script import Piece, Script, check_dimensions, prompts, script
from echo_shapes import DIMENSIONS, SHAPES, StreamShape, Usage, embeddings

from metering.engine_steps import RequestWork, StepReporter
from serve.errors import EngineBroke, RequestRefused
from serve.messages import DONE, Payload, Working
from serve.shapes import Shape

_BURN_S = 0.004
_FREEZE_S = 6  # longer than a deadline between tokens, and not so long that Ray Serve puts another in its place
_WORKING_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoSpec:
    """Starts an `EchoEngine`; ``fail_with`` makes the start fail with that reason."""

    model_name: str
    fail_with: str | None = None

    @property
    def model_revision(self) -> str | None:
        return "echo-1"

    async def start(self, meter_socket: str, replica: str) -> "EchoEngine":
        if self.fail_with is not None:
            raise RuntimeError(self.fail_with)
        return EchoEngine(self.model_name, StepReporter(meter_socket, replica))


class EchoEngine:
    def __init__(self, model: str, reporter: StepReporter) -> None:
        self._model = model
        self._reporter = reporter
        self._steps = itertools.count(1)
        self._answering: set[str] = set()
        self._at_length: set[str] = set()

    async def check(self) -> None:
        return

    def stop(self) -> None:
        self._reporter.close()

    def stop_at_length(self, request_id: str) -> None:
        if request_id in self._answering:
            self._at_length.add(request_id)

    async def answer(
        self, request_id: str, shape: Shape, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[Payload | Working, None]:
        told = script(shape, body)
        if told.words[:1] == ("!refuse",):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "refused as asked", "messages")
        self._answering.add(request_id)
        try:
            if shape is Shape.EMBEDDING:
                yield await self._embed(request_id, body, told)
                return
            async with aclosing(self._generate(request_id, shape, body, told, delivered)) as items:
                async for item in items:
                    yield item
        finally:
            self._answering.discard(request_id)
            self._at_length.discard(request_id)

    async def _embed(self, request_id: str, body: Mapping[str, Any], told: Script) -> Payload:
        dimensions = check_dimensions(body, DIMENSIONS)
        texts = prompts(Shape.EMBEDDING, body)
        await self._step(request_id, prompt=told.prompt_tokens, index=0, produced=0, burn_s=_BURN_S * len(texts))
        await _misbehave(told.words, 1, is_resumed=False)
        return Payload(embeddings(request_id, self._model, body, texts, dimensions))

    async def _generate(
        self, request_id: str, shape: Shape, body: Mapping[str, Any], told: Script, delivered: Sequence[int]
    ) -> AsyncGenerator[Payload | Working, None]:
        tokens = _tokens(told) if len(told.choices) == 1 else ()
        if tuple(delivered) != tokens[: len(delivered)]:
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "these are not the tokens of this answer")
        wire = SHAPES[shape](request_id, self._model, body)
        is_stream = bool(body.get("stream"))
        worked, steps = time.monotonic(), 0
        async for steps, events in self._told(request_id, wire, told, delivered):
            for event in wire.begin(told) if is_stream and steps == 1 else ():
                yield Payload(event)
            new = tokens[steps - 1 : steps] if steps > len(delivered) else ()
            for event in events if is_stream else ():
                yield Payload(event, new)
                new = ()
            if not is_stream and time.monotonic() - worked >= _WORKING_EVERY_S:
                worked = time.monotonic()
                yield Working()
        for payload in _end(wire, told, steps, is_stream=is_stream):
            yield payload

    async def _told(
        self, request_id: str, wire: StreamShape, told: Script, delivered: Sequence[int]
    ) -> AsyncGenerator[tuple[int, Iterator[bytes]], None]:
        """The events of each step, and how many steps there were; fewer than the answer has if it is stopped."""
        for at in range(max(len(said.pieces) for said in told.choices)):
            telling = [index for index, said in enumerate(told.choices) if at < len(said.pieces)]
            if at >= len(delivered):
                if at and request_id in self._at_length:
                    return
                prompt = told.prompt_tokens + len(delivered)
                await self._step(request_id, prompt=prompt, index=at - len(delivered), produced=len(telling))
                await _misbehave(told.words, at, is_resumed=bool(delivered))
            yield at + 1, _events(wire, told, telling, at)

    async def _step(self, request_id: str, *, prompt: int, index: int, produced: int, burn_s: float = _BURN_S) -> None:
        step = next(self._steps)
        work = RequestWork(request_id, prompt, 0 if index else prompt, 0, 1 if index else 0, prompt + index)
        self._reporter.began(step, time.monotonic_ns(), (work,))
        burn_until = time.thread_time() + burn_s
        while time.thread_time() < burn_until:
            pass
        self._reporter.ended(step, time.monotonic_ns(), {request_id: produced} if produced else {})
        await asyncio.sleep(0)


def _tokens(told: Script) -> tuple[int, ...]:
    pieces = told.choices[0].pieces
    return tuple(token_id(piece.text.removesuffix(" "), index) for index, piece in enumerate(pieces))


def _events(wire: StreamShape, told: Script, telling: Sequence[int], at: int) -> Iterator[bytes]:
    """The piece at this place of each choice that has one."""
    for index in telling:
        said = told.choices[index]
        is_last = at == len(said.pieces) - 1
        yield from wire.piece(index, said.pieces[at], said.finish if is_last else None, said.matched)


def _end(wire: StreamShape, told: Script, steps: int, *, is_stream: bool) -> Iterator[Payload]:
    """What comes after so many steps; choices with more pieces were stopped at their length."""
    stopped = [index for index, said in enumerate(told.choices) if len(said.pieces) > steps]
    choices = [
        replace(said, pieces=said.pieces[:steps], finish="length", matched=None) if index in stopped else said
        for index, said in enumerate(told.choices)
    ]
    usage = Usage(prompt=told.prompt_tokens, completion=sum(len(said.pieces) for said in choices))
    if not is_stream:
        yield Payload(wire.unary(replace(told, choices=tuple(choices)), usage))
        return
    for index in stopped:
        yield from map(Payload, wire.piece(index, Piece(text=""), "length"))
    yield from map(Payload, wire.end(usage))
    yield Payload(DONE)


async def _misbehave(words: Sequence[str], index: int, *, is_resumed: bool) -> None:
    """What the message's first word asks for, before its word at ``index`` is told; its first one always is."""
    command, _, once = "".join(words[:1]).partition("-")
    if index == 0 or (once and is_resumed):
        return
    if command == "!refuse" and index == len(words) - 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "refused late as asked", "messages")
    if command == "!break":
        raise EngineBroke("as asked")
    if command == "!raise":
        raise RuntimeError(f"cannot say {' '.join(words)}")
    if command == "!crash":
        os.kill(os.getpid(), 9)
    if command == "!hang":
        await asyncio.sleep(3600)
    if command in ("!slow", "!freeze"):
        await asyncio.sleep(1)
    if command == "!freeze" and index == 1:
        _stand_still()
    if command == "!pace":
        await asyncio.sleep(float(words[1]))


def token_id(word: str, index: int) -> int:
    """The word's token at this place of an answer."""
    return zlib.crc32(f"{index} {word}".encode())


def _stand_still() -> None:
    time.sleep(_FREEZE_S)
