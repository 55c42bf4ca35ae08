"""What the mesh changes of vLLM's messages, on vLLM's own converters; no engine is started."""

import json
import warnings
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, when it is imported
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

    from serve.engine_messages import messages_asker, whole_input

_ID = "0123456789abcdef" * 2
_RAW = Request({"type": "http", "headers": []})


def _chat(arguments: str) -> ChatCompletionResponse:
    """A chat completion that ended at its length in a tool call's arguments."""
    call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return ChatCompletionResponse.model_validate(
        {
            "id": f"chatcmpl-{_ID}",
            "model": "small",
            "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2},
        }
    )


async def _chunks() -> AsyncGenerator[str, None]:
    head = {"id": f"chatcmpl-{_ID}", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    for text in ("", "chatcmpl-", 'and "id":"chatcmpl-'):
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


class Serving(AnthropicServingMessages):
    """vLLM's own, whose chat completion is the test's."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def create_messages(self, request: Any, raw_request: Request | None = None) -> Any:
        if isinstance(self._answer, ChatCompletionResponse):
            return self.messages_full_converter(self._answer)
        return self._answer if not hasattr(self._answer, "__aiter__") else self.message_stream_converter(self._answer)


async def test_a_tool_call_that_was_cut_short_is_answered_with_what_there_is_of_it():
    answer = await messages_asker(Serving(_chat('{"place": "Ber')))(None, _RAW)
    (block,) = answer.content
    assert (block.type, block.name, block.input) == ("tool_use", "look", {"place": "Ber"})
    assert (answer.id, answer.stop_reason) == (f"msg_{_ID}", "max_tokens")


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": [1, {"b": "ü"}]}', {"a": [1, {"b": "ü"}]}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ("{", {}),
        ("", {}),
        ("[1]", {}),
        ('{"a" 1', {}),
    ],
)
def test_arguments_are_read_as_far_as_they_go(arguments, read):
    assert whole_input(arguments) == read


async def test_a_streams_message_has_an_id_as_anthropics_have_and_its_text_is_left_alone():
    events = [event async for event in await messages_asker(Serving(_chunks()))(None, _RAW)]
    said = [json.loads(event.partition("data: ")[2]) for event in events]
    assert said[0]["message"]["id"] == f"msg_{_ID}"
    text = "".join(each["delta"]["text"] for each in said if each["type"] == "content_block_delta")
    assert text == 'chatcmpl-and "id":"chatcmpl-'


async def test_vllms_errors_are_handed_on():
    error = create_error_response("no model")
    assert await messages_asker(Serving(error))(None, _RAW) is error
