"""What an account has left, and what it has used, over HTTP."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from ray.actor import ActorHandle

from receipts.moments import rfc3339_to_seconds
from receipts.usage import Usage, UsageBy, UsageRow
from serve.account_bodies import Picos, Rfc3339, Shown, Usd, joules, ledgers_word
from serve.authentication import Authentication, Scope
from serve.openapi import documented
from serve.payments.money import picos_to_usd
from serve.receipt_routes import moment, refuse_repeated

_MG_PICOGRAMS: Final = 10**9
_TIME: Final = "RFC 3339, or how long back from now: s, m, h, d or w, as in `30d`."


class UsageWanted(BaseModel):
    """The parameters of `/v1/usage`. One that is not known is refused."""

    model_config = ConfigDict(extra="forbid")

    by: UsageBy = Field("day", description="What the sums are over; days are those of UTC.")
    since: str = Field("30d", max_length=64, description=f"Requests that ended then or later. {_TIME}")
    until: str | None = Field(None, max_length=64, description=f"Requests that ended before. {_TIME}")


class BalanceShown(Shown):
    """What is left; a part of it is held for requests under way, and the rest is available."""

    object: Literal["balance"] = "balance"
    account: str
    balance_usd: Usd
    balance_usd_picos: Picos
    held_usd: Usd
    held_usd_picos: Picos
    available_usd: Usd
    available_usd_picos: Picos


class UsageSum(Shown):
    """Sums over receipts. Requests whose energy isn't known cost nothing; they are in `unmetered_requests` too."""

    group: str | None = Field(description="The day, model, key, tag, workload or region; null: the receipts name none.")
    requests: int
    unmetered_requests: int
    input_tokens: int
    output_tokens: int
    joules: float
    microjoules: int
    carbon_mg: float
    usd: Usd
    usd_picos: Picos


class UsageShown(Shown):
    """An account's usage; days in their order, other groups by what they drew. `total` is of all groups, also those
    beyond the first thousand, which `data` leaves out where `is_cut`.
    """

    object: Literal["usage"] = "usage"
    by: UsageBy
    workload: str | None = Field(description="The workload that this is the usage of; null: the whole account.")
    since: Rfc3339
    until: Rfc3339
    data: tuple[UsageSum, ...]
    total: UsageSum
    is_cut: bool


class UsageRoutes:
    """The routes `/v1/balance`, `/v1/usage` and `/v1/usage/workload/{name}`, for the caller's account alone."""

    def __init__(
        self,
        authentication: Authentication,
        ledger: ActorHandle[Any],
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._authentication = authentication
        self._ledger = ledger
        self._wall_clock_ns = wall_clock_ns

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        app.add_api_route("/v1/balance", self.balance, methods=["GET"], **documented(Scope.READ))
        app.add_api_route("/v1/usage", self.usage, methods=["GET"], **documented(Scope.READ))
        documents = documented(Scope.READ, HTTPStatus.NOT_FOUND)  # a path with a line break in it is no route's
        app.add_api_route("/v1/usage/workload/{name:path}", self.workload, methods=["GET"], **documents)

    async def balance(self, request: Request) -> BalanceShown:
        """The account's balance as of now."""
        account = (await self._authentication.caller(request, Scope.READ)).account
        left = await self._ledger.account_balance.remote(account)
        available = left.balance_usd_picos - left.held_usd_picos
        return BalanceShown(
            account=account,
            balance_usd=picos_to_usd(left.balance_usd_picos),
            balance_usd_picos=left.balance_usd_picos,
            held_usd=picos_to_usd(left.held_usd_picos),
            held_usd_picos=left.held_usd_picos,
            available_usd=picos_to_usd(available),
            available_usd_picos=available,
        )

    async def usage(self, request: Request, wanted: Annotated[UsageWanted, Query()]) -> UsageShown:
        """The account's requests, tokens, joules and dollars, summed up."""
        account = (await self._authentication.caller(request, Scope.READ)).account
        return await self._usage(request, account, wanted, None)

    async def workload(
        self,
        request: Request,
        wanted: Annotated[UsageWanted, Query()],
        name: Annotated[
            str, InPath(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$", description="As `X-Workload` said.")
        ],
    ) -> UsageShown:
        """The same of one workload: nothing, where no request named it."""
        account = (await self._authentication.caller(request, Scope.READ)).account
        return await self._usage(request, account, wanted, name)

    async def _usage(self, request: Request, account: str, wanted: UsageWanted, workload: str | None) -> UsageShown:
        refuse_repeated(request)
        now_ns = self._wall_clock_ns()
        since_ns = moment("since", wanted.since, now_ns)
        until_ns = now_ns if wanted.until is None else moment("until", wanted.until, now_ns)
        with ledgers_word():
            usage: Usage = await self._ledger.usage.remote(account, since_ns, until_ns, wanted.by, workload=workload)
        return UsageShown(
            by=wanted.by,
            workload=workload,
            since=rfc3339_to_seconds(since_ns),
            until=rfc3339_to_seconds(until_ns),
            data=tuple(map(_sum, usage.rows)),
            total=_sum(usage.total),
            is_cut=usage.is_cut,
        )


def _sum(row: UsageRow) -> UsageSum:
    return UsageSum(
        group=row.group,
        requests=row.requests,
        unmetered_requests=row.unmetered_requests,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        joules=joules(row.microjoules),
        microjoules=row.microjoules,
        carbon_mg=row.carbon_picograms / _MG_PICOGRAMS,
        usd=picos_to_usd(row.usd_picos),
        usd_picos=row.usd_picos,
    )
