"""What Ray Serve's HTTP proxy runs around every answer, so that a request has one id: the mesh's.

Ray Serve looks for `middlewares` by a name in its processes' environment (`mesh.ray_session`).
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = b"x-request-id"


def middlewares() -> list[Middleware]:
    """Outermost last, as Ray Serve wants them."""
    return [Middleware(OneRequestId)]


class OneRequestId:
    """Drops the id that Ray Serve appends to an answer that has the mesh's; a client would join the two with a comma.

    What the proxy answers by itself keeps Ray Serve's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application inside does, with the first of its ids."""

        async def send_with_one(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                first = next((each for each in headers if each[0].lower() == _REQUEST_ID), None)
                message["headers"] = [each for each in headers if each is first or each[0].lower() != _REQUEST_ID]
            await send(message)

        await self._app(scope, receive, send_with_one)
