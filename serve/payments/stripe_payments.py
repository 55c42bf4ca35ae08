"""Payments by Stripe: its checkout page, refunds to the source, charges to a saved card.

Stripe keeps the cards; neither they nor its secrets are logged or stored here. Of its events two are heeded:
``payment_intent.succeeded`` (whatever the way it was paid) and ``refund.failed``. Those of others' payments on the same
Stripe account are passed over, by the name of the mesh in the metadata.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NoReturn, TypeVar

import stripe
from stripe import RequestsClient

from serve.errors import PaymentRefused, PaymentUncertain, WebhookRefused
from serve.payments.money import CENT_PICOS
from serve.payments.protocol import Charge, Paid, RefundFailed, RefundWanted, WhereToPay

STRIPE: Final = "stripe"
_ANSWERS_WITHIN_S: Final = 20.0
_RETRIES: Final = 2
_MESH: Final = "joule_mesh"
_ACCOUNT: Final = "joule_mesh_account"
_REFUND: Final = "joule_mesh_refund"
_CHARGE: Final = "joule_mesh_charge"
_MOST_LISTED: Final = 100
_SUCCEEDED: Final = "succeeded"
_PROCESSING: Final = "processing"
_PAID: Final = "payment_intent.succeeded"
_REFUND_FAILED: Final = "refund.failed"
_BALANCE: Final = "Joule Mesh balance"

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeAccount:
    """Where Stripe's API is and with what secrets; ``mesh`` tells this mesh's payments from others' on that account.

    After its payment the customer's browser goes on to one of the two pages. ``api_url`` None is Stripe's own.
    """

    secret_key: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    success_url: str
    cancel_url: str
    mesh: str
    api_url: str | None = None


class StripePayments:
    """The provider ``stripe``; its calls run in threads, each ended after 20 seconds and two more tries."""

    name = STRIPE
    smallest_usd_picos = CENT_PICOS

    def __init__(self, account: StripeAccount, *, retries: int = _RETRIES) -> None:
        self._account = account
        self._api = stripe.StripeClient(
            account.secret_key,
            base_addresses={} if account.api_url is None else {"api": account.api_url},
            http_client=RequestsClient(timeout=_ANSWERS_WITHIN_S),
            max_network_retries=retries,
        ).v1

    async def start(self, account: str, usd_picos: int, *, save: bool) -> WhereToPay:
        """Open a Checkout Session (https://docs.stripe.com/api/checkout/sessions/create) for one payment."""
        price: Any = {
            "currency": "usd",
            "unit_amount": _cents(usd_picos),
            "product_data": {"name": f"{_BALANCE} of {account}"},
        }
        paid: Any = {"metadata": self._metadata(account), "description": _BALANCE}
        if save:
            paid["setup_future_usage"] = "off_session"
        session = await _asked(
            lambda: self._api.checkout.sessions.create(
                params={
                    "mode": "payment",
                    "line_items": [{"price_data": price, "quantity": 1}],
                    "payment_intent_data": paid,
                    "customer_creation": "always" if save else "if_required",
                    # Else the amount that arrives may be in another currency.
                    "adaptive_pricing": {"enabled": False},
                    "success_url": self._account.success_url,
                    "cancel_url": self._account.cancel_url,
                }
            )
        )
        return WhereToPay(pay_url=session.url, instructions=None)

    async def confirm(self, body: bytes, signature: str) -> Paid | RefundFailed | None:
        """As the protocol's; the signature is the header ``Stripe-Signature``, at most five minutes old."""
        try:
            event = stripe.Webhook.construct_event(body, signature, self._account.webhook_secret).to_dict()
        except (ValueError, stripe.SignatureVerificationError) as error:
            raise WebhookRefused("not signed by Stripe, or not within five minutes") from error
        if event.get("type") not in (_PAID, _REFUND_FAILED):
            return None
        about = event["data"]["object"]
        metadata = about.get("metadata") or {}
        if metadata.get(_MESH) != self._account.mesh or _ACCOUNT not in metadata:
            return None
        if event["type"] == _PAID:
            return _paid(about)
        return RefundFailed(account=metadata[_ACCOUNT], refund_id=metadata[_REFUND]) if _REFUND in metadata else None

    async def refund(self, wanted: RefundWanted) -> str:
        """Make a Refund (https://docs.stripe.com/api/refunds/create), unless one of that name is there.

        Stripe forgets an idempotency key after a day; the name in the metadata stays.
        """
        made = await _asked(
            lambda: self._api.refunds.list(params={"payment_intent": wanted.reference, "limit": _MOST_LISTED})
        )
        for refund in (each.to_dict() for each in made.data):
            if (refund.get("metadata") or {}).get(_REFUND) == wanted.refund_id:
                if refund["status"] in ("failed", "canceled"):
                    raise PaymentRefused("the payment provider could not send it back")
                return str(refund["id"])
        sent = await _asked(
            lambda: self._api.refunds.create(
                params={
                    "payment_intent": wanted.reference,
                    "amount": _cents(wanted.usd_picos),
                    "metadata": {**self._metadata(wanted.account), _REFUND: wanted.refund_id},
                },
                options={"idempotency_key": wanted.refund_id},
            )
        )
        return sent.id

    async def saved_means(self, reference: str) -> str | None:
        """The customer and the payment method of a PaymentIntent that was to be kept for later."""
        payment = await _asked(lambda: self._api.payment_intents.retrieve(reference))
        if payment.setup_future_usage != "off_session" or not payment.customer or not payment.payment_method:
            return None
        return f"{_id(payment.customer)} {_id(payment.payment_method)}"

    async def charge(self, wanted: Charge) -> Paid | None:
        """Take a PaymentIntent off-session (https://docs.stripe.com/payments/save-and-reuse), unless one of that name
        is paid or under way; one that its customer would have to confirm is refused.
        """
        customer, _, method = wanted.means.partition(" ")
        made = await _asked(
            lambda: self._api.payment_intents.list(params={"customer": customer, "limit": _MOST_LISTED})
        )
        for payment in (each.to_dict() for each in made.data):
            if (payment.get("metadata") or {}).get(_CHARGE) != wanted.charge_id:
                continue
            if payment["status"] == _SUCCEEDED:
                return _paid(payment)
            if payment["status"] == _PROCESSING:
                return None
        taken = await _asked(
            lambda: self._api.payment_intents.create(
                params={
                    "amount": _cents(wanted.usd_picos),
                    "currency": "usd",
                    "customer": customer,
                    "payment_method": method,
                    # Others may be under way for weeks.
                    "allowed_payment_method_types": ["card"],
                    "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
                    "off_session": True,
                    "confirm": True,
                    "error_on_requires_action": True,
                    "description": f"{_BALANCE}, recharged",
                    "metadata": {**self._metadata(wanted.account), _CHARGE: wanted.charge_id},
                },
                options={"idempotency_key": wanted.charge_id},
            )
        )
        return _paid(taken.to_dict()) if taken.status == _SUCCEEDED else None

    def _metadata(self, account: str) -> dict[str, str]:
        return {_MESH: self._account.mesh, _ACCOUNT: account}


def _paid(payment: Mapping[str, Any]) -> Paid:
    if payment["currency"] != "usd":
        raise WebhookRefused(f"payment {payment['id']} is not in USD: this mesh made none such")
    return Paid(
        account=payment["metadata"][_ACCOUNT],
        usd_picos=payment["amount_received"] * CENT_PICOS,
        reference=payment["id"],
    )


def _cents(usd_picos: int) -> int:
    cents, rest = divmod(usd_picos, CENT_PICOS)
    assert rest == 0, "Stripe takes whole cents"
    return cents


def _id(named: Any) -> str:  # noqa: ANN401 - a name, or what it names
    return named if isinstance(named, str) else str(named.id)


async def _asked(call: Callable[[], _Result]) -> _Result:
    """What Stripe answers; its errors as the protocol has them. They are logged by their kind, for their text may say
    more of a card than is ours to keep.
    """
    try:
        return await asyncio.to_thread(call)
    except stripe.StripeError as error:
        _refuse(error)


def _refuse(error: stripe.StripeError) -> NoReturn:
    kind = type(error).__name__
    _LOG.warning("Stripe: %s %s (request %s)", kind, error.code or "", error.request_id)
    # 409 is another call under way with the same idempotency key: its end isn't known.
    is_refusal = isinstance(error, (stripe.CardError, stripe.InvalidRequestError))
    if is_refusal and error.http_status != HTTPStatus.CONFLICT:
        code = f" ({error.code})" if error.code else ""
        raise PaymentRefused(f"the payment provider refused it{code}") from error
    raise PaymentUncertain(f"the payment provider does not answer as it should: {kind}") from error
