"""An engine with zero model time, and the same answers straight from a plain server: the difference is the mesh's own.

`python -m benchmarks.stub PORT` serves them; `StubSpec` is the engine for a mesh.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from metering.engine_steps import RequestWork, StepReporter
from serve.messages import DONE, Payload, Working
from serve.shapes import Shape

TOKENS = 64
_PROMPT_TOKENS = 8
_USAGE = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": TOKENS, "total_tokens": _PROMPT_TOKENS + TOKENS}


def unary_body(answer_id: str, model: str) -> bytes:
    """One answer, as vLLM writes it."""
    message = {"role": "assistant", "content": " token" * TOKENS, "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    head = {"id": f"chatcmpl-{answer_id}", "object": "chat.completion", "created": 1, "model": model}
    return json.dumps({**head, "choices": [choice], "usage": _USAGE}, separators=(",", ":")).encode()


def events(answer_id: str, model: str) -> list[bytes]:
    """The events of the same answer, a token each, as vLLM writes them."""
    head = {"id": f"chatcmpl-{answer_id}", "object": "chat.completion.chunk", "created": 1, "model": model}
    deltas: list[dict[str, str]] = [
        {"role": "assistant", "content": ""},
        *({"content": " token"} for _ in range(TOKENS)),
    ]
    chunks: list[dict[str, Any]] = [
        {
            **head,
            "choices": [
                {
                    "index": 0,
                    "delta": delta,
                    "logprobs": None,
                    "finish_reason": "stop" if index == TOKENS else None,
                    "token_ids": None,
                }
            ],
        }
        for index, delta in enumerate(deltas)
    ]
    chunks.append({**head, "choices": [], "usage": _USAGE})
    return [*(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n" for chunk in chunks), DONE]


@dataclass(frozen=True, slots=True, kw_only=True)
class StubSpec:
    """Starts a `StubEngine` that takes ``seconds`` for each answer, however many it gives at once."""

    model_name: str
    seconds: float = 0.0

    @property
    def model_revision(self) -> str | None:
        """There is none."""
        return None

    async def start(self, meter_socket: str, replica: str) -> "StubEngine":
        """Nothing has to start."""
        return StubEngine(self.model_name, StepReporter(meter_socket, replica), self.seconds)


class StubEngine:
    """Answers whatever is asked in one step that its meter hears of."""

    def __init__(self, model: str, reporter: StepReporter, seconds: float) -> None:
        self._model = model
        self._seconds = seconds
        self._reporter = reporter
        self._steps = itertools.count(1)

    async def check(self) -> None:
        """It is always well."""

    def stop(self) -> None:
        """Nothing else runs."""
        self._reporter.close()

    def stop_at_length(self, request_id: str) -> None:
        """It is done at once anyway."""

    async def answer(
        self,
        request_id: str,
        shape: Shape,
        body: Mapping[str, Any],
        delivered: Sequence[int] = (),  # noqa: ARG002 - never resumed
    ) -> AsyncGenerator[Payload | Working, None]:
        """A chat completion."""
        assert shape is Shape.CHAT, shape
        step = next(self._steps)
        work = RequestWork(request_id, _PROMPT_TOKENS, _PROMPT_TOKENS, 0, 0, _PROMPT_TOKENS)
        self._reporter.began(step, time.monotonic_ns(), (work,))
        if self._seconds:
            await asyncio.sleep(self._seconds)
        self._reporter.ended(step, time.monotonic_ns(), {request_id: TOKENS})
        if not body.get("stream"):
            yield Payload(unary_body(request_id, self._model))
            return
        for index, event in enumerate(events(request_id, self._model)):
            yield Payload(event, (index,) if 0 < index <= TOKENS else ())
            await asyncio.sleep(0)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The same answers, as an ASGI application that does nothing else."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["method"] != "POST":
        await _respond(send, b"{}")
        return
    asked = json.loads(body)
    if not asked.get("stream"):
        await _respond(send, unary_body("0", asked["model"]))
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for event in events("0", asked["model"]):
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _respond(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")
