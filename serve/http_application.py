"""The HTTP application: every route of the mesh, and what is around all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from ray.actor import ActorHandle
from starlette.responses import Response
from starlette.types import Scope

from serve.account_routes import AccountRoutes
from serve.authentication import Authentication
from serve.door import Door
from serve.door_limits import DoorLimits, LimitedDoor
from serve.error_answers import answer_errors, refusal_answer
from serve.errors import RequestRefused
from serve.meter_routes import MeterRoutes
from serve.model_list import ModelListRoutes
from serve.model_routes import ModelRoutes
from serve.openapi import documented, serve_document
from serve.outermost import Outermost
from serve.payments.protocol import PaymentProvider
from serve.placement_routes import PlacementRoutes
from serve.receipt_routes import ReceiptRoutes
from serve.request_body import BodyLimits
from serve.request_pins import RequestPins

_TOO_BUSY_RETRY_AFTER_S: Final = 2
_API_VERSION: Final = "1"
_ABOUT: Final = (
    "Inference that is billed in joules: the APIs of OpenAI and Anthropic, with a signed receipt for each answer."
)


def build_app(
    door: Door,
    ledger: ActorHandle[Any],
    group_key: dict[str, Any],
    *,
    meters: Callable[[], Sequence[ActorHandle[Any]]],
    operator_account: str,
    pins: RequestPins,
    limits: DoorLimits,
    payments: PaymentProvider,
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> FastAPI:
    """The HTTP application.

    ``ledger`` is the ledger actor, ``group_key`` what `/v1/keys/group` answers; ``meters`` finds the hosts' meters,
    which only keys of the ``operator_account`` may read; ``payments`` moves money. Each of ``background`` runs as long
    as the application does.
    """
    # No redirects: `/v1/receipts/$ID` with an empty ID would list all receipts.
    app = FastAPI(
        title="Joule Mesh",
        description=_ABOUT,
        version=_API_VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_beside(background),
    )
    authentication, bodies = Authentication(ledger), BodyLimits(within_s=limits.body_s)
    reader = authentication.reader()
    ModelRoutes(authentication, door, pins, bodies).add_to(app)
    ModelListRoutes(authentication, door.planner).add_to(app)
    PlacementRoutes(reader, door, pins, bodies).add_to(app)
    AccountRoutes(
        authentication=authentication, ledger=ledger, provider=payments, operator_account=operator_account
    ).add_to(app)
    ReceiptRoutes(reader, ledger).add_to(app)
    MeterRoutes(reader, meters, operator_account).add_to(app)
    _PublicRoutes(group_key).add_to(app)
    serve_document(app)
    app.add_middleware(LimitedDoor, limits=limits, refuse=_too_busy)
    app.add_middleware(Outermost, new_request_id=door.new_request_id)
    answer_errors(app)
    return app


def _beside(
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The application's lifespan: from its start to its end each of ``background`` runs beside it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each()) for each in background]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return lifespan


class _PublicRoutes:
    """What needs no key."""

    def __init__(self, group_key: dict[str, Any]) -> None:
        self._group_key = group_key

    def add_to(self, app: FastAPI) -> None:
        app.add_api_route("/healthz", self.healthz, methods=["GET"], **documented(None))
        app.add_api_route("/v1/keys/group", self.group, methods=["GET"], **documented(None))

    async def healthz(self) -> dict[str, str]:
        """Whether the ingress answers."""
        return {"status": "ok"}

    async def group(self) -> dict[str, Any]:
        """The group public key that receipts verify under."""
        return self._group_key


def _too_busy(scope: Scope) -> Response:
    message = "as many requests are under way as this ingress takes; try again in a moment"
    refusal = RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after_s=_TOO_BUSY_RETRY_AFTER_S)
    return refusal_answer(Request(scope), refusal)
