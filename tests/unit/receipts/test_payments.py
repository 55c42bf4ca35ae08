"""Top-ups, refunds, credits and recharges: each once, in the books, and never more back than came."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opened_ledger import CHARGE_USD_PICOS, NOW_NS, book, imbalance, opened, settle
from past_the_ledger import direct, tampering
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from receipts.budgets import Budget
from receipts.errors import LedgerError
from receipts.holds import HoldBook
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_check import check_ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_reader import LedgerPosition, LedgerReader
from receipts.ledger_schema import USD_PICOS
from receipts.ledger_writer import LedgerWriter
from receipts.payments import MOST_USD_PICOS, Payment, Recharge
from receipts.refunds import Refunds

_USD = 10**12


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = opened(ledger_url)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


def paid(ledger: Ledger, usd: int = 10, reference: str = "cs_1", account: str = "acme") -> Payment:
    return ledger.top_up(account, usd * _USD, "stripe", reference)


class TestTopUps:
    def test_one_is_in_the_books_and_on_the_balance(self, ledger: Ledger) -> None:
        before = ledger.balance_usd_picos("acme")
        payment = paid(ledger)
        assert (payment.kind, payment.usd_picos, payment.created_unix_ns) == ("top-up", 10 * _USD, NOW_NS)
        assert ledger.cached_balance_usd_picos("acme") == ledger.balance_usd_picos("acme") == before + 10 * _USD
        assert book(ledger, USD_PICOS)["payments:stripe"] == -10 * _USD
        assert imbalance(ledger) == []

    def test_told_again_it_is_the_same(self, ledger: Ledger) -> None:
        first = paid(ledger)
        assert paid(ledger) == first
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 10 * _USD
        assert ledger.payments("acme") == (first,)

    def test_another_providers_same_reference_is_another(self, ledger: Ledger) -> None:
        assert paid(ledger).payment_id != ledger.top_up("acme", 10 * _USD, "manual", "cs_1").payment_id
        assert len(ledger.payments("acme")) == 2

    def test_one_reference_is_not_two_payments(self, ledger: Ledger) -> None:
        paid(ledger)
        for usd, account in ((11, "acme"), (10, "other")):
            with pytest.raises(LedgerError, match="of another payment"):
                paid(ledger, usd, account=account)
        assert ledger.balance_usd_picos("other") == OPENING_CREDIT_USD_PICOS

    @pytest.mark.parametrize("amount", [0, -1, MOST_USD_PICOS + 1, 1.5, True])
    def test_an_amount_is_one(self, ledger: Ledger, amount: int) -> None:
        with pytest.raises(LedgerError, match="an amount is"):
            ledger.top_up("acme", amount, "stripe", "x")
        assert ledger.payments("acme") == ()

    @pytest.mark.parametrize("reference", ["", " ", "a\nb", "x" * 257, "\ud800"])
    def test_a_reference_is_a_line(self, ledger: Ledger, reference: str) -> None:
        with pytest.raises(LedgerError, match="a reference is"):
            paid(ledger, reference=reference)

    def test_an_account_is_not_made_by_it(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="no account 'nobody'"):
            paid(ledger, account="nobody")

    def test_nobody_sees_anothers(self, ledger: Ledger) -> None:
        payment = paid(ledger)
        assert ledger.payments("other") == ()
        for call in (ledger.refundable_usd_picos, lambda *of: ledger.begin_refund(*of, 1)):
            with pytest.raises(LedgerError, match="no top-up"):
                call("other", payment.payment_id)


class TestRefunds:
    def test_it_is_off_the_balance_before_the_provider_is_asked(self, ledger: Ledger) -> None:
        payment = paid(ledger)
        refund = ledger.begin_refund("acme", payment.payment_id, 4 * _USD)
        assert (refund.refunds, refund.reference, refund.provider) == (payment.payment_id, None, "stripe")
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 6 * _USD
        assert ledger.unfinished_refunds() == (refund,)
        finished = ledger.finish_refund(refund.payment_id, "re_1")
        assert finished.reference == "re_1"
        assert ledger.finish_refund(refund.payment_id, "re_1") == finished
        assert ledger.unfinished_refunds() == ()
        assert ledger.refundable_usd_picos("acme", payment.payment_id) == 6 * _USD
        assert ledger.payments("acme")[-1 if ledger.payments("acme")[0].kind == "refund" else 0].refunded_usd_picos == (
            4 * _USD
        )

    def test_what_the_provider_refused_is_the_balances_again(self, ledger: Ledger) -> None:
        payment = paid(ledger)
        before = ledger.balance_usd_picos("acme")
        refund = ledger.begin_refund("acme", payment.payment_id, 4 * _USD)
        cancelled = ledger.cancel_refund(refund.payment_id, "the card is closed")
        assert cancelled.is_cancelled
        assert ledger.cancel_refund(refund.payment_id, "again") == cancelled
        assert ledger.cached_balance_usd_picos("acme") == ledger.balance_usd_picos("acme") == before
        assert ledger.refundable_usd_picos("acme", payment.payment_id) == 10 * _USD
        assert ledger.unfinished_refunds() == ()
        with pytest.raises(LedgerError, match="is cancelled"):
            ledger.finish_refund(refund.payment_id, "re_1")

    def test_one_that_failed_after_it_was_taken_is_undone_too(self, ledger: Ledger) -> None:
        payment = paid(ledger)
        refund = ledger.begin_refund("acme", payment.payment_id, _USD)
        ledger.finish_refund(refund.payment_id, "re_1")
        assert ledger.cancel_refund(refund.payment_id, "bounced").is_cancelled
        assert ledger.refundable_usd_picos("acme", payment.payment_id) == 10 * _USD

    def test_credits_are_used_up_first_and_never_paid_out(self, ledger: Ledger, make_settlement) -> None:
        payment = paid(ledger)
        ledger.credit("acme", 3 * _USD, "goodwill", "sorry", "g1")
        settle(ledger, make_settlement(1))
        assert ledger.refundable_usd_picos("acme", payment.payment_id) == 10 * _USD
        with pytest.raises(LedgerError, match="no more than"):
            ledger.begin_refund("acme", payment.payment_id, 10 * _USD + 1)

    def test_what_is_used_is_not_refunded(self, ledger: Ledger, make_settlement) -> None:
        payment = ledger.top_up("acme", 3 * CHARGE_USD_PICOS, "stripe", "small")
        for _ in range(2):
            settle(ledger, make_settlement(1), make_settlement(2))
        ledger.reverse("opening:acme", "no credit here")
        assert ledger.refundable_usd_picos("acme", payment.payment_id) == CHARGE_USD_PICOS

    def test_a_top_up_that_was_reversed_has_nothing_to_refund(self, ledger: Ledger) -> None:
        payment = paid(ledger)
        ledger.reverse(payment.payment_id, "charged back")
        assert ledger.refundable_usd_picos("acme", payment.payment_id) == 0

    def test_while_it_isnt_known_how_one_ended_there_is_no_second(self, ledger: Ledger) -> None:
        """What a client tries again, that heard nothing, must not be sent twice."""
        payment, other = paid(ledger), paid(ledger, reference="cs_2")
        refund = ledger.begin_refund("acme", payment.payment_id, _USD)
        with pytest.raises(LedgerError, match="is under way"):
            ledger.begin_refund("acme", payment.payment_id, _USD)
        ledger.begin_refund("acme", other.payment_id, _USD)
        ledger.finish_refund(refund.payment_id, "re_1")
        refund = ledger.begin_refund("acme", payment.payment_id, _USD)
        ledger.cancel_refund(refund.payment_id, "no")
        ledger.begin_refund("acme", payment.payment_id, _USD)

    def test_one_that_was_made_by_hand_is_one_for_each_reference(self, ledger: Ledger) -> None:
        top_ups = [ledger.top_up("acme", 10 * _USD, "manual", reference) for reference in ("in 1", "in 2")]
        made = ledger.begin_refund("acme", top_ups[0].payment_id, 4 * _USD, "back 1")
        assert made.reference == "back 1"
        assert ledger.unfinished_refunds() == ()
        assert ledger.begin_refund("acme", top_ups[0].payment_id, 4 * _USD, "back 1") == made
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 16 * _USD
        for top_up, usd in ((0, 5), (1, 4)):
            with pytest.raises(LedgerError, match="of another refund"):
                ledger.begin_refund("acme", top_ups[top_up].payment_id, usd * _USD, "back 1")
        ledger.begin_refund("acme", top_ups[0].payment_id, 6 * _USD, "back 2")
        assert ledger.begin_refund("acme", top_ups[0].payment_id, 4 * _USD, "back 1").payment_id == made.payment_id
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 10 * _USD

    @pytest.mark.parametrize("refund_id", ["", "refund_0", "\0", "\ud800"])
    def test_a_refund_that_isnt_there_is_refused(self, ledger: Ledger, refund_id: str) -> None:
        payment = paid(ledger)
        for name in (refund_id, payment.payment_id):
            with pytest.raises(LedgerError, match="no refund"):
                ledger.finish_refund(name, "re_1")
            with pytest.raises(LedgerError, match="no refund"):
                ledger.cancel_refund(name, "x")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.booleans()), max_size=12))
def test_never_more_goes_back_than_came_or_is_left(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    ledger = opened(f"sqlite:///{tmp_path_factory.mktemp('l')}/l.db")
    ledger.create_key("acme", "")
    tops = [paid(ledger, usd, f"cs_{usd}") for usd in (3, 5, 7)]
    for which, usd, is_refused in steps:
        top = tops[which]
        left = ledger.refundable_usd_picos("acme", top.payment_id)
        if usd * _USD > left:
            with pytest.raises(LedgerError):
                ledger.begin_refund("acme", top.payment_id, usd * _USD)
            continue
        refund = ledger.begin_refund("acme", top.payment_id, usd * _USD)
        if is_refused:
            ledger.cancel_refund(refund.payment_id, "no")
        else:
            ledger.finish_refund(refund.payment_id, f"re_{refund.payment_id}")
    stands = [each for each in ledger.payments("acme") if each.kind == "refund" and not each.is_cancelled]
    for top in tops:
        assert sum(each.usd_picos for each in stands if each.refunds == top.payment_id) <= top.usd_picos
    gone = sum(each.usd_picos for each in stands)
    assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 15 * _USD - gone >= OPENING_CREDIT_USD_PICOS
    assert imbalance(ledger) == []
    ledger.close()


class TestCredits:
    def test_an_sla_credit_is_an_entry_of_its_own_type(self, ledger: Ledger, ledger_url: str) -> None:
        credit = ledger.credit("acme", 2 * _USD, "sla", "region away for 3 h", "incident-7")
        assert ledger.credit("acme", 2 * _USD, "sla", "region away for 3 h", "incident-7") == credit
        assert (credit.kind, credit.reason) == ("sla-credit", "region away for 3 h")
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 2 * _USD
        assert book(ledger, USD_PICOS)["sla-credits"] == -2 * _USD
        paid(ledger)
        reader = LedgerReader.open(ledger_url)
        kinds = {line.kind for line in reader.entries_page("acme", LedgerPosition(), 10).lines}
        reader.close()
        assert kinds == {"opening-credit", "sla-credit", "top-up"}

    def test_a_kind_is_a_known_one(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="no kind of credit"):
            ledger.credit("acme", 1, "bribe", "x", "y")  # type: ignore[arg-type]


class TestRecharges:
    def test_an_account_below_its_threshold_is_due(self, ledger: Ledger) -> None:
        recharge = Recharge(
            account="acme",
            threshold_usd_picos=OPENING_CREDIT_USD_PICOS + 1,
            amount_usd_picos=20 * _USD,
            provider="stripe",
            customer_reference="cus_1",
        )
        assert ledger.accounts_to_recharge() == ()
        ledger.set_recharge("acme", recharge)
        (due,) = ledger.accounts_to_recharge()
        assert (due.recharge, due.balance_usd_picos, due.top_ups) == (recharge, OPENING_CREDIT_USD_PICOS, 0)
        paid(ledger)
        assert ledger.accounts_to_recharge() == ()
        assert ledger.cached_balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS + 10 * _USD, "each look wants it"
        assert (ledger.recharge("acme"), ledger.recharge("other")) == (recharge, None)
        ledger.set_recharge("acme", None)
        assert ledger.recharge("acme") is None

    def test_what_names_the_charge_changes_with_each_top_up(self, ledger: Ledger) -> None:
        paid(ledger)
        ledger.set_recharge(
            "acme",
            Recharge(
                account="acme",
                threshold_usd_picos=100 * _USD,
                amount_usd_picos=_USD,
                provider="stripe",
                customer_reference="cus_1",
            ),
        )
        assert [each.top_ups for each in ledger.accounts_to_recharge()] == [1]
        paid(ledger, reference="cs_2")
        assert [each.top_ups for each in ledger.accounts_to_recharge()] == [2]


async def test_what_is_held_for_requests_under_way_is_not_refunded(tmp_path) -> None:
    ledger = opened(f"sqlite:///{tmp_path}/l.db")
    ledger.create_key("acme", "")
    payment = paid(ledger)
    holds = HoldBook(monotonic_ns=lambda: 0)
    writer = await LedgerWriter.open(lambda: ledger, holds=holds)
    refunds = Refunds(writer, holds)
    balance = OPENING_CREDIT_USD_PICOS + 10 * _USD
    assert await refunds.refundable_usd_picos("acme", payment.payment_id) == 10 * _USD
    holds.place("acme", "f" * 32, 8 * _USD, balance_usd_picos=balance, lease_ns=10**9)
    assert await refunds.refundable_usd_picos("acme", payment.payment_id) == 7 * _USD
    with pytest.raises(LedgerError, match="are not held"):
        await refunds.begin("acme", payment.payment_id, 8 * _USD)
    refund = await refunds.begin("acme", payment.payment_id, 7 * _USD)
    assert refund.usd_picos == 7 * _USD
    assert holds.held_usd_picos("acme") == 8 * _USD, "its own amount is off the balance, and held no more"
    with pytest.raises(LedgerError):
        await refunds.begin("acme", "topup_0", _USD)
    await writer.close()


def test_a_ledger_with_money_in_it_is_sound(ledger: Ledger, ledger_url: str) -> None:
    payment = paid(ledger)
    ledger.credit("acme", _USD, "goodwill", "sorry", "g1")
    kept = ledger.begin_refund("acme", payment.payment_id, _USD)
    ledger.finish_refund(kept.payment_id, "re_1")
    cancelled = ledger.begin_refund("acme", payment.payment_id, _USD)
    ledger.cancel_refund(cancelled.payment_id, "no")
    ledger.close()
    database = ReadingDatabase.open(ledger_url)
    report = check_ledger(database, None)
    database.close()
    assert report.findings == ()
    assert (report.payments, report.transactions, report.reversals) == (4, 7, 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("usd_picos = usd_picos + 1", "the books have"),
        ("account = 'other'", "the books have"),
        ("provider = 'manual'", "the books have"),
        ("created_unix_ns = 7", "and it is of 7 ns"),
        ("kind = 'sla-credit'", "it is a 'sla-credit' by its column, and not by its id"),
    ],
)
def test_a_payment_that_was_changed_is_found(ledger: Ledger, ledger_url: str, change: str, fault: str) -> None:
    payment = paid(ledger)
    ledger.close()
    with tampering(ledger_url) as other:
        other.execute(text(f"UPDATE payments SET {change}"))  # noqa: S608 - our own
    database = ReadingDatabase.open(ledger_url)
    findings = check_ledger(database, None).findings
    database.close()
    assert [each for each in findings if each.startswith(f"payment {payment.payment_id}: ") and fault in each], findings


def test_a_refund_of_nothing_is_found(ledger: Ledger, ledger_url: str) -> None:
    refund = ledger.begin_refund("acme", paid(ledger).payment_id, _USD)
    ledger.close()
    for change in ("refunds = 'topup_gone'", "refunds = NULL"):
        with tampering(ledger_url) as other:
            other.execute(text(f"UPDATE payments SET {change} WHERE kind = 'refund'"))  # noqa: S608 - our own
        database = ReadingDatabase.open(ledger_url)
        findings = check_ledger(database, None).findings
        database.close()
        assert [each.partition(":")[0] for each in findings] == [f"payment {refund.payment_id}"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payments SET usd_picos = 1",
        "UPDATE payments SET reference = 'mine'",
        "UPDATE payments SET reference = NULL",
        "DELETE FROM payments",
        "UPDATE budgets SET microjoules = 1",
        "DELETE FROM budgets",
        "UPDATE recharges SET amount_usd_picos = 1",
        "DELETE FROM recharges",
        "UPDATE api_keys SET scopes = 'read'",
        "UPDATE api_keys SET expires_unix_ns = NULL WHERE name = 'ends'",
        "UPDATE api_keys SET expires_unix_ns = expires_unix_ns + 1 WHERE name = 'ends'",
        "UPDATE receipts SET usd_picos = 0",
    ],
)
def test_what_is_stored_stays_as_it_is(ledger: Ledger, ledger_url: str, make_settlement, statement: str) -> None:
    paid(ledger)
    settle(ledger, make_settlement(1))
    ledger.create_key("acme", "ends", expires_unix_ns=NOW_NS + 9)
    ledger.set_budget(Budget(account="acme", kind="workload", subject="w", window="day", microjoules=7))
    ledger.set_recharge("acme", None)
    with pytest.raises(DBAPIError), direct(ledger_url) as other:
        other.execute(text(statement))
