"""An engine that needs no model: it answers with the words of the last message, in vLLM's shapes.

It burns a little processor time per word and reports its steps, so that a real meter has something to meter.
A message starting with ``!refuse``, ``!break``, ``!crash`` or ``!hang`` does that instead; one with ``!slow`` is told
a word a second, and with ``!freeze`` the whole process stands still for a while. ``!pace SECONDS`` is told a word in so
many seconds. ``!break-once``, ``!crash-once``, ``!hang-once`` and ``!freeze-once`` do it only where no word was
delivered before, so that a stream that is resumed gets over it.

A word's token id is made from the word and its place: the same on every replica, and a resume with others is noticed.
"""

import asyncio
import itertools
import json
import os
import time
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from metering.engine_steps import RequestWork, StepReporter
from serve.errors import EngineBroke, RequestRefused
from serve.messages import DONE, Payload, Working
from serve.shapes import Shape

_BURN_S = 0.004
_FREEZE_S = 10
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

    async def check(self) -> None:
        return

    def stop(self) -> None:
        self._reporter.close()

    async def answer(
        self, request_id: str, shape: Shape, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[Payload | Working, None]:
        words = str(body["messages"][-1]["content"]).split()[: body.get("max_tokens") or None]
        if words[:1] == ["!refuse"]:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "refused as asked", "messages")
        tokens = [token_id(word, index) for index, word in enumerate(words)]
        if list(delivered) != tokens[: len(delivered)]:
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "these are not the tokens of this answer")
        worked = time.monotonic()
        for index, word in enumerate(words):
            is_new = index >= len(delivered)
            if is_new:
                await self._step(request_id, prompt=len(words) + len(delivered), index=index - len(delivered))
                await _misbehave(words, index, is_resumed=bool(delivered))
            if body.get("stream"):
                finish = "stop" if index == len(words) - 1 else None
                event = _event(self._chunk(request_id, choices=[_choice(index, word + " ", finish)]))
                yield Payload(event, (tokens[index],) if is_new else ())
            elif time.monotonic() - worked >= _WORKING_EVERY_S:
                worked = time.monotonic()
                yield Working()
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
        if not body.get("stream"):
            text = "".join(word + " " for word in words)
            yield Payload(json.dumps(self._unary(request_id, text, usage)).encode())
            return
        yield Payload(_event(self._chunk(request_id, choices=[], usage=usage)))
        yield Payload(DONE)

    async def _step(self, request_id: str, *, prompt: int, index: int) -> None:
        step = next(self._steps)
        work = RequestWork(request_id, prompt, 0 if index else prompt, 0, 1 if index else 0, prompt + index)
        self._reporter.began(step, time.monotonic_ns(), (work,))
        burn_until = time.thread_time() + _BURN_S
        while time.thread_time() < burn_until:
            pass
        self._reporter.ended(step, time.monotonic_ns(), {request_id: 1})
        await asyncio.sleep(0)

    def _chunk(self, request_id: str, **rest: object) -> dict[str, object]:
        head = {"id": f"chatcmpl-{request_id}", "object": "chat.completion.chunk", "created": 1, "model": self._model}
        return {**head, **rest}

    def _unary(self, request_id: str, text: str, usage: object) -> dict[str, object]:
        message = {"role": "assistant", "content": text}
        return {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "created": 1,
            "model": self._model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }


async def _misbehave(words: Sequence[str], index: int, *, is_resumed: bool) -> None:
    """What the message's first word asks for, before its word at ``index`` is told; its first one always is."""
    command, _, once = words[0].partition("-")
    if index == 0 or (once and is_resumed):
        return
    if command == "!break":
        raise EngineBroke("as asked")
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


def _choice(index: int, text: str, finish: str | None) -> dict[str, object]:
    delta = {"content": text} if index else {"role": "assistant", "content": text}
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _event(chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
