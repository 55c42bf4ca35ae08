"""The routes that run a model: OpenAI's chat completions, completions and embeddings, and Anthropic's messages."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from serve.answer import energy_headers, unary_body, with_energy
from serve.authentication import Authentication, Scope
from serve.door import Answer, Door
from serve.error_answers import fault_refusal
from serve.error_envelopes import stream_error
from serve.errors import RequestRefused
from serve.messages import Payload, Settled
from serve.model_request import ModelRequest
from serve.model_schemas import answer_document, asked_document
from serve.openapi import ErrorEnvelope, MessagesErrorEnvelope, documented
from serve.request_body import BodyLimits, read_json_object
from serve.request_labels import RequestLabels
from serve.request_pins import REGION_HEADER, RequestPins
from serve.request_shapes import parse_request
from serve.shapes import Shape

_ERRORS: Final = (
    HTTPStatus.PAYMENT_REQUIRED,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class ModelRoutes:
    """One route for each `Shape`, which differ in how a request is read and how its stream and its errors are told."""

    def __init__(self, authentication: Authentication, door: Door, pins: RequestPins, limits: BodyLimits) -> None:
        self._authentication = authentication
        self._door = door
        self._pins = pins
        self._limits = limits

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        for shape in Shape:
            app.add_api_route(
                f"/v1/{shape.value}",
                partial(self._answer, shape),
                methods=["POST"],
                response_model=None,
                name=shape.name.lower(),
                description="",
                **documented(
                    Scope.INFERENCE,
                    *_ERRORS,
                    takes_body=True,
                    ok=answer_document(shape),
                    extra=asked_document(shape),
                    envelope=MessagesErrorEnvelope if shape is Shape.MESSAGES else ErrorEnvelope,
                ),
            )

    async def _answer(self, shape: Shape, request: Request) -> Response:
        caller = await self._authentication.caller_for_hold(request)
        labels = RequestLabels.of(request.headers)
        pins = self._pins.of(caller.account, request.headers.getlist(REGION_HEADER))
        asked = parse_request(shape, *await read_json_object(request, self._limits))
        admission = caller.admission(labels)
        answer = await self._door.answer(request.state.request_id, admission, labels.customer_tag, asked, pins)
        return _streamed(answer, asked) if asked.stream else await _unary(answer)


def answer_headers(answer: Answer) -> dict[str, str]:
    """What is known of an answer when it begins."""
    site = answer.pool.site
    return {
        "X-Receipt-Id": f"rcpt_{answer.request_id}",
        "X-Routed-To": f"{site.operator}/{site.region}/{answer.started.silicon}",
        "X-Region": site.region,
        "X-Tier": answer.tier.value,
        "X-Energy-Method": answer.started.energy_method or "unavailable",
    }


async def _unary(answer: Answer) -> Response:
    async with aclosing(answer.items) as items:
        payload = await anext(items)
        settled = await anext(items)
    assert isinstance(payload, Payload), "an answer without a body"
    assert isinstance(settled, Settled), "an answer without a receipt"
    headers = {**answer_headers(answer), **energy_headers(settled.document)}
    return Response(unary_body(payload.data, settled.document), media_type="application/json", headers=headers)


def _streamed(answer: Answer, asked: ModelRequest) -> Response:
    return _Stream(_events(answer, asked), answer)


class _Stream(StreamingResponse):
    """Ends the answer when its client goes: Starlette leaves what it sends suspended, until garbage is collected."""

    def __init__(self, events: AsyncGenerator[bytes, None], answer: Answer) -> None:
        super().__init__(events, media_type="text/event-stream", headers=answer_headers(answer))
        self._events = events
        self._items = answer.items

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._items.aclose()  # of one that was never asked for an event


async def _events(answer: Answer, asked: ModelRequest) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer.items) as items:
        try:
            async for event in with_energy(items, asked.shape, include_usage=asked.include_usage):
                yield event
        except Exception as error:  # noqa: BLE001 - a stream that only ended would look whole
            refusal = error if isinstance(error, RequestRefused) else fault_refusal(answer.request_id, error)
            yield stream_error(asked.shape, refusal.status, refusal.message, answer.request_id)
