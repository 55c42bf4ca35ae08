"""The HTTP ingress: OpenAI's routes in front of the `Door`, receipts and the group key for everyone who asks."""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import ray.serve as ray_serve
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from receipts.errors import LedgerError
from serve.answer import energy_headers, unary_body, with_energy
from serve.composition import Composition
from serve.dispatch import ServeDispatch
from serve.door import Answer, Dispatch, Door
from serve.errors import RequestRefused
from serve.holds import Holds
from serve.loopback import keep_to_loopback
from serve.messages import Payload, Settled
from serve.meter_routes import MeterRoutes
from serve.model_request import ModelRequest, parse_chat, parse_json_object, read_body
from serve.openai_errors import envelope, known_status, stream_error
from serve.placement_routes import PlacementRoutes
from serve.pool_waker import PoolWaker
from serve.pool_watch import PoolWatch
from serve.ray_hold_ledger import RayHoldLedger
from serve.receipt_routes import ReceiptRoutes, invalid_parameter
from serve.request_pins import REGION_HEADER, RequestPins
from serve.serve_look import ServeLook

_LOG = logging.getLogger(__name__)
_TAG_MAX_CHARACTERS = 128
_WAIT_FOR_SIGNATURE_S = 2.0
_LEDGER_BACK_AFTER_S = 2
_BEARER = "bearer "


class Ingress:
    """A Serve deployment's class: builds the door and the HTTP application inside the replica."""

    def __init__(
        self,
        compose: Callable[[Dispatch, Holds], Composition],
        ledger: ActorHandle[Any],
        group_key: dict[str, Any],
        pools: dict[str, DeploymentHandle[Any]],
        meters: Callable[[], Sequence[ActorHandle[Any]]],
        operator_account: str,
    ) -> None:
        keep_to_loopback()
        made = compose(ServeDispatch(pools, meters), Holds(RayHoldLedger(ledger)))
        planner, app_name = made.door.planner, ray_serve.get_replica_context().app_name
        look = ServeLook(app_name, made.door.pools, made.selectors, made.nodes, meters=meters)
        watch = PoolWatch(planner, look, next_to_wake=planner.next_to_wake, wake=PoolWaker(planner, pools).wake)
        self._app = build_app(
            made.door,
            ledger,
            group_key,
            meters=meters,
            operator_account=operator_account,
            pins=made.pins,
            background=watch.run,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve's hook for an application made at the replica's start."""
        return self._app


def build_app(
    door: Door,
    ledger: ActorHandle[Any],
    group_key: dict[str, Any],
    *,
    meters: Callable[[], Sequence[ActorHandle[Any]]],
    operator_account: str,
    pins: RequestPins,
    background: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> FastAPI:
    """The HTTP application.

    ``ledger`` is the ledger actor, ``group_key`` what `/v1/keys/group` answers; ``meters`` finds the hosts' meters,
    which only keys of the ``operator_account`` may read. ``background`` runs as long as the application does.
    """
    # No redirects: `/v1/receipts/$ID` with an empty ID would list all receipts.
    app = FastAPI(
        title="Joule Mesh", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=_beside(background)
    )
    routes = _Routes(door, ledger, group_key, pins)
    PlacementRoutes(routes.account, door, pins).add_to(app)
    meter_routes = MeterRoutes(routes.account, meters, operator_account)
    app.add_api_route("/healthz", routes.healthz, methods=["GET"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/v1/chat/completions", routes.chat_completions, methods=["POST"], response_model=None)
    ReceiptRoutes(routes.account, ledger).add_to(app)
    app.add_api_route("/v1/receipts/{receipt_id}", routes.receipt, methods=["GET"], response_model=None)
    app.add_api_route("/v1/keys/group", routes.group, methods=["GET"])
    app.add_api_route("/v1/meters", meter_routes.meters, methods=["GET"])
    app.add_middleware(_Outermost, new_request_id=door.new_request_id)
    app.add_exception_handler(RequestRefused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RayActorError, _ledger_away)
    app.add_exception_handler(LedgerError, _ledger_away)
    return app


def _beside(
    background: Callable[[], Coroutine[Any, Any, None]] | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The application's lifespan: from its start to its end ``background`` runs beside it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if background is None:
            yield
            return
        task = asyncio.create_task(background())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return lifespan


class _Outermost:
    """Gives every request its id, and answers for faults of ours. Plain ASGI, so that streams pass untouched.

    No fault goes further out: what is there logs it with its text, and that could quote a prompt.
    """

    def __init__(self, app: ASGIApp, new_request_id: Callable[[], str]) -> None:
        self._app = app
        self._new_request_id = new_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = self._new_request_id()
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:  # noqa: BLE001 - the boundary of a request
            response = _unforeseen(Request(scope), error)
            if not has_begun:
                await response(scope, receive, send)


class _Routes:
    def __init__(self, door: Door, ledger: ActorHandle[Any], group_key: dict[str, Any], pins: RequestPins) -> None:
        self._door = door
        self._ledger = ledger
        self._group_key = group_key
        self._pins = pins

    async def healthz(self) -> dict[str, str]:
        """Whether the ingress answers."""
        return {"status": "ok"}

    async def group(self) -> dict[str, Any]:
        """The group public key that receipts verify under."""
        return self._group_key

    async def models(self, request: Request) -> dict[str, Any]:
        """The models that some pool serves, in OpenAI's list shape."""
        await self.account(request)
        created = int(time.time())
        listed = [
            {"id": model, "object": "model", "created": created, "owned_by": "joule-mesh"}
            for model in ("auto", *self._door.models)
        ]
        return {"object": "list", "data": listed}

    async def receipt(self, request: Request, receipt_id: str) -> Response:
        """One receipt of the caller's account, waiting briefly for its signature."""
        account = await self.account(request)
        stored = await self._ledger.receipt.remote(receipt_id, account, _WAIT_FOR_SIGNATURE_S)
        if stored is None:
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"this account has no receipt {receipt_id!r}", "receipt_id")
        return Response(stored.document_bytes(), media_type="application/json")

    async def chat_completions(self, request: Request) -> Response:
        """Answer one chat completion, streaming or unary, with its joules."""
        account = await self.account(request)
        tag = _customer_tag(request)
        pins = self._pins.of(account, request.headers.getlist(REGION_HEADER))
        body = await read_body(request.stream(), request.headers.get("content-length"))
        chat = parse_chat(parse_json_object(body), len(body))
        answer = await self._door.answer(request.state.request_id, account, tag, chat, pins)
        return _streamed(answer, chat) if chat.stream else await _unary(answer)

    async def account(self, request: Request) -> str:
        """Whose key it is; 401 without a known one."""
        header = request.headers.get("authorization", "")
        key = header[len(_BEARER) :].strip() if header.lower().startswith(_BEARER) else ""
        account = await self._ledger.account_of.remote(key) if key else None
        if account is None:
            raise RequestRefused(
                HTTPStatus.UNAUTHORIZED,
                "missing or unknown API key; send `Authorization: Bearer jc_LIVE_…`",
            )
        return str(account)


