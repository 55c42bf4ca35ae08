"""One id per answer, whatever the proxy adds."""

import pytest
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse

from serve.proxy_callback import OneRequestId, middlewares


class _Adds:
    """As Ray Serve's own middleware does, which stands inside."""

    def __init__(self, app) -> None:
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        async def adding(message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("X-Request-ID", "the proxy's")
            await send(message)

        await self._app(scope, receive, adding)


async def _headers(own: dict[str, str]) -> list[tuple[bytes, bytes]]:
    sent = []

    async def send(message) -> None:
        sent.append(message)

    app = OneRequestId(_Adds(PlainTextResponse("answer", headers=own)))
    await app({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send)
    start, body = sent
    assert body["body"] == b"answer"
    return start["headers"]


@pytest.mark.parametrize(("own", "kept"), [({"X-Request-Id": "ours"}, b"ours"), ({}, b"the proxy's")])
async def test_of_two_ids_the_meshs_is_kept_and_one_is_left_alone(own, kept):
    headers = await _headers({**own, "X-Other": "stays"})
    assert [value for name, value in headers if name.lower() == b"x-request-id"] == [kept]
    assert (b"x-other", b"stays") in headers


def test_ray_serve_is_given_nothing_else():
    (middleware,) = middlewares()
    assert middleware.cls is OneRequestId
