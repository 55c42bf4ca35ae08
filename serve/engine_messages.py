"""vLLM's messages as Anthropic's own API tells them, where vLLM does otherwise: their ids, and tool calls cut short."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from pydantic_core import from_json
from starlette.requests import Request
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

_CHAT_ID: Final = "chatcmpl-"
_MESSAGE_ID: Final = "msg_"
_MESSAGE_START: Final = "event: message_start\n"

_Convert = Callable[[ChatCompletionResponse], AnthropicMessagesResponse]


def messages_asker(serving: Any) -> Callable[[Any, Request], Awaitable[Any]]:  # noqa: ANN401 - vLLM's, or a test's
    """How vLLM's ``anthropic_serving_messages`` is asked for a message."""
    serving.messages_full_converter = _with_cut_calls(serving.messages_full_converter)

    async def ask(request: Any, raw: Request) -> Any:  # noqa: ANN401 - as vLLM answers
        answer = await serving.create_messages(request, raw)
        if isinstance(answer, ErrorResponse):
            return answer
        return _unary(answer) if isinstance(answer, AnthropicMessagesResponse) else _events(answer)

    return ask


def _unary(answer: AnthropicMessagesResponse) -> AnthropicMessagesResponse:
    return answer.model_copy(update={"id": answer.id.replace(_CHAT_ID, _MESSAGE_ID, 1)})


async def _events(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        async for event in events:
            if event.startswith(_MESSAGE_START):
                yield event.replace(f'"id":"{_CHAT_ID}', f'"id":"{_MESSAGE_ID}', 1)
            else:
                yield event


def _with_cut_calls(convert: _Convert) -> _Convert:
    """vLLM reads a call's arguments as JSON, and fails on an answer that was made where ``max_tokens`` cut them."""

    def converted(answer: ChatCompletionResponse) -> AnthropicMessagesResponse:
        for call in answer.choices[0].message.tool_calls:
            call.function.arguments = json.dumps(whole_input(call.function.arguments))
        return convert(answer)

    return converted


def whole_input(arguments: str) -> dict[str, Any]:
    """A tool's input, as far as its arguments go; empty where they are no object."""
    try:
        said = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
