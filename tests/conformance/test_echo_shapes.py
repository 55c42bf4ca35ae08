"""The echo engine stands in for vLLM: what it says is what vLLM's own classes write, byte for byte."""

import json
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, when it is imported
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse, AnthropicStreamEvent
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse, ChatCompletionStreamResponse
    from vllm.entrypoints.openai.completion.protocol import CompletionResponse, CompletionStreamResponse
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingResponse

from echo import EchoEngine
from silent_reporter import SilentReporter

from serve.messages import DONE, Payload
from serve.shapes import Shape

_ID = "0123456789abcdef" * 2
_ASKED = [{"role": "user", "content": "the weather of 3 cities"}]
_SCHEMA = {"type": "object", "properties": {"cities": {"type": "integer"}}, "required": ["cities"]}
_OPENAI_TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": _SCHEMA}}]
_ANTHROPIC_TOOLS = [{"name": "get_weather", "input_schema": _SCHEMA}]
_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
_CASES = [
    (Shape.CHAT, {"messages": _ASKED}),
    (Shape.CHAT, {"messages": _ASKED, "n": 2, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}),
    (Shape.CHAT, {"messages": _ASKED, "tools": _OPENAI_TOOLS}),
    (Shape.CHAT, {"messages": _ASKED, "response_format": _FORM, "stop": "never"}),
    (Shape.COMPLETION, {"prompt": "one two three", "logprobs": 1, "stop": ["two"]}),
    (Shape.COMPLETION, {"prompt": ["one two", "three"], "n": 2}),
    (Shape.MESSAGES, {"messages": _ASKED, "max_tokens": 3}),
    (Shape.MESSAGES, {"messages": _ASKED, "max_tokens": 99, "tools": _ANTHROPIC_TOOLS}),
    (Shape.MESSAGES, {"messages": _ASKED, "max_tokens": 99, "stop_sequences": ["cities"]}),
]
_STREAMS = {Shape.CHAT: ChatCompletionStreamResponse, Shape.COMPLETION: CompletionStreamResponse}
_BODIES = {Shape.CHAT: ChatCompletionResponse, Shape.COMPLETION: CompletionResponse}


async def _answer(shape: Shape, body: dict) -> list[Payload]:
    engine = EchoEngine("small", SilentReporter())
    return [item async for item in engine.answer(_ID, shape, body) if isinstance(item, Payload)]


@pytest.mark.parametrize(("shape", "body"), _CASES)
async def test_each_event_of_a_stream_is_as_vllm_writes_it(shape, body):
    *events, done = [payload.data for payload in await _answer(shape, {**body, "stream": True})]
    assert done == DONE
    for event in events:
        head, _, data = event.decode().removesuffix("\n\n").rpartition("data: ")
        if shape is Shape.MESSAGES:
            parsed = AnthropicStreamEvent.model_validate_json(data)
            assert head == f"event: {parsed.type}\n"
        else:
            parsed = _STREAMS[shape].model_validate_json(data)
            assert head == ""
        assert parsed.model_dump_json(exclude_unset=True) == data


@pytest.mark.parametrize(("shape", "body"), _CASES)
async def test_a_body_is_as_vllm_writes_it(shape, body):
    (payload,) = await _answer(shape, body)
    if shape is not Shape.MESSAGES:
        assert _BODIES[shape].model_validate_json(payload.data).model_dump_json() == payload.data.decode()
        return
    said = json.loads(payload.data)
    answer = AnthropicMessagesResponse.model_validate(said)
    assert answer.model_dump(exclude_none=True) == {name: value for name, value in said.items() if value is not None}


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings_are_as_vllm_writes_them(encoding):
    (payload,) = await _answer(Shape.EMBEDDING, {"input": ["one two", "three"], "encoding_format": encoding})
    said = json.loads(payload.data)
    assert EmbeddingResponse.model_validate(said).model_dump() == said
    assert (len(said["data"]), said["usage"]["total_tokens"]) == (2, 3)
