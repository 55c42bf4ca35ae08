"""The ASGI application around all others: a request's id, the limit of its headers, and faults of ours."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.error_answers import fault_refusal, refusal_answer
from serve.errors import RequestRefused

MOST_HEADER_BYTES: Final = 32 * 1024
MOST_HEADERS: Final = 200
REQUEST_ID_HEADER: Final = "X-Request-Id"
"""Where OpenAI's client looks for it; Anthropic's looks for `Request-Id`."""
_REQUEST_ID_HEADERS: Final = (REQUEST_ID_HEADER, "Request-Id")


class Outermost:
    """Gives every request its id, and answers for faults of ours. Plain ASGI, so that streams pass untouched.

    No fault goes further out: what is there logs it with its text, and that could quote a prompt.
    """

    def __init__(self, app: ASGIApp, new_request_id: Callable[[], str]) -> None:
        self._app = app
        self._new_request_id = new_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = self._new_request_id()
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in _REQUEST_ID_HEADERS:
                    headers[name] = request_id
            await send(message)

        try:
            if (refusal := _too_many_headers(scope)) is not None:
                await refusal_answer(Request(scope), refusal)(scope, receive, watched_send)
                return
            await self._app(scope, receive, watched_send)
        except Exception as error:  # noqa: BLE001 - the boundary of a request
            refusal = fault_refusal(request_id, error)
            if not has_begun:
                await refusal_answer(Request(scope), refusal)(scope, receive, watched_send)


def _too_many_headers(scope: Scope) -> RequestRefused | None:
    """Beyond what any client of ours sends; the HTTP server before this has larger limits of its own."""
    headers = scope["headers"]
    length = sum(len(name) + len(value) for name, value in headers)
    if len(headers) <= MOST_HEADERS and length <= MOST_HEADER_BYTES:
        return None
    return RequestRefused(
        HTTPStatus.BAD_REQUEST,
        f"the request has {len(headers)} headers of {length} bytes; "
        f"there may be {MOST_HEADERS} of {MOST_HEADER_BYTES // 1024} kB together",
    )
