"""Money over HTTP: top-ups, refunds of them, credits, and the payment provider's webhook."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi import Path as InPath
from pydantic import Field
from ray.actor import ActorHandle

from receipts.moments import rfc3339_to_seconds
from receipts.payments import Payment, PaymentKind
from serve.account_bodies import (
    Body,
    Picos,
    Rfc3339,
    Shown,
    Usd,
    UsdWanted,
    body_of,
    ledgers_word,
    providers_word,
    read_body_as,
)
from serve.authentication import Authentication, Caller, Scope
from serve.errors import PaymentRefused, RequestRefused, WebhookRefused
from serve.openapi import documented
from serve.payments.manual import MANUAL
from serve.payments.money import picos_to_usd, usd_to_picos
from serve.payments.protocol import Paid, PaymentProvider, RefundFailed, RefundWanted
from serve.request_body import BodyLimits, read_body

_SIGNATURE: Final = "Stripe-Signature"
_WEBHOOK_LIMITS: Final = BodyLimits(most_bytes=512 * 1024, within_s=20.0)
_WEBHOOK_BODY: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
_LOG = logging.getLogger(__name__)

PaymentId = Annotated[str, InPath(max_length=64, description="As `id` in the list of top-ups.")]
Line = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


class TopUpWanted(Body):
    """Money for the caller's account, paid at the provider; or, from the operator's account alone, a transfer that
    has arrived for an `account`, with the `reference` that tells it from every other.
    """

    usd: UsdWanted
    save_for_recharge: bool = Field(default=False, description="Keep the means of payment, for `/v1/auto-recharge`.")
    account: Line | None = None
    reference: Line | None = None


class RefundOf(Body):
    """How much to send back; null: as much as can be. A transfer is sent back by the operator, who says from which
    `account`, and the `reference` of the transfer back: entered again, nothing happens.
    """

    usd: UsdWanted | None = None
    account: Line | None = None
    reference: Line | None = None


class CreditWanted(Body):
    """A credit: it is never paid out. The same `reference` again is the same credit."""

    account: Line
    usd: UsdWanted
    kind: Literal["sla", "goodwill"]
    reason: Line
    reference: Line


class PaymentShown(Shown):
    """Money that came in or went back, or a credit."""

    object: Literal["payment"] = "payment"
    id: str
    kind: PaymentKind
    status: Literal["done", "under way", "cancelled"] = Field(description="Only a refund is ever under way.")
    usd: Usd
    usd_picos: Picos
    refunded_usd: Usd
    refunded_usd_picos: Picos
    provider: str | None
    reference: str | None
    refunds: str | None = Field(description="The top-up that a refund is of.")
    reason: str | None
    created_at: Rfc3339


class PaymentsShown(Shown):
    """An account's payments, the newest first."""

    object: Literal["list"] = "list"
    data: tuple[PaymentShown, ...]


class TopUpShown(Shown):
    """Where to pay a top-up that was begun (the balance grows when the money has arrived), or one that was entered."""

    object: Literal["top-up"] = "top-up"
    usd: Usd
    usd_picos: Picos
    pay_url: str | None
    instructions: str | None
    payment: PaymentShown | None


class Received(Shown):
    """The webhook's event was taken."""

    received: Literal[True] = True


