"""OpenAI's error envelope: ``{"error": {"message", "type", "param", "code", "request_id"}}``."""

import json
from http import HTTPStatus
from typing import Any

_TYPES_AND_CODES = {
    HTTPStatus.BAD_REQUEST: ("invalid_request_error", "bad_request"),
    HTTPStatus.UNAUTHORIZED: ("authentication_error", "invalid_api_key"),
    HTTPStatus.PAYMENT_REQUIRED: ("insufficient_quota", "insufficient_balance"),
    HTTPStatus.FORBIDDEN: ("permission_error", "insufficient_scope"),
    HTTPStatus.NOT_FOUND: ("invalid_request_error", "not_found"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("invalid_request_error", "method_not_allowed"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("invalid_request_error", "payload_too_large"),
    HTTPStatus.UNPROCESSABLE_ENTITY: ("invalid_request_error", "unprocessable_entity"),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("api_error", "internal_error"),
    HTTPStatus.BAD_GATEWAY: ("api_error", "upstream_error"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("api_error", "service_unavailable"),
    HTTPStatus.GATEWAY_TIMEOUT: ("api_error", "timeout"),
}


def known_status(status: int) -> HTTPStatus:
    """The status the door answers with: statuses that OpenAI's clients know, others by their class."""
    try:
        known = HTTPStatus(status)
    except ValueError:
        known = HTTPStatus.INTERNAL_SERVER_ERROR
    if known in _TYPES_AND_CODES:
        return known
    return HTTPStatus.BAD_REQUEST if 400 <= known < 500 else HTTPStatus.INTERNAL_SERVER_ERROR


def envelope(status: HTTPStatus, message: str, param: str | None, request_id: str) -> dict[str, Any]:
    """The error object for a status of `known_status`."""
    kind, code = _TYPES_AND_CODES[status]
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}}


def stream_error(status: HTTPStatus, message: str, request_id: str) -> bytes:
    """The error as the last event of a stream that had already begun."""
    return b"data: " + json.dumps(envelope(status, message, None, request_id)).encode() + b"\n\n"
