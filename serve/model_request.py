"""Reading a chat completion request: the few fields that routing needs, checked; the rest is the engine's to judge."""

import json
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from placement.fleet import MOST_TOKENS
from placement.tiers import TierSigns
from serve.errors import RequestRefused
from serve.shapes import Shape

MAX_BODY_BYTES = 10 * 1024 * 1024
AUTO_MODEL = "auto"
_MAX_CHOICES = 128
_MOST_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A chat completion request. ``body`` is what the client sent, for the engine; never logged or stored.

    ``max_tokens`` is for each of its ``choices``; ``body_bytes`` is the body's length in JSON.
    """

    shape: Shape
    model: str
    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    signs: TierSigns
    prompt_characters: int
    body_bytes: int
    body: Mapping[str, Any]

    @property
    def is_auto(self) -> bool:
        """Whether the mesh chooses the model."""
        return self.model == AUTO_MODEL

    @property
    def features(self) -> frozenset[str]:
        """What the model must be able to do."""
        return frozenset(
            name for name, needed in (("tools", self.signs.has_tools), ("images", self.signs.has_images)) if needed
        )

    @property
    def least_tokens(self) -> int:
        """What a model's context must hold, or its engine refuses the request: the prompt with one token after it (no
        tokenizer packs more characters into a token on average), and ``max_tokens`` alone.
        """
        return max(self.prompt_characters // _MOST_CHARACTERS_PER_TOKEN + 1, self.max_tokens or 0)


async def read_body(chunks: AsyncIterable[bytes], content_length: str | None) -> bytes:
    """Read a request body of at most `MAX_BODY_BYTES`.

    Raises:
        RequestRefused: 413, as soon as the length is known to be too large.
    """
    if content_length is not None and content_length.isdecimal() and int(content_length) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> RequestRefused:
    return RequestRefused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {MAX_BODY_BYTES // 1024 // 1024} MB"
    )


def parse_json_object(data: bytes) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no NaN or Infinity, no duplicate keys, no bottomless nesting.

    Raises:
        RequestRefused: 400, saying what is wrong and where.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as wrong:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"the body is not UTF-8: bad byte at {wrong.start}") from wrong
    except json.JSONDecodeError as wrong:
        where = f"line {wrong.lineno} column {wrong.colno}"
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"the body is not valid JSON: {wrong.msg} at {where}") from wrong
    except ValueError as wrong:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, f"the body is not valid JSON: {wrong}") from wrong
    except RecursionError as wrong:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "the body is nested too deeply") from wrong
    if not isinstance(value, dict):
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double!r} appears twice")
    return value


def parse_chat(body: dict[str, Any], body_bytes: int) -> ModelRequest:
    """Check what routing needs of a body that was so long in JSON.

    Raises:
        RequestRefused: 422, naming the field.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _wrong("model", "must be the name of a model, or 'auto'")
    stream = body.get("stream")
    if stream not in (None, True, False):
        raise _wrong("stream", "must be true or false")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    if options is not None and not stream:
        raise _wrong("stream_options", "is only allowed when stream is true")
    choices = _check_count(body, "n", _MAX_CHOICES)
    limits = [_check_count(body, name, MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens")]
    max_tokens = next((limit for limit in limits if limit is not None), None)
    texts, has_images = _read_messages(body.get("messages"))
    prompt_characters = sum(map(len, texts))
    return ModelRequest(
        shape=Shape.CHAT,
        model=model,
        stream=bool(stream),
        include_usage=bool((options or {}).get("include_usage")),
        choices=choices or 1,
        max_tokens=max_tokens,
        signs=_signs(body, has_images, max_tokens, prompt_characters),
        prompt_characters=prompt_characters,
        body_bytes=body_bytes,
        body=body,
    )


def _signs(
    body: Mapping[str, Any],
    has_images: bool,  # noqa: FBT001 - a sign
    max_tokens: int | None,
    prompt_characters: int,
) -> TierSigns:
    """What tells the tier of a body whose messages `_read_messages` has checked."""
    messages = body["messages"]
    asked = [message for message in messages[:-1] if message["role"] == "user"]
    told = [message for message in messages[:-1] if message["role"] in ("system", "developer")]
    form = body.get("response_format")
    return TierSigns(
        prompt=_text(messages[-1]),
        instructions="\n".join(map(_text, told)),
        previous_prompt=_text(asked[-1]) if asked else "",
        earlier_turns=len(asked),
        has_tools=bool(body.get("tools") or body.get("functions")),
        has_schema=isinstance(form, dict) and form.get("type") in ("json_object", "json_schema"),
        has_images=has_images,
        max_tokens=max_tokens,
        prompt_characters=prompt_characters,
    )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part.get("text"))
    return content or ""


def _check_count(body: Mapping[str, Any], name: str, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _wrong(name, f"must be a whole number of at least 1 and at most {most}")
    return value


def _read_messages(messages: object) -> tuple[list[str], bool]:
    """Every text of the conversation in order, and whether it holds images."""
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list with at least one message")
    texts: list[str] = []
    has_images = False
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _wrong(f"messages.{index}", "must be an object with a role")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("text", ""), str):
                raise _wrong(f"messages.{index}.content", "must be text or a list of content parts")
            texts.append(part.get("text", ""))
            has_images = has_images or part.get("type") == "image_url"
    return texts, has_images


def _wrong(param: str, message: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{param} {message}", param)
