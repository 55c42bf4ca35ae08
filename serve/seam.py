"""Where a stream was cut and another replica took it up: what the client has already, and what it has yet to get.

Of OpenAI's streams, of chat completions and of completions; Anthropic's are `serve.messages_seam`'s.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from serve.errors import SeamBroken
from serve.messages import DONE

_DATA: Final = b"data: "
_TEXT_PARTS: Final = (
    "text",
    "input_text",
    "output_text",
    "refusal",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_result",
)
_COUNT_THE_ANSWER: Final = (
    "frequency_penalty",
    "presence_penalty",
    "bad_words",
    "repetition_detection",
    "thinking_token_budget",
    "watermarking",
)
_NOT_REPLAYED: Final = (
    "use_beam_search",
    "echo",
    "logprob_token_ids",
    "vllm_xargs",
    "kv_transfer_params",
    "ec_transfer_params",
)
_TOKEN_LISTS: Final = ("token_ids", "prompt_token_ids")
_ONLY_ONCE: Final = ("prompt_token_ids", "prompt_text")

_Path = tuple[object, ...]


def why_not_resumable(body: Mapping[str, Any]) -> str | None:
    """Why a streamed answer to this request can't be taken up in its middle; None when it can.

    It can be when an engine that replays the delivered tokens is then in the state that the first one was in.
    Grammars are (JSON schemas, forced tools), and so are log probabilities, stop strings, tools and reasoning.
    """
    if body.get("n") not in (None, 1):
        return "n is above 1"
    if any(part not in _TEXT_PARTS for part in _content_types(body)):
        return "the messages hold more than text"
    prompt, thinking = body.get("prompt"), body.get("thinking")
    if isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int):
        return "there are several prompts"
    if isinstance(thinking, dict) and thinking.get("budget_tokens"):
        return "thinking.budget_tokens depends on the tokens of the answer before"
    for name in _COUNT_THE_ANSWER:
        if body.get(name):
            return f"{name} depends on the tokens of the answer before"
    return next((f"{name} is set" for name in _NOT_REPLAYED if body.get(name)), None)


def _content_types(body: Mapping[str, Any]) -> Iterator[object]:
    """Of whatever a client sent: a shape without messages checks none, and no shape what is inside a tool's result."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        for part in _parts(message):
            yield part.get("type", "text")
            if part.get("type") == "tool_result":
                yield from (inner.get("type", "text") for inner in _parts(part))


def _parts(message: object) -> Iterator[Mapping[str, Any]]:
    content = message.get("content") if isinstance(message, dict) else None
    return (part for part in content if isinstance(part, dict)) if isinstance(content, list) else iter(())


