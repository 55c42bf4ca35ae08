"""Answers cut at a random token and taken up by another engine, against the same answers uncut.

Greedy, on two engines that share nothing, so that no prefix cache helps; the second one sees each prompt only after
the cut. Compared are the token ids, what the client assembles from the events that it got, and, apart from how the
engines round, whether the seam kept every piece: the client's answer must be that of the resumed stream's own events.
Prompts ask for blank lines, emoji, lists, code, other scripts, JSON under a schema, log probabilities, and tool calls.
"""

import asyncio
import itertools
import json
import os
import random
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mesh.pool_setup import vllm_engine
from mesh.settings import load_settings
from serve.engine_spec import Engine, VllmSpec
from serve.messages import Payload
from serve.seam import Seam
from serve.shapes import Shape

_STREAMS = 100
_AT_ONCE = 4
_OUTPUT_TOKENS = 48
_CALL_TOKENS = 80
_SEED = 20261121
_SUBJECTS = ("rivers", "the moon", "bread", "a lighthouse", "numbers", "winter", "bees", "old maps", "tea", "trains")
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "facts": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "facts"],
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "language": {"type": "string"}},
            "required": ["query"],
        },
    },
}
# A model this small calls no tool by itself: the grammar lets it, and the tool parser finds the call in the text.
_ARGUMENTS = r'\{"query": "[a-z ]{5,12}", "language": "日本語 😀"\}'
_CALL = rf'<tool_call>\n\{{"name": "look_up", "arguments": {_ARGUMENTS}\}}\n</tool_call>'
_KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "story": ("Tell a short story about {}.", {}),
    "lists, blank lines": ("List five things about {}, numbered, two blank lines between them.", {}),
    "emoji": ("Describe {} with many emoji: 😀👩‍🚀🏳️‍🌈", {}),
    "code": ("Write a Python class about {} with a docstring and two methods.", {}),
    "scripts": ("Translate '{}' into Japanese, Arabic, Hindi and Russian.", {}),
    "stop string": ("Explain {} in steps.", {"stop": ["ing", "\n\n"], "min_tokens": 12, "repetition_penalty": 1.1}),
    "log probabilities": ("Say something about {}.", {"logprobs": True, "top_logprobs": 2}),
    "schema": (
        "Give facts about {} as JSON.",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "facts", "schema": _SCHEMA}}},
    ),
    "required tool": ("Find out more about {}.", {"tools": [_TOOL], "tool_choice": "required"}),
    "chosen tool": (
        "Find out more about {}.",
        {"tools": [_TOOL], "tool_choice": "auto", "structured_outputs": {"regex": _CALL}, "max_tokens": _CALL_TOKENS},
    ),
}


