"""What the echo engine says to a request of any shape: words, JSON as asked for, or tool calls.

A request that asks for JSON gets the least instance of its schema, in which a string is the prompt and a number is its
first one; without a schema, an object with the keys that the prompt names in 'single quotes'. With
tools it calls those whose names share a word of four letters or more with the prompt, all of them unless the client
wants one at a time; a tool that must be called is, and where any must be, the first one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from serve.errors import RequestRefused
from serve.shapes import Shape

_WORD = re.compile(r"[a-z]{4,}")
_QUOTED = re.compile(r"'(\w+)'")
_NUMBER = re.compile(r"-?\d+")
_JSON_PIECE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token's text: of the answer itself, or of a tool call's arguments, whose first piece names the tool."""

    text: str
    call: int | None = None
    names: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One choice; ``matched`` is the stop string that ended it."""

    pieces: tuple[Piece, ...]
    finish: str = "stop"
    matched: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """The whole answer. ``prompts`` are the words of each prompt; the first one's may be a command."""

    prompts: tuple[tuple[str, ...], ...]
    choices: tuple[Said, ...]

    @property
    def prompt_tokens(self) -> int:
        return sum(max(1, len(words)) for words in self.prompts)

    @property
    def words(self) -> tuple[str, ...]:
        return self.prompts[0] if self.prompts else ()


def script(shape: Shape, body: Mapping[str, Any]) -> Script:
    """The answer to a request; an embedding says nothing."""
    texts = prompts(shape, body)
    words = tuple(tuple(text.split()) for text in texts)
    if shape is Shape.EMBEDDING:
        return Script(prompts=words, choices=())
    choices = tuple(_said(shape, body, text) for text in texts for _ in range(body.get("n") or 1))
    return Script(prompts=words, choices=choices)


def prompts(shape: Shape, body: Mapping[str, Any]) -> tuple[str, ...]:
    """The text of each prompt: a conversation's is its last message."""
    if shape in (Shape.CHAT, Shape.MESSAGES):
        return (_content(body["messages"][-1].get("content")),)
    given = body["input" if shape is Shape.EMBEDDING else "prompt"]
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    return tuple(each if isinstance(each, str) else " ".join(f"token{token}" for token in each) for each in given)


def _content(content: object) -> str:
    """The text among a message's parts; pictures are taken and not looked at."""
    if not isinstance(content, list):
        return str(content or "")
    parts = (part.get("text") or _content(part.get("content")) for part in content)
    return " ".join(part for part in parts if part)


def _said(shape: Shape, body: Mapping[str, Any], text: str) -> Said:
    tools, choice = _tools(shape, body)
    last = body["messages"][-1] if "messages" in body else {}
    called = [] if _is_tool_result(last) and choice in ("auto", "none") else list(_called(tools, choice, text))
    if called and _one_at_a_time(body):
        called = called[:1]
    if called:
        finish = "stop" if choice not in ("auto", "required") else "tool_calls"
        pieces = [piece for index, name in enumerate(called) for piece in _call(index, name, tools[name], text)]
        return _cut(Said(pieces=tuple(pieces), finish=finish), body)
    form = _schema(body, text)
    pieces = (
        [f"{word} " for word in text.split()]
        if form is None
        else _chunks(json.dumps(instance(form, text), ensure_ascii=False))
    )
    said = Said(pieces=tuple(Piece(text=piece) for piece in pieces or [""]))
    return _cut(_until_stop(said, _stops(body)), body)


