"""vLLM's own serving, one object for each shape: how a body becomes its request, and what its answer is on the wire."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionRequest, CompletionResponse
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError

from serve.engine_messages import messages_asker
from serve.errors import EngineBroke, RequestRefused
from serve.shapes import Shape

_STREAM_ERROR: Final = 'data: {"error"'
_MESSAGES_ERROR: Final = "event: error"

_Ask = Callable[[Any, Request], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedShape:
    """What an engine says to requests of one shape.

    ``has_parser``: of tool calls or reasoning; ``has_reasoning``: of reasoning. ``opens_empty``: a stream's first event
    comes before the first token is read.
    """

    request: TypeAdapter[Any]
    ask: _Ask
    has_parser: bool = False
    has_reasoning: bool = False
    opens_empty: bool = False

    def keeps_back(self, body: Mapping[str, Any]) -> bool:
        """Whether events may be held back for long, until a tool call or hidden reasoning is parsed."""
        return self.has_reasoning or (self.has_parser and bool(body.get("tools")))

    async def answer(self, body: Mapping[str, Any], request_id: str) -> AsyncGenerator[str, None] | bytes:
        """The events of a stream, or a whole body; vLLM reads the request before it answers either.

        Raises:
            RequestRefused: vLLM found the request wrong.
            EngineBroke: vLLM failed.
        """
        raw = Request({"type": "http", "headers": [(b"x-request-id", request_id.encode())], "state": {}})
        try:
            answer = await self.ask(self.request.validate_python(body), raw)
        except ValidationError as wrong:
            raise _invalid(wrong) from wrong
        except (VLLMClientError, ValueError, TypeError, OverflowError) as wrong:
            message = str(wrong).partition("\n")[0]
            raise RequestRefused(HTTPStatus.BAD_REQUEST, message, getattr(wrong, "parameter", None)) from wrong
        return _on_the_wire(answer)


def served_shapes(state: State) -> dict[Shape, ServedShape]:
    """Those that the started engine's model can answer: it generates text, or it embeds."""
    embedding = getattr(state, "serving_embedding", None)
    if embedding is not None:
        return {Shape.EMBEDDING: ServedShape(request=_adapter(EmbeddingRequest), ask=embedding)}
    chat, completion = state.openai_serving_chat, state.openai_serving_completion
    parsers = {
        "has_parser": chat.parser_cls is not None,
        "has_reasoning": chat.parser_cls is not None and chat.parser_cls.reasoning_parser_cls is not None,
    }
    return {
        Shape.CHAT: ServedShape(
            request=_adapter(ChatCompletionRequest),
            ask=chat.create_chat_completion,
            opens_empty=True,
            **parsers,
        ),
        Shape.COMPLETION: ServedShape(request=_adapter(CompletionRequest), ask=completion.create_completion),
        Shape.MESSAGES: ServedShape(
            request=_adapter(AnthropicMessagesRequest),
            ask=messages_asker(state.anthropic_serving_messages),
            opens_empty=True,
            **parsers,
        ),
    }


def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - one of vLLM's classes, or a union of them
    return TypeAdapter(kind)


def why_not_served(body: Mapping[str, Any]) -> RequestRefused | None:
    """What vLLM would do and the mesh can't carry; None for everything else.

    A beam search goes on in steps of its own, which nothing could end where an account's money ends.
    """
    param = "use_beam_search"
    if not body.get(param):
        return None
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{param} isn't supported", param)


def stream_error(event: str) -> RequestRefused | EngineBroke | None:
    """The failure that an event of a stream tells; None when it is a part of the answer."""
    if event.startswith(_STREAM_ERROR):
        return _as_error(ErrorResponse.model_validate_json(event.removeprefix("data: ")))
    if event.startswith(_MESSAGES_ERROR):
        return EngineBroke("the stream of a message broke off")
    return None


def _on_the_wire(answer: object) -> AsyncGenerator[str, None] | bytes:
    match answer:
        case ErrorResponse():
            raise _as_error(answer)
        case ChatCompletionResponse() | CompletionResponse():
            return answer.model_dump_json().encode()
        case AnthropicMessagesResponse():
            # Anthropic's blocks have only their own members; the message has all of its own, null or not.
            said = {"stop_reason": answer.stop_reason, "stop_sequence": answer.stop_sequence}
            return json.dumps({**answer.model_dump(exclude_none=True), **said}, ensure_ascii=False).encode()
        case Response():
            return bytes(answer.body)
    return cast("AsyncGenerator[str, None]", answer)


def _as_error(answer: ErrorResponse) -> RequestRefused | EngineBroke:
    """vLLM answers its own failures as it answers wrong requests, in the middle of a stream too."""
    status = HTTPStatus(answer.error.code)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineBroke(answer.error.type)
    return RequestRefused(status, answer.error.message, answer.error.param)


def _invalid(wrong: ValidationError) -> RequestRefused:
    """The first fault, in one line, without the value: that may be a prompt."""
    fault = wrong.errors(include_url=False, include_input=False, include_context=False)[0]
    # What isn't a name or a place is how pydantic calls a validator or a member of a union.
    place = [str(part) for part in fault["loc"] if isinstance(part, int) or part.isidentifier()]
    param = ".".join(place) or None
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{param or 'body'}: {fault['msg']}", param)