class PaymentRoutes:
    """The routes `/v1/top-ups`, `/v1/credits` and `/v1/webhooks/stripe`.

    Keys of the ``operator_account`` with `billing-admin` enter transfers, and credits; everybody else's see and move
    their own account's money alone.
    """

    def __init__(
        self,
        authentication: Authentication,
        ledger: ActorHandle[Any],
        provider: PaymentProvider,
        operator_account: str,
    ) -> None:
        self._authentication = authentication
        self._ledger = ledger
        self._provider = provider
        self._operator_account = operator_account

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        admin, none, upstream = Scope.BILLING_ADMIN, HTTPStatus.NOT_FOUND, HTTPStatus.BAD_GATEWAY
        created = HTTPStatus.CREATED
        app.add_api_route("/v1/top-ups", self.payments, methods=["GET"], **documented(Scope.READ))
        app.add_api_route(
            "/v1/top-ups",
            self.top_up,
            methods=["POST"],
            status_code=created,
            **documented(admin, upstream, takes_body=True, extra=body_of(TopUpWanted)),
        )
        app.add_api_route(
            "/v1/top-ups/{payment_id}/refund",
            self.refund,
            methods=["POST"],
            status_code=created,
            **documented(admin, none, HTTPStatus.CONFLICT, upstream, takes_body=True, extra=body_of(RefundOf)),
        )
        app.add_api_route(
            "/v1/credits",
            self.credit,
            methods=["POST"],
            status_code=created,
            **documented(admin, takes_body=True, extra=body_of(CreditWanted)),
        )
        app.add_api_route(
            "/v1/webhooks/stripe",
            self.webhook,
            methods=["POST"],
            **documented(None, takes_body=True, extra=_WEBHOOK_BODY),
        )

    async def payments(self, request: Request) -> PaymentsShown:
        """The account's top-ups, refunds and credits."""
        caller = await self._authentication.caller(request, Scope.READ)
        found: Sequence[Payment] = await self._ledger.payments.remote(caller.account)
        return PaymentsShown(data=tuple(map(payment_shown, found)))

    async def top_up(self, request: Request) -> TopUpShown:
        """Begin a top-up, and say where to pay it; or enter a transfer."""
        caller = await self._authentication.caller(request, Scope.BILLING_ADMIN)
        wanted = await read_body_as(request, TopUpWanted)
        usd_picos = usd_to_picos(wanted.usd)
        payment = pay_url = instructions = None
        if wanted.account is not None or wanted.reference is not None:
            payment = payment_shown(await self._enter(caller, wanted, usd_picos))
        else:
            self._check_unit(usd_picos)
            with providers_word():
                where = await self._provider.start(caller.account, usd_picos, save=wanted.save_for_recharge)
            pay_url, instructions = where.pay_url, where.instructions
        return TopUpShown(
            usd=picos_to_usd(usd_picos),
            usd_picos=usd_picos,
            pay_url=pay_url,
            instructions=instructions,
            payment=payment,
        )

    async def refund(self, request: Request, payment_id: PaymentId) -> PaymentShown:
        """Send a top-up, or a part of it, back to where it came from: at most what is left of it and of the balance.

        With 502 the provider's word is not known yet; the mesh asks again by itself, and `/v1/top-ups` shows the end.
        Until then no other refund of this top-up begins.
        """
        caller = await self._authentication.caller(request, Scope.BILLING_ADMIN)
        wanted = await read_body_as(request, RefundOf)
        account = self._account_meant(caller, wanted.account)
        payments: Sequence[Payment] = await self._ledger.payments.remote(account)
        payment = _top_up(payments, payment_id)
        if payment.provider == MANUAL:
            self._check_operator(caller, "sends transfers back")
            if wanted.reference is None:
                raise _wrong("reference", "names the transfer back")
            if (entered := _entered_before(payments, payment_id, wanted)) is not None:
                return payment_shown(entered)
        elif payment.provider != self._provider.name:
            raise _conflict(f"it was paid by {payment.provider}, which this mesh does not use now")
        elif wanted.reference is not None:
            raise _wrong("reference", "is for transfers")
        usd_picos = await self._refund_amount(account, payment, wanted.usd)
        with ledgers_word():
            refund: Payment = await self._ledger.begin_refund.remote(account, payment_id, usd_picos, wanted.reference)
        if wanted.reference is not None:
            return payment_shown(refund)
        reference = await self._sent(payment, refund)
        with ledgers_word():
            return payment_shown(await self._ledger.finish_refund.remote(refund.payment_id, reference))

    async def credit(self, request: Request) -> PaymentShown:
        """Give an account credit. For the operator's account."""
        caller = await self._authentication.caller(request, Scope.BILLING_ADMIN)
        self._check_operator(caller, "gives credits")
        wanted = await read_body_as(request, CreditWanted)
        with ledgers_word():
            entered: Payment = await self._ledger.credit.remote(
                wanted.account, usd_to_picos(wanted.usd), wanted.kind, wanted.reason, wanted.reference
            )
        return payment_shown(entered)

    async def webhook(self, request: Request) -> Received:
        """What the payment provider says of payments; believed only with its signature."""
        body = await read_body(request.stream(), request.headers.get("content-length"), _WEBHOOK_LIMITS)
        try:
            told = await self._provider.confirm(body, request.headers.get(_SIGNATURE, ""))
        except WebhookRefused as refusal:
            _LOG.warning("a webhook was refused: %s", refusal)
            raise RequestRefused(HTTPStatus.BAD_REQUEST, str(refusal), _SIGNATURE) from refusal
        with ledgers_word():
            if isinstance(told, Paid):
                await enter(self._ledger, self._provider.name, told)
            elif isinstance(told, RefundFailed):
                await self._ledger.cancel_refund.remote(told.refund_id, "the provider could not send it back")
        return Received()

    async def _enter(self, caller: Caller, wanted: TopUpWanted, usd_picos: int) -> Payment:
        self._check_operator(caller, "enters transfers")
        if wanted.account is None or wanted.reference is None:
            raise _wrong("reference" if wanted.reference is None else "account", "a transfer has both")
        if wanted.save_for_recharge:
            raise _wrong("save_for_recharge", "a transfer can't be repeated")
        with ledgers_word():
            entered: Payment = await self._ledger.top_up.remote(wanted.account, usd_picos, MANUAL, wanted.reference)
        return entered

    async def _refund_amount(self, account: str, payment: Payment, usd: str | None) -> int:
        unit = 1 if payment.provider == MANUAL else self._provider.smallest_usd_picos
        if usd is not None:
            usd_picos = usd_to_picos(usd)
            if usd_picos % unit:
                raise _wrong("usd", f"the provider moves multiples of {picos_to_usd(unit)} USD")
            return usd_picos
        left: int = await self._ledger.refundable_usd_picos.remote(account, payment.payment_id)
        if left < unit:
            raise _conflict("nothing of it can be sent back: it is used up, refunded, or held for requests under way")
        return left - left % unit

    async def _sent(self, payment: Payment, refund: Payment) -> str:
        with providers_word(HTTPStatus.CONFLICT):
            return await send_back(self._ledger, self._provider, payment, refund)

    def _account_meant(self, caller: Caller, named: str | None) -> str:
        if named is None or named == caller.account:
            return caller.account
        self._check_operator(caller, "refunds other accounts")
        return named

    def _check_operator(self, caller: Caller, what: str) -> None:
        if caller.account != self._operator_account:
            raise RequestRefused(
                HTTPStatus.FORBIDDEN, f"only the operator's account, {self._operator_account!r}, {what}"
            )

    def _check_unit(self, usd_picos: int) -> None:
        unit = self._provider.smallest_usd_picos
        if usd_picos % unit:
            raise _wrong("usd", f"the provider takes multiples of {picos_to_usd(unit)} USD")


