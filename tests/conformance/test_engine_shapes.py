"""What the mesh makes of vLLM's answers and refusals; no engine is started."""

import json
import warnings
from collections.abc import AsyncGenerator
from http import HTTPStatus

import pytest
from starlette.datastructures import State
from starlette.responses import JSONResponse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own, when it is imported
    from vllm.entrypoints.anthropic.protocol import AnthropicContentBlock, AnthropicMessagesResponse, AnthropicUsage
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.exceptions import VLLMValidationError

    from serve.engine_shapes import ServedShape, served_shapes, stream_error, why_not_served

from pydantic import TypeAdapter

from serve.errors import EngineBroke, RequestRefused
from serve.shapes import Shape

_ID = "0123456789abcdef" * 2
_SERVINGS = ("openai_serving_chat", "openai_serving_completion", "anthropic_serving_messages")


class Chat:
    """In place of vLLM's chat serving."""

    def __init__(self, parser: type | None) -> None:
        self.parser_cls = parser

    async def create_chat_completion(self, request, raw):
        raise NotImplementedError

    create_completion = create_messages = messages_full_converter = create_chat_completion


class Parser:
    reasoning_parser_cls: type | None = None


class ReasoningParser(Parser):
    reasoning_parser_cls = object


def _state(parser: type | None = None) -> State:
    chat = Chat(parser)
    return State(dict.fromkeys(_SERVINGS, chat))


def _served(answer: object) -> ServedShape:
    async def ask(request, raw):
        assert isinstance(request, CompletionRequest)
        assert raw.headers["x-request-id"] == _ID
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ServedShape(request=TypeAdapter(CompletionRequest), ask=ask)


def test_a_model_serves_what_it_generates_or_embeddings():
    assert set(served_shapes(_state())) == {Shape.CHAT, Shape.COMPLETION, Shape.MESSAGES}
    assert set(served_shapes(State({"serving_embedding": Chat.create_chat_completion}))) == {Shape.EMBEDDING}


def test_events_are_kept_back_for_tools_and_for_reasoning_only():
    with_tools = {"tools": [{}]}
    for parser, body, kept in (
        (None, with_tools, False),
        (Parser, with_tools, True),
        (Parser, {}, False),
        (ReasoningParser, {}, True),
    ):
        assert served_shapes(_state(parser))[Shape.CHAT].keeps_back(body) is kept
        assert served_shapes(_state(parser))[Shape.MESSAGES].keeps_back(body) is kept
        assert not served_shapes(_state(parser))[Shape.COMPLETION].keeps_back(body)


async def test_a_message_s_body_says_why_it_stopped_and_its_blocks_have_no_nulls():
    message = AnthropicMessagesResponse(
        id="x",
        content=[AnthropicContentBlock(type="text", text="hi")],
        model="small",
        stop_reason="end_turn",
        usage=AnthropicUsage(input_tokens=1, output_tokens=2),
    )
    body = json.loads(await _served(message).answer({"prompt": "x"}, _ID))
    assert body["content"] == [{"type": "text", "text": "hi"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"] == {"input_tokens": 1, "output_tokens": 2}


async def test_an_embedding_s_response_is_its_body():
    assert await _served(JSONResponse({"data": []})).answer({"prompt": "x"}, _ID) == b'{"data":[]}'


async def test_events_are_handed_on():
    async def events() -> AsyncGenerator[str, None]:
        yield "data: {}\n\n"

    answer = await _served(events()).answer({"prompt": "x"}, _ID)
    assert [event async for event in answer] == ["data: {}\n\n"]


@pytest.mark.parametrize(
    ("answer", "status", "param"),
    [
        (VLLMValidationError("too long\nand more", parameter="prompt"), 400, "prompt"),
        (ValueError("no such thing"), 400, None),
        (create_error_response("no model", status_code=HTTPStatus.NOT_FOUND, param="model"), 404, "model"),
    ],
)
async def test_what_vllm_refuses_is_refused(answer, status, param):
    with pytest.raises(RequestRefused) as refused:
        await _served(answer).answer({"prompt": "x"}, _ID)
    assert (refused.value.status, refused.value.param) == (status, param)
    assert "and more" not in refused.value.message


async def test_what_vllm_fails_at_is_the_engine_s_failure():
    with pytest.raises(EngineBroke):
        await _served(create_error_response("boom", "InternalServerError", HTTPStatus.INTERNAL_SERVER_ERROR)).answer(
            {"prompt": "x"}, _ID
        )


async def test_a_wrong_body_is_refused_by_its_place_and_never_quoted():
    with pytest.raises(RequestRefused) as refused:
        await _served(None).answer({"prompt": "canary", "max_tokens": "canary"}, _ID)
    assert (refused.value.status, refused.value.param) == (422, "max_tokens")
    assert "canary" not in refused.value.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"use_beam_search": True}, "use_beam_search"),
        ({"use_beam_search": False, "stream": True}, None),
    ],
)
def test_what_the_mesh_cannot_carry_is_refused(body, param):
    refusal = why_not_served(body)
    assert (None if refusal is None else refusal.param) == param


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ('data: {"error":{"message":"m","type":"InternalServerError","param":null,"code":500}}\n\n', EngineBroke),
        ('data: {"error":{"message":"m","type":"BadRequestError","param":"x","code":400}}\n\n', RequestRefused),
        ('event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"m"}}\n\n', EngineBroke),
        ('event: message_stop\ndata: {"type":"message_stop"}\n\n', type(None)),
        ('data: {"choices":[]}\n\n', type(None)),
        ("data: [DONE]\n\n", type(None)),
    ],
)
def test_failures_in_the_middle_of_a_stream_are_found(event, error):
    assert type(stream_error(event)) is error
