"""Recharging by itself, over HTTP: below which balance, by how much, paid with what an earlier top-up saved."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from ray.actor import ActorHandle

from receipts.payments import Payment, Recharge
from serve.account_bodies import (
    Body,
    Picos,
    Shown,
    Usd,
    UsdWanted,
    body_of,
    ledgers_word,
    providers_word,
    read_body_as,
)
from serve.authentication import Authentication, Scope
from serve.errors import RequestRefused
from serve.openapi import documented
from serve.payments.money import picos_to_usd, usd_to_picos
from serve.payments.protocol import PaymentProvider

_PATH = "/v1/auto-recharge"
_MOST_LOOKED_AT = 20


class RechargeWanted(Body):
    """Below the threshold, so much is charged, as often as it takes."""

    threshold_usd: UsdWanted
    amount_usd: UsdWanted


class RechargeShown(Shown):
    """Whether the account recharges by itself, and how. With what it is paid is known to the provider alone."""

    object: Literal["auto-recharge"] = "auto-recharge"
    enabled: bool
    provider: str | None
    threshold_usd: Usd | None
    threshold_usd_picos: Picos | None
    amount_usd: Usd | None
    amount_usd_picos: Picos | None


class RechargeRoutes:
    """The routes of `/v1/auto-recharge`, for the caller's account alone."""

    def __init__(self, authentication: Authentication, ledger: ActorHandle[Any], provider: PaymentProvider) -> None:
        self._authentication = authentication
        self._ledger = ledger
        self._provider = provider

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        conflict, upstream = HTTPStatus.CONFLICT, HTTPStatus.BAD_GATEWAY
        app.add_api_route(_PATH, self.show, methods=["GET"], **documented(Scope.READ))
        app.add_api_route(
            _PATH,
            self.put,
            methods=["PUT"],
            **documented(Scope.BILLING_ADMIN, conflict, upstream, takes_body=True, extra=body_of(RechargeWanted)),
        )
        app.add_api_route(_PATH, self.remove, methods=["DELETE"], **documented(Scope.BILLING_ADMIN))

    async def show(self, request: Request) -> RechargeShown:
        """Whether the account recharges by itself."""
        caller = await self._authentication.caller(request, Scope.READ)
        return _shown(await self._ledger.recharge.remote(caller.account))

    async def put(self, request: Request) -> RechargeShown:
        """Recharge from now on, with what the newest top-up with `save_for_recharge` was paid with."""
        account = (await self._authentication.caller(request, Scope.BILLING_ADMIN)).account
        wanted = await read_body_as(request, RechargeWanted)
        amount_usd_picos, unit = usd_to_picos(wanted.amount_usd), self._provider.smallest_usd_picos
        if amount_usd_picos % unit:
            message = f"amount_usd: the provider takes multiples of {picos_to_usd(unit)} USD"
            raise RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, message, "amount_usd")
        recharge = Recharge(
            account=account,
            threshold_usd_picos=usd_to_picos(wanted.threshold_usd),
            amount_usd_picos=amount_usd_picos,
            provider=self._provider.name,
            customer_reference=await self._means(account),
        )
        with ledgers_word():
            await self._ledger.set_recharge.remote(account, recharge)
        return _shown(recharge)

    async def remove(self, request: Request) -> RechargeShown:
        """Recharge no more."""
        account = (await self._authentication.caller(request, Scope.BILLING_ADMIN)).account
        with ledgers_word():
            await self._ledger.set_recharge.remote(account, None)
        return _shown(None)

    async def _means(self, account: str) -> str:
        """Never what a client says: it could be another's."""
        payments: Sequence[Payment] = await self._ledger.payments.remote(account)
        of_provider = [each for each in payments if each.kind == "top-up" and each.provider == self._provider.name]
        with providers_word():
            for each in of_provider[:_MOST_LOOKED_AT]:
                if each.reference is not None and (means := await self._provider.saved_means(each.reference)):
                    return means
        raise RequestRefused(HTTPStatus.CONFLICT, "first pay a top-up that was begun with save_for_recharge: true")


def _shown(recharge: Recharge | None) -> RechargeShown:
    if recharge is None:
        return RechargeShown(
            enabled=False,
            provider=None,
            threshold_usd=None,
            threshold_usd_picos=None,
            amount_usd=None,
            amount_usd_picos=None,
        )
    return RechargeShown(
        enabled=True,
        provider=recharge.provider,
        threshold_usd=picos_to_usd(recharge.threshold_usd_picos),
        threshold_usd_picos=recharge.threshold_usd_picos,
        amount_usd=picos_to_usd(recharge.amount_usd_picos),
        amount_usd_picos=recharge.amount_usd_picos,
    )
