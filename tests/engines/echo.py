"""An engine that needs no model: it answers with the words of the last message, in vLLM's shapes.

It burns a little processor time per word and reports its steps, so that a real meter has something to meter.
A message starting with ``!refuse``, ``!break``, ``!crash`` or ``!hang`` does that instead; one with ``!slow`` is told
a word a second, and with ``!freeze`` the whole process stands still for a while.
"""

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from metering.engine_steps import RequestWork, StepReporter
from serve.errors import EngineBroke, RequestRefused

_BURN_S = 0.004
_FREEZE_S = 10


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

    async def chat(
        self, request_id: str, body: Mapping[str, Any], delivered: Sequence[int] = ()
    ) -> AsyncGenerator[bytes, None]:
        words = str(body["messages"][-1]["content"]).split()[: body.get("max_tokens") or None]
        command = words[0] if words else ""
        if command == "!refuse":
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "refused as asked", "messages")
        said: list[str] = []
        for index, word in enumerate(words):
            await self._step(request_id, prompt=len(words), index=index)
            if command == "!break" and index > 0:
                raise EngineBroke("as asked")
            if command == "!crash" and index > 0:
                os.kill(os.getpid(), 9)
            if command == "!hang" and index > 0:
                await asyncio.sleep(3600)
            if command in ("!slow", "!freeze") and index > 0:
                await asyncio.sleep(1)
            if command == "!freeze" and index == 1:
                _stand_still()
            said.append(word + " ")
            if body.get("stream"):
                finish = "stop" if index == len(words) - 1 else None
                yield _event(self._chunk(request_id, choices=[_choice(index, word + " ", finish)]))
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
        if not body.get("stream"):
            yield json.dumps(self._unary(request_id, "".join(said), usage)).encode()
            return
        yield _event(self._chunk(request_id, choices=[], usage=usage))
        yield b"data: [DONE]\n\n"

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


def _stand_still() -> None:
    time.sleep(_FREEZE_S)


def _choice(index: int, text: str, finish: str | None) -> dict[str, object]:
    delta = {"content": text} if index else {"role": "assistant", "content": text}
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _event(chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
