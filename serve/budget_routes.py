"""Energy budgets over HTTP: how many joules a key or a workload may draw in an hour, a day or a month."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from pydantic import Field
from ray.actor import ActorHandle

from receipts.budgets import Budget, BudgetKind, BudgetUse, BudgetWindow
from receipts.moments import rfc3339_to_seconds
from serve.account_bodies import MICROJOULES, Body, Rfc3339, Shown, body_of, joules, ledgers_word, read_body_as
from serve.authentication import Authentication, Scope
from serve.errors import RequestRefused
from serve.openapi import documented

_MOST_JOULES: Final = 10**12
_PATH: Final = "/v1/budgets/{kind}/{subject:path}"

Kind = Annotated[BudgetKind, InPath(description="What it is for.")]
Subject = Annotated[str, InPath(max_length=128, description="The key's id, or the workload's name.")]
Window = Annotated[BudgetWindow, Query(description="Of which window; each has a budget of its own.")]


class BudgetWanted(Body):
    """At most so many joules in each window of the UTC calendar."""

    joules: float = Field(ge=0, le=_MOST_JOULES)
    window: BudgetWindow


class BudgetShown(Shown):
    """A budget, and what was drawn of it in the present window. A request is let in while that is less: requests under
    way aren't counted, so a window may end over its budget by as much as those draw.
    """

    object: Literal["budget"] = "budget"
    kind: BudgetKind
    subject: str
    window: BudgetWindow
    joules: float
    used_joules: float
    window_ends_at: Rfc3339


class BudgetsShown(Shown):
    """An account's budgets."""

    object: Literal["list"] = "list"
    data: tuple[BudgetShown, ...]


class BudgetRoutes:
    """The routes under `/v1/budgets`, for the caller's account alone."""

    def __init__(self, authentication: Authentication, ledger: ActorHandle[Any]) -> None:
        self._authentication = authentication
        self._ledger = ledger

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        # A path with a line break in it is no route's: 404.
        reading, admin, none = Scope.READ, Scope.BILLING_ADMIN, HTTPStatus.NOT_FOUND
        app.add_api_route("/v1/budgets", self.budgets, methods=["GET"], **documented(reading))
        app.add_api_route(_PATH, self.budgets_of, methods=["GET"], **documented(reading, none))
        app.add_api_route(
            _PATH, self.put, methods=["PUT"], **documented(admin, none, takes_body=True, extra=body_of(BudgetWanted))
        )
        app.add_api_route(_PATH, self.remove, methods=["DELETE"], **documented(admin, none))

    async def budgets(self, request: Request) -> BudgetsShown:
        """All budgets of the account."""
        account = (await self._authentication.caller(request, Scope.READ)).account
        return _shown(await self._ledger.budgets.remote(account))

    async def budgets_of(self, request: Request, kind: Kind, subject: Subject) -> BudgetsShown:
        """Those of one key or workload, one a window at most; none, where it has none."""
        account = (await self._authentication.caller(request, Scope.READ)).account
        return await self._of(account, kind, subject)

    async def put(self, request: Request, kind: Kind, subject: Subject) -> BudgetsShown:
        """Set a budget, in place of the one that this window had; it holds from the next request on."""
        account = (await self._authentication.caller(request, Scope.BILLING_ADMIN)).account
        wanted = await read_body_as(request, BudgetWanted)
        budget = Budget(
            account=account,
            kind=kind,
            subject=subject,
            window=wanted.window,
            microjoules=round(wanted.joules * MICROJOULES),
        )
        with ledgers_word():
            await self._ledger.set_budget.remote(budget)
        return await self._of(account, kind, subject)

    async def remove(self, request: Request, kind: Kind, subject: Subject, window: Window) -> BudgetsShown:
        """Remove the budget of one window; gives those that are left."""
        account = (await self._authentication.caller(request, Scope.BILLING_ADMIN)).account
        with ledgers_word():
            was_there = await self._ledger.remove_budget.remote(account, kind, subject, window)
        if not was_there:
            raise RequestRefused(HTTPStatus.NOT_FOUND, f"it has no budget for the {window}", "window")
        return await self._of(account, kind, subject)

    async def _of(self, account: str, kind: str, subject: str) -> BudgetsShown:
        uses: Sequence[BudgetUse] = await self._ledger.budgets.remote(account)
        return _shown([use for use in uses if (use.budget.kind, use.budget.subject) == (kind, subject)])


def _shown(uses: Sequence[BudgetUse]) -> BudgetsShown:
    return BudgetsShown(
        data=tuple(
            BudgetShown(
                kind=use.budget.kind,
                subject=use.budget.subject,
                window=use.budget.window,
                joules=joules(use.budget.microjoules),
                used_joules=joules(use.used_microjoules),
                window_ends_at=rfc3339_to_seconds(use.window_ends_unix_ns),
            )
            for use in uses
        )
    )
