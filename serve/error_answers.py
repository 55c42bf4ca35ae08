"""What a request gets whose route raised: the envelope, whatever it was."""

import logging
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayActorError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from receipts.errors import LedgerError
from serve.error_envelopes import envelope, known_status
from serve.errors import RequestRefused
from serve.fault_place import fault_place
from serve.receipt_routes import invalid_parameter
from serve.shapes import Shape

_LOG = logging.getLogger(__name__)
_LEDGER_BACK_AFTER_S: Final = 2
_MOST_SHOWN_CHARACTERS: Final = 128
_SHAPES: Final = {f"/v1/{shape.value}": shape for shape in Shape}


def answer_errors(app: FastAPI) -> None:
    """Have the application answer each error that a request may end with."""
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RayActorError, _ledger_away)
    app.add_exception_handler(LedgerError, _ledger_away)


def refusal_answer(request: Request, refusal: RequestRefused) -> JSONResponse:
    """The refusal for the client, in the envelope of the route's shape."""
    status, request_id = known_status(refusal.status), request.state.request_id
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.receipt_id is not None:
        headers["X-Receipt-Id"] = refusal.receipt_id
    if status is HTTPStatus.CONFLICT:
        headers["X-Should-Retry"] = "false"  # OpenAI's and Anthropic's clients would, to the same end
    body: dict[str, Any] = envelope(
        _SHAPES.get(request.url.path),
        status,
        refusal.message,
        request_id,
        param=refusal.param,
        receipt_id=refusal.receipt_id,
    )
    return JSONResponse(body, status.value, headers=headers)


def fault_refusal(request_id: str, error: Exception) -> RequestRefused:
    """For the client of a fault of ours, which is logged by type and place alone: its text could quote a prompt."""
    _LOG.error("request %s: %s", request_id, fault_place(error))
    message = "internal error; the request id tells where to look"
    return RequestRefused(HTTPStatus.INTERNAL_SERVER_ERROR, message)


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RequestRefused)
    return refusal_answer(request, refusal)


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal_answer(request, invalid_parameter(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """Routes and methods that do not exist."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    shown = path if len(path) <= _MOST_SHOWN_CHARACTERS else f"{path[:_MOST_SHOWN_CHARACTERS]}…"
    refusal = RequestRefused(known_status(error.status_code), f"{error.detail}: {request.method} {shown}")
    answer = refusal_answer(request, refusal)
    if refusal.status is HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["Allow"] = ", ".join(_methods(request))
    return answer


def _methods(request: Request) -> list[str]:
    """Those that the path has (RFC 9110, 15.5.6); Starlette names only its first route's."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    there = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in there for method in route.methods or ()})


async def _ledger_away(request: Request, error: Exception) -> Response:
    _LOG.error("request %s: the ledger is away: %s", request.state.request_id, type(error).__name__)
    message = "the ledger is away; try again in a moment"
    refusal = RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after_s=_LEDGER_BACK_AFTER_S)
    return refusal_answer(request, refusal)