async def enter(ledger: ActorHandle[Any], provider: str, paid: Paid) -> None:
    """Enter money that arrived; told again, nothing happens."""
    await ledger.top_up.remote(paid.account, paid.usd_picos, provider, paid.reference)


async def send_back(ledger: ActorHandle[Any], provider: PaymentProvider, payment: Payment, refund: Payment) -> str:
    """Have the provider send a refund that was begun, and give its name for it; cancelled in the books if it refuses.

    Raises:
        PaymentRefused: nothing was moved, and the balance is as it was.
        PaymentUncertain: it isn't known; it may be called again.
    """
    assert payment.reference is not None, "a top-up has a reference"
    wanted = RefundWanted(
        account=payment.account,
        reference=payment.reference,
        usd_picos=refund.usd_picos,
        refund_id=refund.payment_id,
    )
    try:
        return await provider.refund(wanted)
    except PaymentRefused as refusal:
        await ledger.cancel_refund.remote(refund.payment_id, str(refusal))
        raise


def _top_up(found: Sequence[Payment], payment_id: str) -> Payment:
    payment = next((each for each in found if each.payment_id == payment_id and each.kind == "top-up"), None)
    if payment is None:
        raise RequestRefused(HTTPStatus.NOT_FOUND, f"the account has no top-up {payment_id[:64]!r}", "payment_id")
    return payment


def _entered_before(found: Sequence[Payment], payment_id: str, wanted: RefundOf) -> Payment | None:
    """The transfer back that this is again, if it is."""
    usd_picos = None if wanted.usd is None else usd_to_picos(wanted.usd)
    return next(
        (
            each
            for each in found
            if (each.refunds, each.reference) == (payment_id, wanted.reference) and usd_picos in (None, each.usd_picos)
        ),
        None,
    )


def payment_shown(payment: Payment) -> PaymentShown:
    """As the routes answer it."""
    is_under_way = payment.kind == "refund" and payment.reference is None
    return PaymentShown(
        id=payment.payment_id,
        kind=payment.kind,
        status="cancelled" if payment.is_cancelled else "under way" if is_under_way else "done",
        usd=picos_to_usd(payment.usd_picos),
        usd_picos=payment.usd_picos,
        refunded_usd=picos_to_usd(payment.refunded_usd_picos),
        refunded_usd_picos=payment.refunded_usd_picos,
        provider=payment.provider,
        reference=payment.reference,
        refunds=payment.refunds,
        reason=payment.reason,
        created_at=rfc3339_to_seconds(payment.created_unix_ns),
    )


def _wrong(member: str, message: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.UNPROCESSABLE_ENTITY, f"{member}: {message}", member)


def _conflict(message: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.CONFLICT, message)
