"""The echo engine's answers in the shapes of each API, member by member as vLLM writes them."""

import base64
import hashlib
import itertools
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from echo_script import Piece, Said, Script

from serve.shapes import Shape

DIMENSIONS = 8
_CREATED = 1
_FINGERPRINT = "echo-1"
_LOGPROB = -0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt: int
    completion: int

    def openai(self, *, unary: bool) -> dict[str, object]:
        """A stream's has no nulls."""
        counts = {"prompt_tokens": self.prompt, "total_tokens": self.prompt + self.completion}
        counts["completion_tokens"] = self.completion
        if not unary:
            return {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
        details = {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None}
        return {**counts, "prompt_tokens_details": details, "completion_tokens_details": None}

    def anthropic(self) -> dict[str, object]:
        return {"input_tokens": self.prompt, "output_tokens": self.completion, "cache_read_input_tokens": 0}


class ChatShape:
    """OpenAI's chat completions."""

    def __init__(self, request_id: str, model: str, body: Mapping[str, Any]) -> None:
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._logprobs = bool(body.get("logprobs"))
        self._tops = body.get("top_logprobs") or 0

    def begin(self, script: Script) -> Iterator[bytes]:
        for index in range(len(script.choices)):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            yield self._chunk([choice], prompt_token_ids=None, prompt_text=None)

    def piece(self, index: int, piece: Piece, finish: str | None, matched: str | None = None) -> Iterator[bytes]:
        choice: dict[str, object] = {
            "index": index,
            "delta": self._delta(piece),
            "logprobs": {"content": [self._logprob(piece)]} if self._logprobs and piece.call is None else None,
            "finish_reason": finish,
        }
        if finish is not None:
            choice["stop_reason"] = matched
        yield self._chunk([choice | {"token_ids": None}])

    def end(self, usage: Usage) -> Iterator[bytes]:
        yield self._chunk([], usage=usage.openai(unary=False), system_fingerprint=_FINGERPRINT)

    def unary(self, script: Script, usage: Usage) -> bytes:
        choices = [self._choice(index, said) for index, said in enumerate(script.choices)]
        head = {"id": self._id, "object": "chat.completion", "created": _CREATED, "model": self._model}
        unset = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params")
        rest = {"service_tier": None, "system_fingerprint": _FINGERPRINT, "usage": usage.openai(unary=True)}
        return _json({**head, "choices": choices, **rest, **dict.fromkeys(unset), "metrics": None})

    def _choice(self, index: int, said: Said) -> dict[str, object]:
        calls = [
            {"id": self._call_id(number), "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, name, arguments in calls_of(said)
        ]
        text = "".join(piece.text for piece in said.pieces if piece.call is None)
        message = {
            "role": "assistant",
            "content": text if text or not calls else None,
            **dict.fromkeys(("refusal", "annotations", "audio", "function_call")),
            **({"tool_calls": calls} if calls else {}),
            "reasoning": None,
        }
        logprobs = {"content": [self._logprob(piece) for piece in said.pieces]} if self._logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": said.finish,
            "stop_reason": said.matched,
            "token_ids": None,
            "routed_experts": None,
        }

    def _delta(self, piece: Piece) -> dict[str, object]:
        if piece.call is None:
            return {"content": piece.text}
        if piece.names is None:
            return {"content": None, "tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
        call = {"id": self._call_id(piece.call), "type": "function", "index": piece.call}
        return {"content": None, "tool_calls": [{**call, "function": {"name": piece.names}}]}

    def _call_id(self, number: int) -> str:
        return f"chatcmpl-tool-{number:016x}"

    def _logprob(self, piece: Piece) -> dict[str, object]:
        token = {"token": piece.text, "logprob": _LOGPROB, "bytes": list(piece.text.encode())}
        return {**token, "top_logprobs": [token] * min(1, self._tops)}

    def _chunk(self, choices: list[dict[str, object]], **rest: object) -> bytes:
        head = {"id": self._id, "object": "chat.completion.chunk", "created": _CREATED, "model": self._model}
        return _data({**head, "choices": choices, **rest})


class CompletionShape:
    """OpenAI's completions of text."""

    def __init__(self, request_id: str, model: str, body: Mapping[str, Any]) -> None:
        self._head = {"id": f"cmpl-{request_id}", "object": "text_completion", "created": _CREATED, "model": model}
        self._logprobs: int | None = body.get("logprobs")
        self._offsets: dict[int, int] = {}

    def begin(self, script: Script) -> Iterator[bytes]:
        yield from ()

    def piece(self, index: int, piece: Piece, finish: str | None, matched: str | None = None) -> Iterator[bytes]:
        logprobs = None if self._logprobs is None else self._about(index, [piece.text])
        choice = {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish}
        rest = {"stop_reason": matched, "prompt_token_ids": None, "token_ids": None}
        yield _data({**self._head, "choices": [choice | rest]})

    def end(self, usage: Usage) -> Iterator[bytes]:
        rest = {"usage": usage.openai(unary=False), "system_fingerprint": _FINGERPRINT}
        yield _data({**self._head, "choices": [], **rest})

    def unary(self, script: Script, usage: Usage) -> bytes:
        choices = [self._choice(index, said) for index, said in enumerate(script.choices)]
        unset = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
        rest = {"service_tier": None, "system_fingerprint": _FINGERPRINT, "usage": usage.openai(unary=True)}
        return _json({**self._head, "choices": choices, **rest, **unset})

    def _choice(self, index: int, said: Said) -> dict[str, object]:
        texts = [piece.text for piece in said.pieces]
        return {
            "index": index,
            "text": "".join(texts),
            "logprobs": None if self._logprobs is None else self._about(index, texts),
            "finish_reason": said.finish,
            "stop_reason": said.matched,
            **dict.fromkeys(("token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts")),
        }

    def _about(self, index: int, texts: list[str]) -> dict[str, object]:
        offsets = [*itertools.accumulate(map(len, texts), initial=self._offsets.get(index, 0))]
        self._offsets[index] = offsets.pop()
        return {
            "text_offset": offsets,
            "token_logprobs": [_LOGPROB for _ in texts],
            "tokens": texts,
            "top_logprobs": [{text: _LOGPROB} for text in texts],
        }


class MessagesShape:
    """Anthropic's messages, as vLLM makes them from a chat completion's chunks."""

    def __init__(self, request_id: str, model: str, body: Mapping[str, Any]) -> None:
        self._id = f"msg_{request_id}"
        self._model = model
        self._block = -1
        self._open: int | None = None
        self._is_open = False
        self._stop: tuple[str | None, str | None] = (None, None)

    def begin(self, script: Script) -> Iterator[bytes]:
        head = {"id": self._id, "type": "message", "role": "assistant", "content": [], "model": self._model}
        usage = {"input_tokens": script.prompt_tokens, "output_tokens": 0}
        message = {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _event("message_start", message=message)

    def piece(self, index: int, piece: Piece, finish: str | None, matched: str | None = None) -> Iterator[bytes]:
        is_said = bool(piece.text) or piece.names is not None
        if is_said and (not self._is_open or self._open != piece.call or piece.names is not None):
            yield from self._close()
            self._block, self._open, self._is_open = self._block + 1, piece.call, True
            yield _event("content_block_start", content_block=self._opening(piece), index=self._block)
        kind, member = ("text_delta", "text") if piece.call is None else ("input_json_delta", "partial_json")
        if piece.text:
            yield _event("content_block_delta", delta={"type": kind, member: piece.text}, index=self._block)
        if finish is not None:
            self._stop = _stop_reason(finish, matched, has_calls=self._open is not None)

    def end(self, usage: Usage) -> Iterator[bytes]:
        yield from self._close()
        reason, sequence = self._stop
        yield _event("message_delta", delta={"stop_reason": reason, "stop_sequence": sequence}, usage=usage.anthropic())
        yield _event("message_stop")

    def unary(self, script: Script, usage: Usage) -> bytes:
        said = script.choices[0]
        calls = calls_of(said)
        text = "".join(piece.text for piece in said.pieces if piece.call is None)
        content: list[dict[str, object]] = [{"type": "text", "text": text}] if text or not calls else []
        content += [
            {"type": "tool_use", "id": _tool_id(number), "name": name, "input": json.loads(arguments)}
            for number, name, arguments in calls
        ]
        reason, sequence = _stop_reason(said.finish, said.matched, has_calls=bool(calls))
        head = {"id": self._id, "type": "message", "role": "assistant", "content": content, "model": self._model}
        return _json({**head, "stop_reason": reason, "stop_sequence": sequence, "usage": usage.anthropic()})

    def _opening(self, piece: Piece) -> dict[str, object]:
        if piece.call is None:
            return {"type": "text", "text": ""}
        return {"type": "tool_use", "id": _tool_id(piece.call), "name": piece.names, "input": {}}

    def _close(self) -> Iterator[bytes]:
        if self._is_open:
            yield _event("content_block_stop", index=self._block)
            self._is_open = False


StreamShape = ChatShape | CompletionShape | MessagesShape
SHAPES: dict[Shape, type[StreamShape]] = {
    Shape.CHAT: ChatShape,
    Shape.COMPLETION: CompletionShape,
    Shape.MESSAGES: MessagesShape,
}


def embeddings(request_id: str, model: str, body: Mapping[str, Any], texts: tuple[str, ...], dimensions: int) -> bytes:
    """OpenAI's embeddings: a text always has the same numbers."""
    vectors = [embedding(text)[:dimensions] for text in texts]
    is_base64 = body.get("encoding_format") == "base64"
    data = [
        {"index": index, "object": "embedding", "embedding": _base64(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(max(1, len(text.split())) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    details = dict.fromkeys(("prompt_tokens_details", "completion_tokens_details"))
    head = {"id": f"embd-{request_id}", "object": "list", "created": _CREATED, "model": model}
    return _json({**head, "data": data, "usage": usage | details})


def embedding(text: str) -> list[float]:
    """As float32 has them, so that both encodings say the same."""
    digest = hashlib.blake2b(text.encode(), digest_size=DIMENSIONS).digest()
    return list(struct.unpack(f"<{DIMENSIONS}f", struct.pack(f"<{DIMENSIONS}f", *(byte / 255 for byte in digest))))


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def calls_of(said: Said) -> list[tuple[int, str, str]]:
    """Number, name and arguments of each tool call."""
    named = [(piece.call, piece.names) for piece in said.pieces if piece.names is not None]
    return [
        (number, name, "".join(piece.text for piece in said.pieces if piece.call == number))
        for number, name in named
        if number is not None
    ]


def _tool_id(number: int) -> str:
    return f"chatcmpl-tool-{number:016x}"


def _stop_reason(finish: str, matched: str | None, *, has_calls: bool) -> tuple[str, str | None]:
    if finish == "length":
        return "max_tokens", None
    if has_calls:
        return "tool_use", None
    return ("end_turn", None) if matched is None else ("stop_sequence", matched)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _data(chunk: object) -> bytes:
    return b"data: " + _json(chunk) + b"\n\n"


def _event(kind: str, **members: object) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, **members})
