"""Errors as OpenAI's and Anthropic's clients expect them: the envelopes, and their types and codes by status.

OpenAI: ``{"error": {"message", "type", "param", "code", "request_id"}}``. Anthropic:
``{"type": "error", "error": {…, with Anthropic's "type"}, "request_id"}``.
"""

import json
from http import HTTPStatus
from typing import Any, Final

from serve.shapes import Shape

_TYPES_AND_CODES: Final = {
    HTTPStatus.BAD_REQUEST: ("invalid_request_error", "bad_request"),
    HTTPStatus.UNAUTHORIZED: ("authentication_error", "invalid_api_key"),
    HTTPStatus.PAYMENT_REQUIRED: ("insufficient_quota", "insufficient_balance"),
    HTTPStatus.FORBIDDEN: ("permission_error", "insufficient_scope"),
    HTTPStatus.NOT_FOUND: ("invalid_request_error", "not_found"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("invalid_request_error", "method_not_allowed"),
    HTTPStatus.REQUEST_TIMEOUT: ("invalid_request_error", "request_timeout"),
    HTTPStatus.CONFLICT: ("invalid_request_error", "conflict"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("invalid_request_error", "payload_too_large"),
    HTTPStatus.UNPROCESSABLE_ENTITY: ("invalid_request_error", "unprocessable_entity"),
    HTTPStatus.TOO_MANY_REQUESTS: ("insufficient_quota", "energy_budget_exceeded"),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("api_error", "internal_error"),
    HTTPStatus.BAD_GATEWAY: ("api_error", "upstream_error"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("api_error", "service_unavailable"),
    HTTPStatus.GATEWAY_TIMEOUT: ("api_error", "timeout"),
}
_ANTHROPICS_TYPES: Final = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "api_error",
    HTTPStatus.BAD_GATEWAY: "api_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


def known_status(status: int) -> HTTPStatus:
    """The status the door answers with: statuses that OpenAI's clients know, others by their class."""
    for known in _TYPES_AND_CODES:
        if known == status:
            return known
    return HTTPStatus.BAD_REQUEST if 400 <= status < 500 else HTTPStatus.INTERNAL_SERVER_ERROR


def envelope(
    shape: Shape | None,
    status: HTTPStatus,
    message: str,
    request_id: str,
    *,
    param: str | None = None,
    receipt_id: str | None = None,
) -> dict[str, Any]:
    """The error object for a status of `known_status`, as clients of the shape expect it; None is any other route."""
    kind, code = _TYPES_AND_CODES[status]
    error = {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}
    if receipt_id is not None:
        error["receipt_id"] = receipt_id
    if shape is not Shape.MESSAGES:
        return {"error": error}
    error["type"] = _ANTHROPICS_TYPES.get(status, "invalid_request_error")
    return {"type": "error", "error": error, "request_id": request_id}


def stream_error(shape: Shape, status: HTTPStatus, message: str, request_id: str) -> bytes:
    """The error as the last event of a stream that had already begun."""
    data = json.dumps(envelope(shape, status, message, request_id)).encode()
    head = b"event: error\n" if shape is Shape.MESSAGES else b""
    return head + b"data: " + data + b"\n\n"
