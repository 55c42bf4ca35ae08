"""The Stripe adapter against its API as documented; a server on this machine plays the answers."""

import json
import logging
import time
from collections.abc import Iterator

import pytest
from account_desk import open_desk
from fake_stripe import ANSWERS, SECRET_KEY, WEBHOOK_SECRET, FakeStripe, recorded, running_fake_stripe, signed

from serve.errors import PaymentRefused, PaymentUncertain, WebhookRefused
from serve.payment_watch import PaymentWatch
from serve.payments.money import USD_PICOS
from serve.payments.protocol import Charge, Paid, RefundFailed, RefundWanted
from serve.payments.stripe_payments import StripeAccount, StripePayments

PAYMENT = "pi_3PqWzR2eZvKYlo2C1x9mB7Qa"
REFUND = "refund_000102030405060708090a0b0c0d0e0f"
MEANS = "cus_QhTgk2mVwXyZ01 pm_1PqWzP2eZvKYlo2CsAmPLe01"


@pytest.fixture
def api() -> Iterator[FakeStripe]:
    with running_fake_stripe() as fake:
        yield fake


@pytest.fixture
def payments(api: FakeStripe) -> StripePayments:
    return made(api.url)


def made(url: str) -> StripePayments:
    account = StripeAccount(
        secret_key=SECRET_KEY,
        webhook_secret=WEBHOOK_SECRET,
        success_url="https://example.com/thanks",
        cancel_url="https://example.com/cancel",
        mesh="local",
        api_url=url,
    )
    return StripePayments(account, retries=0)


async def test_a_top_up_is_a_checkout_of_the_amount_for_the_account(payments, api):
    where = await payments.start("acme", 25 * USD_PICOS, save=False)
    assert where.pay_url == recorded("checkout_session.json")["url"]
    (asked,) = api.asked
    assert asked.call == "POST /v1/checkout/sessions"
    assert asked.key == f"Bearer {SECRET_KEY}"
    form = asked.form
    assert form["line_items[0][price_data][unit_amount]"] == "2500"
    assert form["line_items[0][price_data][currency]"] == "usd"
    assert form["payment_intent_data[metadata][joule_mesh_account]"] == "acme"
    assert form["payment_intent_data[metadata][joule_mesh]"] == "local"
    assert form["success_url"] == "https://example.com/thanks"
    assert "payment_intent_data[setup_future_usage]" not in form


async def test_the_means_of_payment_is_kept_only_where_that_was_asked_for(payments, api):
    await payments.start("acme", USD_PICOS, save=True)
    assert api.asked[0].form["payment_intent_data[setup_future_usage]"] == "off_session"
    assert api.asked[0].form["customer_creation"] == "always"


def event(name: str) -> bytes:
    return (ANSWERS / name).read_bytes()


async def test_a_payment_that_succeeded_is_money_for_its_account(payments):
    body = event("payment_intent.succeeded.json")
    paid = await payments.confirm(body, signed(body))
    assert paid == Paid(account="acme", usd_picos=25 * USD_PICOS, reference=PAYMENT)


async def test_a_refund_that_failed_names_the_ledgers_refund(payments):
    body = event("refund.failed.json")
    assert await payments.confirm(body, signed(body)) == RefundFailed(account="acme", refund_id=REFUND)


@pytest.mark.parametrize(
    "name",
    [
        "payment_intent.succeeded-of-others.json",
        "payment_intent.payment_failed.json",
        "checkout.session.completed.json",
    ],
)
async def test_other_events_are_nothing_to_the_ledger(payments, name):
    body = event(name)
    assert await payments.confirm(body, signed(body)) is None


async def test_another_meshs_payments_on_the_same_stripe_account_are_passed_over(payments):
    other = recorded("payment_intent.succeeded.json")
    other["data"]["object"]["metadata"]["joule_mesh"] = "another"
    body = json.dumps(other).encode()
    assert await payments.confirm(body, signed(body)) is None


async def test_nothing_is_believed_that_stripe_has_not_signed_just_now(payments):
    body = event("payment_intent.succeeded.json")
    more = body.replace(b'"amount_received": 2500', b'"amount_received": 9900')
    assert more != body
    old = signed(body, at_s=int(time.time()) - 600)
    for claimed, signature in (
        (body, ""),
        (body, "t=1,v1=00"),
        (body, signed(body, secret="whsec_another")),
        (body, old),
        (more, signed(body)),
        (b"\xff", signed(b"ff")),
    ):
        with pytest.raises(WebhookRefused):
            await payments.confirm(claimed, signature)


async def test_money_in_another_currency_is_not_taken_for_dollars(payments):
    other = recorded("payment_intent.succeeded.json")
    other["data"]["object"]["currency"] = "jpy"
    body = json.dumps(other).encode()
    with pytest.raises(WebhookRefused, match="not in USD"):
        await payments.confirm(body, signed(body))


def refund(usd: int = 10) -> RefundWanted:
    return RefundWanted(account="acme", reference=PAYMENT, usd_picos=usd * USD_PICOS, refund_id=REFUND)