@dataclass(slots=True)
class Answer:
    """What a client has assembled from events, and how often it got what comes once."""

    text: str = ""
    tools: dict[int, dict[str, str]] = field(default_factory=dict)
    finish: str | None = None
    logprobs: list[str] = field(default_factory=list)
    usage: Any = None
    times: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, events: Iterable[bytes]) -> "Answer":
        answer = cls()
        for event in events:
            if event == b"data: [DONE]\n\n":
                answer.times["end"] += 1
            else:
                answer._take(json.loads(event.removeprefix(b"data: ")))
        return answer

    def _take(self, chunk: dict[str, Any]) -> None:
        if not chunk["choices"]:
            self.usage = chunk["usage"]
            self.times["usage"] += 1
        for choice in chunk["choices"]:
            delta = choice["delta"]
            self.times["role"] += "role" in delta
            self.text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                mine = self.tools.setdefault(call["index"], {"name": "", "arguments": ""})
                for name, said in (call.get("function") or {}).items():
                    mine[name] += said or ""
                self.times[f"id of call {call['index']}"] += bool(call.get("id"))
            self.logprobs += [each["token"] for each in (choice.get("logprobs") or {}).get("content") or ()]
            if choice.get("finish_reason"):
                self.finish = choice["finish_reason"]
                self.times["finish"] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One answer that was cut; ``is_whole``: the seam lost nothing and repeated nothing."""

    kind: str
    same_tokens: bool
    same_answer: bool
    is_whole: bool


def main() -> None:
    for dtype in ("float32", "bfloat16"):
        cuts = asyncio.run(measure(dtype, _STREAMS))
        limits = f"{_OUTPUT_TOKENS} tokens (a chosen tool {_CALL_TOKENS})"
        print(f"{dtype}, greedy: {len(cuts)} answers of at most {limits}, {_AT_ONCE} at a time")
        print(f"{'':20}{'answers':>8}{'same tokens':>13}{'same answer':>13}{'whole at the seam':>19}")
        for kind in (*_KINDS, ""):
            mine = [cut for cut in cuts if kind in ("", cut.kind)]
            counts = [sum(getattr(cut, name) for cut in mine) for name in ("same_tokens", "same_answer", "is_whole")]
            print(f"{kind or 'all':20}{len(mine):>8}{counts[0]:>13}{counts[1]:>13}{counts[2]:>19}", flush=True)


async def measure(dtype: str, streams: int) -> list[Cut]:
    """Start two engines of the built-in model in this precision, and cut so many answers."""
    settings = load_settings(None, port=None, data_dir=None)
    pool = settings.pools[0]
    os.environ.update(settings.model(pool.model).environment)
    spec = vllm_engine(pool, settings)
    tools = {"enable-auto-tool-choice": True, "tool-call-parser": "hermes", "tool-strict-level": "auto"}
    spec = replace(spec, arguments={**spec.arguments, **tools, "dtype": dtype})
    with tempfile.TemporaryDirectory() as folder:
        engines = [await _start(spec, Path(folder) / name) for name in ("first", "second")]
        try:
            return await _cut_all(engines, spec.model_name, streams)
        finally:
            for engine in engines:
                engine.stop()


async def _start(spec: VllmSpec, socket: Path) -> Engine:
    """No meter listens on its socket: the steps aren't what is measured here."""
    return await spec.start(str(socket), socket.name)


async def _cut_all(engines: Sequence[Engine], model: str, streams: int) -> list[Cut]:
    kinds = itertools.islice(itertools.cycle(_KINDS), streams)
    waiting = [(index, kind) for index, kind in enumerate(kinds)]
    cuts: list[Cut] = []

    async def worker() -> None:
        while waiting:
            index, kind = waiting.pop()
            cuts.append(await _cut(engines, kind, _body(model, kind, index), random.Random(_SEED + index)))  # noqa: S311 - where to cut

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    return cuts


async def _cut(engines: Sequence[Engine], kind: str, body: Mapping[str, Any], chance: random.Random) -> Cut:
    """Cut after any event but the last that is made from tokens."""
    request_id = secrets.token_hex(16)
    uncut = await _stream(engines[0], request_id, body, ())
    ends = [index for index, each in enumerate(uncut) if each.token_ids]
    cut_at = chance.randrange(1, ends[-1] + 1) if len(ends) > 1 else 1
    sent = [each.data for each in uncut[:cut_at]]
    delivered = _ids(uncut[:cut_at])
    resumed = await _stream(engines[1], request_id, body, delivered)
    seam = Seam(sent)
    received = Answer.of([*sent, *(event for each in resumed for event in seam.beyond(each.data))])
    return Cut(
        kind=kind,
        same_tokens=[*delivered, *_ids(resumed)] == _ids(uncut),
        same_answer=received == Answer.of(each.data for each in uncut),
        is_whole=received == Answer.of(each.data for each in resumed),
    )


async def _stream(engine: Engine, request_id: str, body: Mapping[str, Any], delivered: Sequence[int]) -> list[Payload]:
    async with aclosing(engine.answer(request_id, Shape.CHAT, body, delivered)) as items:
        return [item async for item in items if isinstance(item, Payload)]


def _ids(payloads: Iterable[Payload]) -> list[int]:
    return [token for each in payloads for token in each.token_ids]


def _body(model: str, kind: str, index: int) -> dict[str, Any]:
    prompt, options = _KINDS[kind]
    subject = _SUBJECTS[index // len(_KINDS) % len(_SUBJECTS)]
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt.format(subject)}],
        "max_tokens": _OUTPUT_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **options,
    }