class Seam:
    """Cuts a resumed stream, which begins at the answer's beginning, to what lies beyond the events already sent.

    The two may cut the same answer into other pieces. Text, arguments, token ids and log probabilities are matched by
    position; role, finish reason, usage and the end by having been sent. ``id`` and ``created`` stay the first
    attempt's, and so do the ids of tool calls, which each attempt makes at random.
    """

    def __init__(self, sent: Sequence[bytes]) -> None:
        chunks = [_parsed(event) for event in sent if event != DONE]
        self._first = chunks[0] if chunks else None
        self._sent: dict[_Path, Any] = {("done",): True} if DONE in sent else {}
        self._position: dict[_Path, int] = {}
        pieces: dict[_Path, list[Any]] = defaultdict(list)
        for chunk in chunks:
            for path, value in _leaves(chunk):
                pieces[path].append(value)
        self._sent |= {path: _joined(path, values) for path, values in pieces.items()}

    def beyond(self, event: bytes) -> tuple[bytes, ...]:
        """What of the resumed stream's next event the client doesn't have yet: nothing, or one event.

        Raises:
            SeamBroken: it contradicts what was sent.
        """
        if event == DONE:
            self._check_covered(())
            return () if ("done",) in self._sent else (event,)
        if self._first is None:
            return (event,)
        chunk = _parsed(event)
        chunk |= {name: self._first[name] for name in ("id", "created") if name in self._first}
        for name in _ONLY_ONCE:
            if (name,) in self._sent:
                chunk.pop(name, None)
        if chunk["choices"]:
            chunk["choices"] = [rest for choice in chunk["choices"] if _says_something(rest := self._cut(choice))]
            return (_event(chunk),) if chunk["choices"] else ()
        return () if ("usage",) in self._sent else (_event(chunk),)

    def _cut(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """The choice without what was sent of it."""
        index = choice["index"]
        rest: dict[str, Any] = {**choice, **({"delta": {}} if "delta" in choice else {})}
        if "text" in choice:
            rest["text"] = self._cut_stretch((index, "text"), choice["text"])
        for name, value in choice.get("delta", {}).items():
            if name == "tool_calls":
                calls = [self._cut_call((index, name, call["index"]), call) for call in value or ()]
                rest["delta"][name] = [call for call in calls if len(call) > 1]
            else:
                rest["delta"] |= self._cut_leaf((index, name), value)
        for name in _TOKEN_LISTS:
            if choice.get(name) is not None:
                rest[name] = self._cut_stretch((index, name), choice[name])
        if choice.get("logprobs") is not None:
            rest["logprobs"] = {
                name: value if value is None else self._cut_stretch((index, "logprobs", name), value)
                for name, value in choice["logprobs"].items()
            }
        self._cut_finish(rest)
        return rest

    def _cut_call(self, path: _Path, call: Mapping[str, Any]) -> dict[str, Any]:
        """One tool call's piece; only its ``index`` is left when all of it was sent."""
        rest = {"index": call["index"]}
        for name, value in call.items():
            if name == "function":
                function: dict[str, Any] = {}
                for part, text in (value or {}).items():
                    function |= self._cut_leaf((*path, part), text)
                rest |= {"function": function} if any(function.values()) else {}
            elif name != "index" and value is not None:
                rest |= self._cut_leaf((*path, name), value)
        return rest

    def _cut_leaf(self, path: _Path, value: object) -> dict[str, Any]:
        """The member under its name, or nothing when it was sent."""
        name = str(path[-1])
        if value is None:
            return {name: None}
        if isinstance(value, str | list) and not _is_single(path):
            rest = self._cut_stretch(path, value)
            return {name: rest} if rest or not value else {}
        if path not in self._sent:
            return {name: value}
        if name != "id" and self._sent[path] != value:
            raise SeamBroken(f"{name} differs from what was sent")
        return {}

    def _cut_stretch(self, path: _Path, piece: Any) -> Any:  # noqa: ANN401 - text or a list
        """What lies beyond; what doesn't must be what was sent, but for log probabilities, which can't be replayed."""
        begin = self._position.get(path, 0)
        self._position[path] = begin + len(piece)
        again = self._sent.get(path, piece[:0])[begin : begin + len(piece)]
        if "logprobs" not in path and piece[: len(again)] != again:
            raise SeamBroken(f"{path[-1]} differs from what was sent")
        return piece[len(again) :]

    def _cut_finish(self, rest: dict[str, Any]) -> None:
        index, finish = rest["index"], rest.get("finish_reason")
        sent = self._sent.get((index, "finish_reason"))
        if sent is not None and (finish not in (None, sent) or _says_something({**rest, "finish_reason": None})):
            raise SeamBroken("the answer goes on after its end")
        if finish is not None:
            self._check_covered((index,))
        if sent is not None:
            rest["finish_reason"] = None

    def _check_covered(self, within: _Path) -> None:
        """At an end, all that was sent must have come again."""
        for path, sent in self._sent.items():
            is_stretch = isinstance(sent, str | list) and isinstance(path[0], int) and not _is_single(path)
            if is_stretch and path[: len(within)] == within and self._position.get(path, 0) < len(sent):
                raise SeamBroken(f"{path[-1]} ends before what was sent")


def _leaves(chunk: Mapping[str, Any]) -> Iterator[tuple[_Path, Any]]:
    """What one chunk says, by place; nulls say nothing."""
    said: list[tuple[_Path, Any]] = [((name,), chunk.get(name)) for name in _ONLY_ONCE]
    if not chunk["choices"]:
        said.append((("usage",), chunk.get("usage")))
    for choice in chunk["choices"]:
        index = choice["index"]
        said += [((index, name), value) for name, value in choice.get("delta", {}).items() if name != "tool_calls"]
        said += [((index, "logprobs", name), value) for name, value in (choice.get("logprobs") or {}).items()]
        said += [((index, name), choice.get(name)) for name in ("text", *_TOKEN_LISTS, "finish_reason")]
        for call in choice.get("delta", {}).get("tool_calls") or ():
            parts = {**call, **(call.get("function") or {})}
            said += [
                ((index, "tool_calls", call["index"], name), value)
                for name, value in parts.items()
                if name not in ("index", "function")
            ]
    return ((path, value) for path, value in said if value is not None)


def _joined(path: _Path, values: Sequence[Any]) -> Any:  # noqa: ANN401 - whatever the member holds
    """A member as a client has it after all its pieces."""
    if isinstance(values[0], str) and not _is_single(path):
        return "".join(values)
    return [*chain.from_iterable(values)] if isinstance(values[0], list) else values[-1]


def _is_single(path: _Path) -> bool:
    """Whether the member is said whole, once; others are said piece by piece."""
    return path[-1] in ("role", "finish_reason") or ("tool_calls" in path and path[-1] in ("id", "type"))


def _says_something(choice: Mapping[str, Any]) -> bool:
    said = (
        choice.get("text"),
        *choice.get("delta", {}).values(),
        *(choice.get("logprobs") or {}).values(),
        *(choice.get(name) for name in _TOKEN_LISTS),
    )
    return choice.get("finish_reason") is not None or any(each not in (None, "", []) for each in said)


def _parsed(event: bytes) -> dict[str, Any]:
    chunk: dict[str, Any] = json.loads(event.removeprefix(_DATA))
    return chunk


def _event(chunk: Mapping[str, Any]) -> bytes:
    return _DATA + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