async def test_a_refund_goes_to_the_payments_source_once_for_each_name(payments, api):
    assert await payments.refund(refund()) == "re_1"
    asked = api.asked[-1]
    assert asked.call == "POST /v1/refunds"
    assert asked.idempotency_key == REFUND
    assert asked.form["payment_intent"] == PAYMENT
    assert asked.form["amount"] == "1000"
    # A failure that comes weeks later finds the way to the refund by these.
    assert asked.form["metadata[joule_mesh_refund]"] == REFUND
    assert asked.form["metadata[joule_mesh]"] == "local"
    assert asked.form["metadata[joule_mesh_account]"] == "acme"
    api.told.clear()  # as Stripe does with idempotency keys after a day
    assert await payments.refund(refund()) == "re_1"
    assert len(api.refunds) == 1


async def test_a_refund_that_failed_meanwhile_is_not_taken_for_sent(payments, api):
    await payments.refund(refund())
    api.refunds[0]["status"] = "failed"
    with pytest.raises(PaymentRefused):
        await payments.refund(refund())


async def test_what_stripe_refuses_was_not_moved_and_its_words_stay_there(payments, api, caplog):
    api.fails_with, api.status = "charge_already_refunded.json", 400
    with pytest.raises(PaymentRefused, match="charge_already_refunded"):
        await payments.refund(refund())
    with caplog.at_level(logging.DEBUG):
        api.fails_with, api.status = "card_declined.json", 402
        with pytest.raises(PaymentRefused, match="card_declined"):
            await payments.charge(charge())
    assert SECRET_KEY not in caplog.text


async def test_a_fault_of_stripes_leaves_it_open_whether_it_was_done(payments, api):
    api.status = 500
    with pytest.raises(PaymentUncertain):
        await payments.refund(refund())
    with pytest.raises(PaymentUncertain):
        await made("http://127.0.0.1:1").start("acme", USD_PICOS, save=False)


async def test_another_call_under_way_with_the_same_key_is_no_refusal(payments, api):
    """Its refund may be made: were it taken for refused, the money would be back twice."""
    api.fails_with, api.status = "idempotency_key_in_use.json", 409
    with pytest.raises(PaymentUncertain):
        await payments.refund(refund())


def charge(name: str = "recharge-1") -> Charge:
    return Charge(account="acme", usd_picos=50 * USD_PICOS, means=MEANS, charge_id=name)


async def test_a_charge_is_paid_once_for_each_name_without_its_customer(payments, api):
    first = await payments.charge(charge())
    assert first == Paid(account="acme", usd_picos=50 * USD_PICOS, reference="pi_charge_1")
    form = api.asked[-1].form
    assert (form["customer"], form["payment_method"]) == tuple(MEANS.split(" "))
    assert form["off_session"] == "true"
    assert form["confirm"] == "true"
    assert form["error_on_requires_action"] == "true"
    assert await payments.charge(charge()) == first
    api.told.clear()
    assert await payments.charge(charge()) == first
    assert await payments.charge(charge("recharge-2")) != first
    assert len(api.charges) == 2


async def test_a_charge_that_is_under_way_is_not_made_again(payments, api):
    await payments.charge(charge())
    api.told.clear()
    api.charges[0] |= {"status": "processing", "amount_received": 0}
    assert await payments.charge(charge()) is None
    assert len(api.charges) == 1


async def test_what_a_payment_saved_is_found_by_its_reference(payments):
    assert await payments.saved_means(PAYMENT) == MEANS


def test_the_secrets_are_in_no_text_of_the_settings():
    account = StripeAccount(
        secret_key=SECRET_KEY, webhook_secret=WEBHOOK_SECRET, success_url="", cancel_url="", mesh="local"
    )
    assert "nobody" not in repr(account)


async def test_the_whole_way_of_money_over_the_routes(tmp_path, payments, api):
    """A top-up that is paid, sent back in part, that part returned; then recharged; each event told twice."""
    with open_desk(tmp_path, payments) as desk:
        begun = await desk.ask("POST", "/v1/top-ups", {"usd": "25.00", "save_for_recharge": True})
        assert begun.json()["pay_url"] == recorded("checkout_session.json")["url"]

        async def told(name: str, **changed: object) -> None:
            said = recorded(name)
            said["data"]["object"] |= changed
            body = json.dumps(said).encode()
            for _ in range(2):
                headers = {"Stripe-Signature": signed(body)}
                answer = await desk.ask("POST", "/v1/webhooks/stripe", content=body, headers=headers)
                assert answer.status_code == 200, answer.text

        await told("payment_intent.succeeded.json")
        assert desk.ledger.balance_usd_picos("acme") == 30 * USD_PICOS
        (top_up,) = desk.ledger.payments("acme")
        refund = (await desk.ask("POST", f"/v1/top-ups/{top_up.payment_id}/refund", {"usd": "10.00"})).json()
        assert (refund["status"], refund["reference"]) == ("done", "re_1")
        assert desk.ledger.balance_usd_picos("acme") == 20 * USD_PICOS
        await told("refund.failed.json", metadata=api.refunds[0]["metadata"])
        assert desk.ledger.balance_usd_picos("acme") == 30 * USD_PICOS

        wanted = {"threshold_usd": "40.00", "amount_usd": "15.00"}
        assert (await desk.ask("PUT", "/v1/auto-recharge", wanted)).status_code == 200
        watch = PaymentWatch(desk.handle, payments, every_s=1.0, clock=time.monotonic, wall_clock_ns=time.time_ns)
        await watch.look_once()
        await watch.look_once()
        await told("payment_intent.succeeded.json", **api.charges[0])
        assert desk.ledger.balance_usd_picos("acme") == 45 * USD_PICOS
        assert [each["amount"] for each in api.charges] == [1500]
