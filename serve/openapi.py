"""The mesh's own OpenAPI document, served at `/openapi.json`: how a route says what it may answer, and the whole."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field

from serve.authentication import Scope

_KEYS: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"x-api-key": []}]
_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer jc_LIVE_…`"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "`x-api-key: jc_LIVE_…`"},
}
_MEANINGS: Final = {
    HTTPStatus.BAD_REQUEST: "The request is malformed: a header, a parameter or the body's JSON.",
    HTTPStatus.UNAUTHORIZED: "No API key, or one that is unknown, revoked or expired.",
    HTTPStatus.PAYMENT_REQUIRED: "The balance doesn't cover the most that the request can cost.",
    HTTPStatus.FORBIDDEN: "The key lacks the scope, or its account may not.",
    HTTPStatus.NOT_FOUND: "There is no such thing, or it is another account's.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not come in time.",
    HTTPStatus.CONFLICT: "It was done before, or contradicts what was.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "A field of the body has a value that can't be, or no pool can serve the request.",
    HTTPStatus.TOO_MANY_REQUESTS: "An energy budget is used up; `Retry-After` says until when.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault of the mesh.",
    HTTPStatus.BAD_GATEWAY: "Every attempt failed.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not now; `Retry-After` says when to come again.",
    HTTPStatus.GATEWAY_TIMEOUT: "An attempt was silent for too long.",
}
_ALWAYS: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
_WITH_A_KEY: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_WITH_A_BODY: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
_FASTAPIS_OWN: Final = ("HTTPValidationError", "ValidationError")


class ErrorDetail(BaseModel):
    """What went wrong. ``param`` names the header, parameter or field; ``request_id`` finds it in the logs."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str
    receipt_id: str | None = Field(None, description="On 409 for a repeated Idempotency-Key: the first one's receipt.")


class ErrorEnvelope(BaseModel):
    """OpenAI's error envelope."""

    error: ErrorDetail


class MessagesErrorEnvelope(BaseModel):
    """Anthropic's error envelope, as `/v1/messages` answers."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str


def documented(
    scope: Scope | None,
    *errors: HTTPStatus,
    takes_body: bool = False,
    ok: Mapping[str, Any] | None = None,
    ok_status: HTTPStatus = HTTPStatus.OK,
    extra: Mapping[str, Any] | None = None,
    envelope: type[BaseModel] = ErrorEnvelope,
) -> dict[str, Any]:
    """Keyword arguments for `add_api_route`: which scope the route needs, and every status that it may answer.

    ``scope`` is None for a route without a key. ``errors`` are those beside what any route may answer: 400, 500, 503;
    401 and 403 with a key; 408, 413 and 422 with a body. ``ok`` describes the good answer where its type doesn't, as
    OpenAPI's response object; ``extra`` is merged into the operation.
    """
    statuses = {*_ALWAYS, *errors, *(_WITH_A_KEY if scope else ()), *(_WITH_A_BODY if takes_body else ())}
    responses: dict[int | str, dict[str, Any]] = {
        status.value: {"model": envelope, "description": _MEANINGS[status]} for status in sorted(statuses)
    }
    if ok is not None:
        responses[ok_status.value] = dict(ok)
    security: dict[str, Any] = {"security": _KEYS, "x-scope": scope.value} if scope else {"security": []}
    return {"responses": responses, "openapi_extra": {**security, **(extra or {})}}


def serve_document(app: FastAPI) -> None:
    """Have the application serve what its routes are documented to be, made when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend it


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document of all routes. FastAPI's own envelope for bad parameters is not in it: the mesh never sends that."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            if _FASTAPIS_OWN[0] in str(responses.get("422")):
                del responses["422"]
    components = document.setdefault("components", {})
    for name in _FASTAPIS_OWN:
        components.get("schemas", {}).pop(name, None)
    components["securitySchemes"] = _SCHEMES
    return document
