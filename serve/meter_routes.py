"""What operators see of the host meters over HTTP."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from ray.actor import ActorHandle
from ray.exceptions import RayError

from metering.meter_report import MeterReport
from serve.authentication import Scope
from serve.errors import RequestRefused
from serve.openapi import documented

_LOG = logging.getLogger(__name__)
_METER_ANSWERS_WITHIN_S = 2.0


class MeterRoutes:
    """The route `/v1/meters`. ``account`` says whose key a request carries; ``meters`` finds the running meters."""

    def __init__(
        self,
        account: Callable[[Request], Awaitable[str]],
        meters: Callable[[], Sequence[ActorHandle[Any]]],
        operator_account: str,
    ) -> None:
        self._account = account
        self._meters = meters
        self._operator_account = operator_account

    def add_to(self, app: FastAPI) -> None:
        """Put the route on the application."""
        app.add_api_route("/v1/meters", self.meters, methods=["GET"], **documented(Scope.READ))

    async def meters(self, request: Request) -> dict[str, Any]:
        """Each host's book: totals by account, the identity, trueup, counters, replicas, incidents.

        A meter that doesn't answer within two seconds is missing from ``data`` and counted in ``unreachable``.
        """
        if await self._account(request) != self._operator_account:
            raise RequestRefused(
                HTTPStatus.FORBIDDEN, f"only keys of the account {self._operator_account!r} may read the meters"
            )
        handles = await asyncio.to_thread(self._meters)
        answers = await asyncio.gather(*(_report(handle) for handle in handles))
        reports = [answer.to_jsonable() for answer in answers if answer is not None]
        return {"object": "list", "data": reports, "unreachable": len(answers) - len(reports)}


async def _report(meter: ActorHandle[Any]) -> MeterReport | None:
    try:
        async with asyncio.timeout(_METER_ANSWERS_WITHIN_S):
            return cast("MeterReport", await meter.report.remote())
    except (RayError, TimeoutError) as away:
        _LOG.warning("a host meter does not answer: %s", type(away).__name__)
        return None
