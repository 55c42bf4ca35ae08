"""Reading Anthropic's message requests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from placement.fleet import MOST_TOKENS
from placement.tiers import TierSigns
from serve.model_request import (
    ModelRequest,
    check_count,
    check_model,
    check_objects,
    check_stream,
    is_text_parts,
    wrong,
)
from serve.shapes import Shape

_ROLES: Final = ("user", "assistant", "system")
_TEXT_BLOCKS: Final = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    role: str
    blocks: tuple[Mapping[str, Any], ...]

    @property
    def text(self) -> str:
        return "\n".join(block["text"] for block in self.blocks if block.get("text"))


def parse_messages(body: dict[str, Any], body_bytes: int) -> ModelRequest:
    """Check what routing needs of a body that was so long in JSON.

    Raises:
        RequestRefused: 422, naming the field.
    """
    model, stream = check_model(body), check_stream(body)
    max_tokens = check_count(body, "max_tokens", MOST_TOKENS)
    if max_tokens is None:
        raise wrong("max_tokens", "is required")
    stops = body.get("stop_sequences")
    if stops is not None and not (isinstance(stops, list) and all(isinstance(each, str) for each in stops)):
        raise wrong("stop_sequences", "must be a list of texts")
    system = _Turn(role="system", blocks=_blocks(body.get("system") or "", "system"))
    turns = _turns(body.get("messages"))
    blocks = [block for turn in (system, *turns) for block in _with_results(turn.blocks)]
    prompt_characters = sum(len(block.get("text") or "") for block in blocks)
    asked = [turn for turn in turns[:-1] if turn.role == "user"]
    return ModelRequest(
        shape=Shape.MESSAGES,
        model=model,
        stream=stream,
        include_usage=True,
        choices=1,
        max_tokens=max_tokens,
        signs=TierSigns(
            prompt=turns[-1].text,
            instructions=system.text,
            previous_prompt=asked[-1].text if asked else "",
            earlier_turns=len(asked),
            has_tools=bool(check_objects(body, "tools")),
            has_schema=bool(_format(body)),
            has_images=any(block.get("type") == "image" for block in blocks),
            max_tokens=max_tokens,
            prompt_characters=prompt_characters,
        ),
        prompts=1,
        prompt_characters=prompt_characters,
        longest_characters=prompt_characters,
        is_all_text=is_text_parts(blocks, _TEXT_BLOCKS),
        body_bytes=body_bytes,
        body=body,
    )


def _format(body: Mapping[str, Any]) -> object:
    config = body.get("output_config")
    return config.get("format") if isinstance(config, dict) else None


def _turns(messages: object) -> list[_Turn]:
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list with at least one message")
    turns = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise wrong(f"messages.{index}", f"must be an object with a role: {', '.join(_ROLES)}")
        blocks = _blocks(message.get("content"), f"messages.{index}.content")
        turns.append(_Turn(role=message["role"], blocks=blocks))
    return turns


def _blocks(content: object, param: str) -> tuple[Mapping[str, Any], ...]:
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for block in blocks:
        is_block = isinstance(block, dict) and isinstance(block.get("type"), str)
        if not is_block or not isinstance(block.get("text", ""), str):
            raise wrong(param, "must be text or a list of content blocks")
    return tuple(blocks)


def _with_results(blocks: tuple[Mapping[str, Any], ...]) -> Iterator[Mapping[str, Any]]:
    """The blocks, and those inside the results of tools."""
    for block in blocks:
        yield block
        if block.get("type") == "tool_result" and block.get("content") is not None:
            yield from _blocks(block["content"], "messages.content.tool_result.content")