def _customer_tag(request: Request) -> str | None:
    tag = request.headers.get("x-customer-tag")
    if tag is not None and (not 1 <= len(tag) <= _TAG_MAX_CHARACTERS or not all(" " <= char <= "~" for char in tag)):
        raise RequestRefused(
            HTTPStatus.BAD_REQUEST,
            f"X-Customer-Tag must be 1 to {_TAG_MAX_CHARACTERS} visible ASCII characters",
        )
    return tag


def _answer_headers(answer: Answer) -> dict[str, str]:
    site = answer.pool.site
    return {
        "X-Receipt-Id": f"rcpt_{answer.request_id}",
        "X-Routed-To": f"{site.operator}/{site.region}/{answer.started.silicon}",
        "X-Tier": answer.tier.value,
        "X-Energy-Method": answer.started.energy_method or "unavailable",
    }


async def _unary(answer: Answer) -> Response:
    async with aclosing(answer.items) as items:
        payload = await anext(items)
        settled = await anext(items)
    assert isinstance(payload, Payload), "an answer without a body"
    assert isinstance(settled, Settled), "an answer without a receipt"
    headers = {**_answer_headers(answer), **energy_headers(settled.document)}
    return Response(unary_body(payload.data, settled.document), media_type="application/json", headers=headers)


def _streamed(answer: Answer, chat: ModelRequest) -> Response:
    return StreamingResponse(_events(answer, chat), media_type="text/event-stream", headers=_answer_headers(answer))


async def _events(answer: Answer, chat: ModelRequest) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer.items) as items:
        try:
            async for event in with_energy(items, include_usage=chat.include_usage):
                yield event
        except RequestRefused as refusal:
            yield stream_error(refusal.status, refusal.message, answer.request_id)


def _error(
    request: Request, status: HTTPStatus, message: str, param: str | None = None, retry_after_s: int | None = None
) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    body = envelope(status, message, param, request.state.request_id)
    return JSONResponse(body, status.value, headers=headers)


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RequestRefused)
    return _error(request, known_status(refusal.status), refusal.message, refusal.param, refusal.retry_after_s)


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, invalid_parameter(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """Routes and methods that do not exist."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"
    return _error(request, known_status(error.status_code), message)


async def _ledger_away(request: Request, error: Exception) -> Response:
    _LOG.error("request %s: the ledger is away: %s", request.state.request_id, type(error).__name__)
    message = "the ledger is away; try again in a moment"
    return _error(request, HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after_s=_LEDGER_BACK_AFTER_S)


def _unforeseen(request: Request, error: Exception) -> Response:
    """A fault of ours: logged by its type and place, since its text could quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    _LOG.error("request %s: %s at %s", request.state.request_id, type(error).__name__, where)
    return _error(request, HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the request id tells where to look")
