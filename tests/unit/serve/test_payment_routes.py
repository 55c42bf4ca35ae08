"""Top-ups, refunds, credits and webhooks over HTTP, on a real ledger."""

from collections.abc import Iterator

import pytest
from account_desk import OPERATOR, REFUSES, SIGNED, SILENT, Desk, FakeProvider, open_desk

from receipts.ledger import OPENING_CREDIT_USD_PICOS
from serve.payments.manual import ManualPayments
from serve.payments.money import USD_PICOS
from serve.payments.protocol import Paid, RefundFailed

TRANSFER = {"usd": "25.00", "account": "acme", "reference": "SEPA 2026-11-21 0815"}


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


def balance(desk: Desk, account: str = "acme") -> int:
    return desk.ledger.balance_usd_picos(account) - OPENING_CREDIT_USD_PICOS


async def paid(desk: Desk, usd: int, reference: str = "pi_1", account: str = "acme") -> str:
    """What Stripe says of a payment; gives the ledger's name for it."""
    desk.provider.told = Paid(account=account, usd_picos=usd * USD_PICOS, reference=reference)
    answer = await webhook(desk)
    assert answer.status_code == 200, answer.text
    return desk.ledger.payments(account)[0].payment_id


async def webhook(desk: Desk, signature: bytes = SIGNED):
    return await desk.ask(
        "POST", "/v1/webhooks/stripe", content=b"{}", headers={"Stripe-Signature": signature.decode()}
    )


async def test_a_top_up_says_where_to_pay_and_changes_nothing_until_it_is_paid(desk):
    answer = await desk.ask("POST", "/v1/top-ups", {"usd": "25.00", "save_for_recharge": True})
    assert answer.status_code == 201
    assert answer.json() == {
        "object": "top-up",
        "usd": "25.00",
        "usd_picos": 25 * USD_PICOS,
        "pay_url": f"https://pay.example/acme/{25 * USD_PICOS}/True",
        "instructions": None,
        "payment": None,
    }
    assert balance(desk) == 0


async def test_a_payment_is_entered_once_however_often_the_provider_says_so(desk):
    await paid(desk, 25)
    await paid(desk, 25)
    assert balance(desk) == 25 * USD_PICOS
    (shown,) = (await desk.ask("GET", "/v1/top-ups")).json()["data"]
    assert (shown["kind"], shown["usd"], shown["provider"], shown["status"]) == ("top-up", "25.00", "stripe", "done")


async def test_a_webhook_without_the_providers_signature_enters_nothing(desk):
    desk.provider.told = Paid(account="acme", usd_picos=USD_PICOS, reference="pi_1")
    answer = await webhook(desk, signature=b"forged")
    assert (answer.status_code, answer.json()["param"]) == (400, "Stripe-Signature")
    assert balance(desk) == 0


async def test_an_event_that_is_nothing_to_the_ledger_is_taken(desk):
    assert (await webhook(desk)).json() == {"received": True}


async def test_a_payment_for_an_account_that_is_not_there_is_not_swallowed(desk):
    desk.provider.told = Paid(account="nobody", usd_picos=USD_PICOS, reference="pi_1")
    assert (await webhook(desk)).status_code == 422


async def test_a_refund_goes_back_in_part_and_then_the_rest(desk):
    payment = await paid(desk, 25)
    part = await desk.ask("POST", f"/v1/top-ups/{payment}/refund", {"usd": "10.00"})
    assert part.status_code == 201
    assert (part.json()["usd"], part.json()["refunds"], part.json()["status"]) == ("10.00", payment, "done")
    rest = await desk.ask("POST", f"/v1/top-ups/{payment}/refund")
    assert rest.json()["usd"] == "15.00"
    assert balance(desk) == 0
    assert [each.usd_picos for each in desk.provider.refunds.values()] == [10 * USD_PICOS, 15 * USD_PICOS]
    again = await desk.ask("POST", f"/v1/top-ups/{payment}/refund")
    assert again.status_code == 409
    more = await desk.ask("POST", f"/v1/top-ups/{payment}/refund", {"usd": "1.00"})
    assert more.status_code == 422
    assert balance(desk) == 0


async def test_a_refund_that_the_provider_refuses_is_the_balances_again(desk):
    payment = await paid(desk, 25)
    desk.provider.fails = REFUSES
    answer = await desk.ask("POST", f"/v1/top-ups/{payment}/refund")
    assert (answer.status_code, answer.json()["message"]) == (409, "the card was declined")
    assert balance(desk) == 25 * USD_PICOS
    assert (await desk.ask("GET", "/v1/top-ups")).json()["data"][0]["status"] == "cancelled"


async def test_a_refund_of_which_nothing_is_known_stays_taken_off(desk):
    """Else it could be spent and sent back."""
    payment = await paid(desk, 25)
    desk.provider.fails = SILENT
    answer = await desk.ask("POST", f"/v1/top-ups/{payment}/refund", {"usd": "20.00"})
    assert answer.status_code == 502
    assert "retry-after" in answer.headers
    assert balance(desk) == 5 * USD_PICOS
    assert (await desk.ask("GET", "/v1/top-ups")).json()["data"][0]["status"] == "under way"
    desk.provider.fails = None
    again = await desk.ask("POST", f"/v1/top-ups/{payment}/refund", {"usd": "5.00"})
    assert (again.status_code, desk.provider.refunds) == (422, {})
    assert "is under way" in again.json()["message"]
    assert balance(desk) == 5 * USD_PICOS


