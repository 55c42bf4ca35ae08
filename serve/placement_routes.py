"""`POST /v1/explain` and `GET /v1/pools`: what the planner knows, for keys of the mesh."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request

from serve.authentication import Scope
from serve.chat_request import parse_chat
from serve.door import Door
from serve.explain import explanation_object, pool_object
from serve.model_schemas import asked_header, request_body
from serve.openapi import documented
from serve.request_body import BodyLimits, read_json_object
from serve.request_pins import REGION_HEADER, RequestPins
from serve.shapes import Shape


class PlacementRoutes:
    """``account`` says whose key a request has, or refuses it."""

    def __init__(
        self,
        account: Callable[[Request], Awaitable[str]],
        door: Door,
        pins: RequestPins,
        limits: BodyLimits,
    ) -> None:
        self._account = account
        self._door = door
        self._pins = pins
        self._limits = limits

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        region = {"parameters": [asked_header(REGION_HEADER)], "requestBody": request_body(Shape.CHAT)}
        app.add_api_route(
            "/v1/explain",
            self.explain,
            methods=["POST"],
            **documented(Scope.READ, HTTPStatus.NOT_FOUND, takes_body=True, extra=region),
        )
        app.add_api_route("/v1/pools", self.pools, methods=["GET"], **documented(Scope.READ))

    async def explain(self, request: Request) -> dict[str, Any]:
        """The plan of the chat completion in the body, under this account's pins and the same headers.

        It is a plan also where no pool is left: then there is no candidate, and each pool's reason.
        """
        account = await self._account(request)
        pins = self._pins.of(account, request.headers.getlist(REGION_HEADER))
        chat = parse_chat(*await read_json_object(request, self._limits))
        return explanation_object(self._door.explain(chat, pins), self._door.pools)

    async def pools(self, request: Request) -> dict[str, Any]:
        """Every pool as the ingress that answers sees it."""
        await self._account(request)
        return {"object": "list", "data": [pool_object(each) for each in self._door.planner.pools_now()]}
