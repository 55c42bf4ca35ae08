"""Reading OpenAI's chat completion requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from placement.tiers import TierSigns
from serve.model_request import (
    MAX_CHOICES,
    ModelRequest,
    check_count,
    check_include_usage,
    check_model,
    check_objects,
    check_stream,
    is_text_parts,
    wrong,
)
from serve.shapes import Shape

_TEXT: Final = frozenset({"text"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Messages:
    texts: tuple[str, ...]
    has_images: bool
    is_all_text: bool


def parse_chat(body: dict[str, Any], body_bytes: int) -> ModelRequest:
    """Check what routing needs of a body that was so long in JSON.

    Raises:
        RequestRefused: 422, naming the field.
    """
    model, stream, include_usage = check_model(body), check_stream(body), check_include_usage(body)
    choices = check_count(body, "n", MAX_CHOICES) or 1
    limits = [check_count(body, name) for name in ("max_completion_tokens", "max_tokens")]
    max_tokens = next((limit for limit in limits if limit is not None), None)
    messages = _read_messages(body.get("messages"))
    prompt_characters = sum(map(len, messages.texts))
    return ModelRequest(
        shape=Shape.CHAT,
        model=model,
        stream=stream,
        include_usage=include_usage,
        choices=choices,
        max_tokens=max_tokens,
        signs=_signs(body, messages.has_images, max_tokens, prompt_characters),
        prompts=1,
        prompt_characters=prompt_characters,
        longest_characters=prompt_characters,
        is_all_text=messages.is_all_text,
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
        has_tools=bool(check_objects(body, "tools") or check_objects(body, "functions")),
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


def _read_messages(messages: object) -> _Messages:
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list with at least one message")
    texts: list[str] = []
    has_images, is_all_text = False, True
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(f"messages.{index}", "must be an object with a role")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        for part in parts:
            if not isinstance(part, dict) or not all(isinstance(part.get(name, ""), str) for name in ("type", "text")):
                raise wrong(f"messages.{index}.content", "must be text or a list of content parts")
            texts.append(part.get("text", ""))
            has_images = has_images or part.get("type") == "image_url"
        is_all_text = is_all_text and is_text_parts(parts, _TEXT)
    return _Messages(texts=tuple(texts), has_images=has_images, is_all_text=is_all_text)