async def test_a_refund_that_fails_weeks_later_is_the_balances_again(desk):
    payment = await paid(desk, 25)
    refund = (await desk.ask("POST", f"/v1/top-ups/{payment}/refund")).json()["id"]
    desk.provider.told = RefundFailed(account="acme", refund_id=refund)
    for _ in range(2):
        assert (await webhook(desk)).status_code == 200
    assert balance(desk) == 25 * USD_PICOS


async def test_nobody_refunds_anothers_payment(desk):
    payment = await paid(desk, 25)
    assert (await desk.ask("POST", f"/v1/top-ups/{payment}/refund", of="other")).status_code == 404
    named = await desk.ask("POST", f"/v1/top-ups/{payment}/refund", {"account": "acme"}, of="other")
    assert named.status_code == 403
    assert balance(desk) == 25 * USD_PICOS


async def test_the_operator_enters_a_transfer_once_for_each_reference(desk):
    for _ in range(2):
        answer = await desk.ask("POST", "/v1/top-ups", TRANSFER, of=OPERATOR)
        assert answer.status_code == 201
    assert answer.json()["payment"]["provider"] == "manual"
    assert balance(desk) == 25 * USD_PICOS
    other = await desk.ask("POST", "/v1/top-ups", TRANSFER | {"usd": "26.00"}, of=OPERATOR)
    assert other.status_code == 422


async def test_nobody_else_enters_a_transfer_or_gives_credit(desk):
    assert (await desk.ask("POST", "/v1/top-ups", TRANSFER)).status_code == 403
    credit = {"account": "acme", "usd": "1", "kind": "sla", "reason": "October", "reference": "sla-2026-10"}
    assert (await desk.ask("POST", "/v1/credits", credit)).status_code == 403
    assert balance(desk) == 0


async def test_a_transfer_goes_back_by_the_operators_hand(desk):
    payment = (await desk.ask("POST", "/v1/top-ups", TRANSFER, of=OPERATOR)).json()["payment"]["id"]
    path = f"/v1/top-ups/{payment}/refund"
    assert (await desk.ask("POST", path)).status_code == 403
    assert (await desk.ask("POST", path, {"account": "acme"}, of=OPERATOR)).json()["param"] == "reference"
    sent = {"account": "acme", "reference": "SEPA back 1"}
    for usd in ("5", "5.00", None):
        back = await desk.ask("POST", path, sent | {"usd": usd}, of=OPERATOR)
        assert (back.status_code, back.json()["reference"], back.json()["status"]) == (201, "SEPA back 1", "done")
        assert balance(desk) == 20 * USD_PICOS
    assert (await desk.ask("POST", path, sent | {"usd": "6"}, of=OPERATOR)).status_code == 422
    assert desk.provider.refunds == {}
    assert desk.ledger.unfinished_refunds() == ()


async def test_a_credit_is_given_once_for_each_reference_and_never_paid_out(desk):
    credit = {"account": "acme", "usd": "1.50", "kind": "sla", "reason": "October", "reference": "sla-2026-10"}
    for _ in range(2):
        answer = await desk.ask("POST", "/v1/credits", credit, of=OPERATOR)
        assert (answer.status_code, answer.json()["kind"]) == (201, "sla-credit")
    assert balance(desk) == 3 * USD_PICOS // 2
    refund = await desk.ask("POST", f"/v1/top-ups/{answer.json()['id']}/refund")
    assert refund.status_code == 404


@pytest.mark.parametrize("usd", ["0", "0.00", "-5", "1e3", "5.001", "1000000", 5, None])
async def test_an_amount_is_a_text_of_whole_cents(desk, usd):
    answer = await desk.ask("POST", "/v1/top-ups", {"usd": usd})
    assert (answer.status_code, answer.json()["param"]) == (422, "usd")


async def test_what_the_provider_refuses_to_begin_is_said(desk):
    desk.provider.fails = REFUSES
    answer = await desk.ask("POST", "/v1/top-ups", {"usd": "5"})
    assert (answer.status_code, answer.json()["message"]) == (422, "the card was declined")
    desk.provider.fails = SILENT
    assert (await desk.ask("POST", "/v1/top-ups", {"usd": "5"})).status_code == 502


async def test_a_mesh_paid_by_transfer_says_where_to(tmp_path):
    with open_desk(tmp_path, ManualPayments("Pay to DE00 1234.")) as desk:
        answer = (await desk.ask("POST", "/v1/top-ups", {"usd": "5.00"})).json()
        assert answer["pay_url"] is None
        assert answer["instructions"] == "Pay to DE00 1234. Write the account's name on it: acme"
        assert (await desk.ask("POST", "/v1/top-ups", {"usd": "5", "save_for_recharge": True})).status_code == 422
        assert (await webhook(desk)).status_code == 400


async def test_a_payment_by_a_provider_that_is_gone_is_not_sent_back_by_another(desk):
    payment = await paid(desk, 25)
    desk.provider.name = "another"
    assert (await desk.ask("POST", f"/v1/top-ups/{payment}/refund")).status_code == 409
    assert balance(desk) == 25 * USD_PICOS


def test_the_fake_keeps_to_the_protocol():
    from serve.payments.protocol import PaymentProvider

    provider: PaymentProvider = FakeProvider()
    assert provider.smallest_usd_picos == USD_PICOS // 100