def _tools(shape: Shape, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Schemas by name, and ``auto``, ``none``, ``required`` or a name."""
    choice = body.get("tool_choice") or "auto"
    if shape is Shape.MESSAGES:
        tools = {tool["name"]: tool["input_schema"] for tool in body.get("tools") or ()}
        kind = "auto" if isinstance(choice, str) else choice["type"]
        return tools, {"any": "required", "tool": choice["name"] if kind == "tool" else ""}.get(kind, kind)
    tools = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in body.get("tools") or ()}
    return tools, choice if isinstance(choice, str) else choice["function"]["name"]


def _is_tool_result(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    blocks = content if isinstance(content, list) else ()
    return message.get("role") == "tool" or any(block.get("type") == "tool_result" for block in blocks)


def _one_at_a_time(body: Mapping[str, Any]) -> bool:
    choice = body.get("tool_choice")
    asked = isinstance(choice, dict) and choice.get("disable_parallel_tool_use")
    return bool(asked) or body.get("parallel_tool_calls") is False


def _called(tools: Mapping[str, Any], choice: str, text: str) -> Iterator[str]:
    if choice == "none" or not tools:
        return
    if choice in tools:
        yield choice
        return
    asked = set(_WORD.findall(text.lower()))
    meant = [name for name in tools if asked & set(_WORD.findall(name.lower()))]
    yield from meant or (list(tools)[:1] if choice == "required" else ())


def _call(index: int, name: str, schema: Mapping[str, Any], text: str) -> Iterator[Piece]:
    yield Piece(text="", call=index, names=name)
    for part in _chunks(json.dumps(instance(schema, text), ensure_ascii=False)):
        yield Piece(text=part, call=index)


def _chunks(text: str) -> list[str]:
    return [text[at : at + _JSON_PIECE] for at in range(0, len(text), _JSON_PIECE)]


def _schema(body: Mapping[str, Any], text: str) -> Mapping[str, Any] | None:
    """What the answer must be an instance of; None where it is free."""
    form = body.get("response_format") or (body.get("output_config") or {}).get("format") or {}
    if form.get("type") == "json_object":
        keys = _QUOTED.findall(text) or ["answer"]
        return {"type": "object", "properties": {key: {"type": "string"} for key in keys}, "required": keys}
    if form.get("type") == "json_schema":
        named = form.get("json_schema") or form
        schema: Mapping[str, Any] = named["schema"]
        return schema
    return None


def instance(schema: Any, text: str, root: Any = None) -> Any:
    """The least value that a JSON schema takes; a string is the text, and a number is its first one."""
    root = schema if root is None else root
    if schema is True or not schema:
        return {}
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return instance(target, text, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return instance(schema[name][0], text, root)
    return _of_type(schema, text, root)


def _of_type(schema: Mapping[str, Any], text: str, root: Any) -> Any:
    kind = schema.get("type", "object")
    match kind[0] if isinstance(kind, list) else kind:
        case "string":
            return (text or "text").ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
        case "integer" | "number":
            found = _NUMBER.search(text)
            return max(int(found.group()) if found else 0, schema.get("minimum", 0))
        case "boolean":
            return False
        case "null":
            return None
        case "array":
            return [instance(schema.get("items"), text, root)] * max(1, schema.get("minItems", 0))
    properties = schema.get("properties") or {}
    return {name: instance(properties.get(name), text, root) for name in schema.get("required") or ()}


def _stops(body: Mapping[str, Any]) -> Sequence[str]:
    stops = body.get("stop") or body.get("stop_sequences") or ()
    return [stops] if isinstance(stops, str) else stops


def _until_stop(said: Said, stops: Sequence[str]) -> Said:
    """The choice up to the first stop string, which isn't told."""
    text = "".join(piece.text for piece in said.pieces)
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    if not found:
        return said
    end, matched = min(found)
    kept: list[Piece] = []
    for piece in said.pieces:
        if end <= 0:
            break
        kept.append(replace(piece, text=piece.text[:end]))
        end -= len(piece.text)
    return Said(pieces=tuple(kept) or (Piece(text=""),), matched=matched)


def _cut(said: Said, body: Mapping[str, Any]) -> Said:
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    if most is None or len(said.pieces) <= most:
        return said
    return Said(pieces=said.pieces[:most], finish="length")


def check_dimensions(body: Mapping[str, Any], most: int) -> int:
    """How many numbers an embedding has."""
    asked: int = body.get("dimensions") or most
    if asked > most:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"this model has {most} dimensions", "dimensions")
    return asked
