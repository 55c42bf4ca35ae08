"""Recharging by itself: what an account asks for over HTTP, and the watch that does it; on a real ledger."""

import logging
import time
from collections.abc import Iterator

import pytest
from account_desk import REFUSES, SIGNED, SILENT, Desk, open_desk

from receipts.ledger import OPENING_CREDIT_USD_PICOS
from serve.payment_watch import PaymentWatch
from serve.payments.manual import ManualPayments
from serve.payments.money import USD_PICOS
from serve.payments.protocol import Paid

WANTED = {"threshold_usd": "100.00", "amount_usd": "50.00"}
MEANS = "cus_1 pm_1"


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def watch(desk: Desk, clock: Clock | None = None, wall_clock_ns=time.time_ns) -> PaymentWatch:
    return PaymentWatch(desk.handle, desk.provider, every_s=1.0, clock=clock or Clock(), wall_clock_ns=wall_clock_ns)


def balance(desk: Desk) -> int:
    return desk.ledger.balance_usd_picos("acme") - OPENING_CREDIT_USD_PICOS


async def saved(desk: Desk, account: str = "acme") -> None:
    """A top-up of a dollar, whose means of payment was kept."""
    desk.provider.told = Paid(account=account, usd_picos=USD_PICOS, reference=f"pi_{account}")
    desk.provider.means[f"pi_{account}"] = MEANS
    await desk.ask("POST", "/v1/webhooks/stripe", content=b"{}", headers={"Stripe-Signature": SIGNED.decode()})


async def recharging(desk: Desk) -> None:
    await saved(desk)
    answer = await desk.ask("PUT", "/v1/auto-recharge", WANTED)
    assert answer.status_code == 200, answer.text


async def test_an_account_says_when_and_how_much_and_may_say_no_more(desk):
    assert (await desk.ask("GET", "/v1/auto-recharge")).json()["enabled"] is False
    await recharging(desk)
    shown = await desk.ask("GET", "/v1/auto-recharge")
    assert shown.json() == {
        "object": "auto-recharge",
        "enabled": True,
        "provider": "stripe",
        "threshold_usd": "100.00",
        "threshold_usd_picos": 100 * USD_PICOS,
        "amount_usd": "50.00",
        "amount_usd_picos": 50 * USD_PICOS,
    }
    assert MEANS not in shown.text
    assert (await desk.ask("GET", "/v1/auto-recharge", of="other")).json()["enabled"] is False
    assert (await desk.ask("DELETE", "/v1/auto-recharge")).json()["enabled"] is False
    await watch(desk).look_once()
    assert desk.provider.charges == {}


async def test_it_is_paid_with_the_accounts_own_means_alone(desk):
    await saved(desk, "other")
    assert (await desk.ask("PUT", "/v1/auto-recharge", WANTED)).status_code == 409
    named = await desk.ask("PUT", "/v1/auto-recharge", WANTED | {"customer_reference": MEANS})
    assert named.status_code == 422


async def test_a_mesh_paid_by_transfer_recharges_nobody(tmp_path):
    with open_desk(tmp_path, ManualPayments("Pay to DE00 1234.")) as desk:
        assert (await desk.ask("PUT", "/v1/auto-recharge", WANTED)).status_code == 409


async def test_below_the_threshold_it_is_recharged_until_it_is_above(desk):
    await recharging(desk)
    looking = watch(desk)
    for _ in range(4):
        await looking.look_once()
    # 5 of credit and 1 paid; 56 is below the hundred, 106 is not.
    assert balance(desk) == 101 * USD_PICOS
    assert [(each.account, each.means) for each in desk.provider.charges.values()] == [("acme", MEANS)] * 2


async def test_two_ingresses_that_saw_the_same_balance_charge_once(desk):
    await recharging(desk)
    due = desk.ledger.accounts_to_recharge()

    class Stale:
        """A ledger whose answer was on its way since then."""

        def __getattr__(self, name: str):
            return getattr(desk.handle, name)

        class accounts_to_recharge:  # noqa: N801 - an actor's method
            @staticmethod
            async def remote():
                return due

    for ledger in (desk.handle, Stale()):
        await PaymentWatch(ledger, desk.provider, every_s=1.0, clock=Clock(), wall_clock_ns=time.time_ns).look_once()
    assert len(desk.provider.charges) == 1
    assert balance(desk) == 51 * USD_PICOS


async def test_a_card_that_is_declined_is_left_alone_for_an_hour(desk, caplog):
    await recharging(desk)
    clock = Clock()
    looking = watch(desk, clock)
    desk.provider.fails = REFUSES
    with caplog.at_level(logging.WARNING):
        await looking.look_once()
    assert MEANS not in caplog.text
    desk.provider.fails = None
    clock.now_s = 3599
    await looking.look_once()
    assert desk.provider.charges == {}
    clock.now_s = 3601
    await looking.look_once()
    assert len(desk.provider.charges) == 1


async def test_other_means_are_tried_at_once(desk):
    await recharging(desk)
    looking = watch(desk)
    desk.provider.fails = REFUSES
    await looking.look_once()
    desk.provider.fails = None
    desk.provider.means["pi_acme"] = "cus_2 pm_2"
    await desk.ask("PUT", "/v1/auto-recharge", WANTED)
    await looking.look_once()
    assert len(desk.provider.charges) == 1


async def test_a_provider_that_does_not_answer_is_asked_again_at_the_next_look(desk):
    await recharging(desk)
    looking = watch(desk)
    desk.provider.fails = SILENT
    await looking.look_once()
    desk.provider.fails = None
    await looking.look_once()
    assert len(desk.provider.charges) == 1


async def test_a_refund_that_was_left_is_finished_but_not_one_that_may_be_under_way(desk):
    await saved(desk)
    payment = desk.ledger.payments("acme")[0].payment_id
    desk.provider.fails = SILENT
    assert (await desk.ask("POST", f"/v1/top-ups/{payment}/refund")).status_code == 502
    desk.provider.fails = None
    await watch(desk).look_once()
    assert desk.provider.refunds == {}
    await watch(desk, wall_clock_ns=lambda: time.time_ns() + 601 * 10**9).look_once()
    assert len(desk.provider.refunds) == 1
    assert desk.ledger.unfinished_refunds() == ()
    assert balance(desk) == 0


async def test_what_goes_wrong_for_one_account_is_no_others(desk, caplog):
    await recharging(desk)
    await saved(desk, "other")
    await desk.ask("PUT", "/v1/auto-recharge", WANTED, of="other")
    charge = desk.provider.charge

    async def broken_for_acme(wanted):
        if wanted.account == "acme":
            raise RuntimeError("a secret of acme's")
        return await charge(wanted)

    desk.provider.charge = broken_for_acme
    with caplog.at_level(logging.WARNING):
        await watch(desk).look_once()
    assert [each.account for each in desk.provider.charges.values()] == ["other"]
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_ledger_that_is_away_ends_nothing(desk, caplog):
    looking = watch(desk)

    class Away:
        def __getattr__(self, name: str):
            raise ConnectionError("a secret place")

    looking._ledger = Away()
    with caplog.at_level(logging.WARNING):
        await looking.look_once()
        await looking.look_once()
    assert len(caplog.records) == 1
    assert "ConnectionError" in caplog.text
    assert "secret" not in caplog.text
