"""`GET /v1/models` and `/v1/models/{model}`: what can be asked for, in OpenAI's shape, with what it typically draws."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import FastAPI, Path, Request
from pydantic import BaseModel, Field

from serve.authentication import Authentication, Scope
from serve.errors import RequestRefused
from serve.model_request import AUTO_MODEL
from serve.openapi import documented
from serve.planner import ModelNow, Planner

_MICROJOULES: Final = 1e6
_NAME = Annotated[str, Path(max_length=256, description="As `id` in the list of models.")]


class TypicalJoules(BaseModel):
    """Learned by the ingress that answers, since it started, from about the last hundred receipts; null before."""

    per_request: float | None
    per_1000_output_tokens: float | None


class ListedModel(BaseModel):
    """A model. ``tier`` is the most demanding kind of request that it is for; ``auto`` has none of these."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time, in seconds, when this ingress began to serve it.")
    owned_by: Literal["joule-mesh"] = "joule-mesh"
    task: Literal["generate", "embed"] | None
    tier: Literal["L0", "L1", "L2", "L3"] | None
    features: list[str]
    context_tokens: int | None
    typical_joules: TypicalJoules


class ModelsList(BaseModel):
    """The models that some pool serves."""

    object: Literal["list"] = "list"
    data: list[ListedModel]


class ModelListRoutes:
    """The two routes; what they tell is what the planner of this ingress knows."""

    def __init__(
        self, authentication: Authentication, planner: Planner, wall_clock_s: Callable[[], float] = time.time
    ) -> None:
        self._authentication = authentication
        self._planner = planner
        self._began_unix_s = int(wall_clock_s())

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        app.add_api_route("/v1/models", self.models, methods=["GET"], **documented(Scope.READ))
        app.add_api_route(
            "/v1/models/{model:path}", self.model, methods=["GET"], **documented(Scope.READ, HTTPStatus.NOT_FOUND)
        )

    async def models(self, request: Request) -> ModelsList:
        """The models that can be asked for; `auto` lets the mesh choose."""
        await self._authentication.caller(request, Scope.READ)
        return ModelsList(data=[self._auto(), *map(self._listed, self._planner.models_now())])

    async def model(self, request: Request, model: _NAME) -> ListedModel:
        """One of them."""
        await self._authentication.caller(request, Scope.READ)
        if model == AUTO_MODEL:
            return self._auto()
        for each in self._planner.models_now():
            if each.model == model:
                return self._listed(each)
        raise RequestRefused(HTTPStatus.NOT_FOUND, f"there is no model {model!r}", "model")

    def _auto(self) -> ListedModel:
        return ListedModel(
            id=AUTO_MODEL,
            created=self._began_unix_s,
            task=None,
            tier=None,
            features=[],
            context_tokens=None,
            typical_joules=TypicalJoules(per_request=None, per_1000_output_tokens=None),
        )

    def _listed(self, now: ModelNow) -> ListedModel:
        return ListedModel(
            id=now.model,
            created=self._began_unix_s,
            task="embed" if "embed" in now.features else "generate",
            tier=now.capable_up_to.value,
            features=sorted(now.features),
            context_tokens=now.context_tokens,
            typical_joules=TypicalJoules(
                per_request=_joules(now.typical.microjoules_per_request),
                per_1000_output_tokens=_joules(now.typical.microjoules_per_1000_output_tokens),
            ),
        )


def _joules(microjoules: float | None) -> float | None:
    return None if microjoules is None else round(microjoules / _MICROJOULES, 6)
