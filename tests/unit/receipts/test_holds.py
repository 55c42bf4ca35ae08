"""Holds against a model: what is held is what is live, and no account spends what it hasn't got."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from receipts.holds import HoldBook, HoldsReport

_LEASE_NS = 30
_REMEMBERED_NS = 100
_BALANCE = 100
_ACCOUNTS = st.sampled_from(["acme", "bolt"])
_REQUESTS = st.integers(0, 3).map(lambda number: f"request-{number}")
_AMOUNTS = st.integers(0, 60)
# Never reached here; a full book is tried below.
_MOST = 1000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Account:
    """``slack``: what may come on top of the balance, since its hold wasn't there when another was placed."""

    charged: int = 0
    slack: int = 0
    live: dict[str, tuple[int, int]] = field(default_factory=dict)


class Holding(RuleBasedStateMachine):
    """Ingresses place, renew and release; the ledger charges, and forgets every hold when it is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.book = self.new_book()
        self.accounts = {"acme": Account(), "bolt": Account()}
        self.ended: dict[tuple[str, str], int] = {}

    def new_book(self) -> HoldBook:
        return HoldBook(monotonic_ns=self.clock, most_holds=_MOST, remembered_ns=_REMEMBERED_NS)

    @rule(account=_ACCOUNTS, request=_REQUESTS, amount=_AMOUNTS)
    def place(self, account: str, request: str, amount: int) -> None:
        mine = self.accounts[account]
        balance = _BALANCE - mine.charged
        others = sum(each for other, (each, _) in mine.live.items() if other != request)
        answer = self.book.place(account, request, amount, balance_usd_picos=balance, lease_ns=_LEASE_NS)
        assert (answer.balance_usd_picos, answer.held_usd_picos) == (balance, others)
        if (account, request) in self.ended:
            assert answer.outcome == "busy"
        elif amount and others + amount > balance:
            assert answer.outcome == "insufficient"
        else:
            assert answer.outcome == "placed"
            self.live(account, request, amount)

    @rule(account=_ACCOUNTS, request=_REQUESTS, amount=_AMOUNTS)
    def renew(self, account: str, request: str, amount: int) -> None:
        """Also one that isn't known (the ledger was killed), and one that has ended (it came late)."""
        mine = self.accounts[account]
        known = mine.live.get(request, (0, 0))[0]
        self.book.renew(account, request, amount, lease_ns=_LEASE_NS)
        if (account, request) not in self.ended:
            mine.slack += max(0, amount - known)
            self.live(account, request, max(amount, known))
        else:
            self.ended[account, request] = self.clock.now_ns + _REMEMBERED_NS

    @rule(account=_ACCOUNTS, request=_REQUESTS, amount=_AMOUNTS)
    def extend(self, account: str, request: str, amount: int) -> None:
        """By no more than the balance leaves beside the others, and never by less than nothing."""
        mine = self.accounts[account]
        known = mine.live.get(request, (0, 0))[0]
        others = sum(each for other, (each, _) in mine.live.items() if other != request)
        balance = _BALANCE - mine.charged
        held = self.book.extend(account, request, amount, balance_usd_picos=balance, lease_ns=_LEASE_NS)
        if (account, request) in self.ended:
            assert held == 0
            self.ended[account, request] = self.clock.now_ns + _REMEMBERED_NS
        else:
            assert held == max(known, min(amount, balance - others))
            self.live(account, request, held)

    @rule(account=_ACCOUNTS, request=_REQUESTS, share=st.integers(0, 100))
    def settle(self, account: str, request: str, share: int) -> None:
        """The receipt's commit: the balance falls by no more than was held, and the hold is gone."""
        mine = self.accounts[account]
        held = mine.live.pop(request, (0, 0))[0]
        mine.charged += held * share // 100
        self.end(account, request)

    @rule(account=_ACCOUNTS, request=_REQUESTS)
    def release(self, account: str, request: str) -> None:
        self.accounts[account].live.pop(request, None)
        self.end(account, request)

    @rule(by_ns=st.integers(1, 2 * _LEASE_NS))
    def wait(self, by_ns: int) -> None:
        self.clock.now_ns += by_ns
        now_ns = self.clock.now_ns
        for mine in self.accounts.values():
            mine.live = {request: hold for request, hold in mine.live.items() if hold[1] > now_ns}
        self.ended = {key: until_ns for key, until_ns in self.ended.items() if until_ns > now_ns}

    @rule()
    def kill_the_ledger(self) -> None:
        self.book = self.new_book()
        self.ended = {}
        for mine in self.accounts.values():
            mine.live = {}

    def live(self, account: str, request: str, amount: int) -> None:
        mine = self.accounts[account]
        until_ns = max(mine.live.get(request, (0, 0))[1], self.clock.now_ns + _LEASE_NS)
        mine.live[request] = (amount, until_ns)

    def end(self, account: str, request: str) -> None:
        self.book.end(account, request)
        self.ended[account, request] = self.clock.now_ns + _REMEMBERED_NS

    @invariant()
    def what_is_held_is_what_is_live(self) -> None:
        report = self.book.report()
        sums = {name: sum(amount for amount, _ in mine.live.values()) for name, mine in self.accounts.items()}
        assert {name: self.book.held_usd_picos(name) for name in self.accounts} == sums
        assert report.count == sum(len(mine.live) for mine in self.accounts.values())
        assert report.held_usd_picos == sum(sums.values())

    @invariant()
    def no_account_spends_what_it_has_not_got(self) -> None:
        for name, mine in self.accounts.items():
            assert mine.charged + self.book.held_usd_picos(name) <= _BALANCE + mine.slack

    def teardown(self) -> None:
        """Every ingress dies: all leases end, and nothing is left."""
        self.clock.now_ns += max(_LEASE_NS, _REMEMBERED_NS)
        assert self.book.report() == HoldsReport(count=0, held_usd_picos=0)
        assert (self.book._holds, self.book._sums, self.book._ended, self.book._ends) == ({}, {}, {}, [])


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def place(book: HoldBook, request: str, amount: int, account: str = "acme", balance: int = _BALANCE) -> str:
    return book.place(account, request, amount, balance_usd_picos=balance, lease_ns=_LEASE_NS).outcome


def extend(book: HoldBook, request: str, amount: int, balance: int = _BALANCE) -> int:
    return book.extend("acme", request, amount, balance_usd_picos=balance, lease_ns=_LEASE_NS)


def test_the_last_pico_can_be_held_and_not_one_more(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    assert place(book, "a", 60) == "placed"
    assert place(book, "b", 41) == "insufficient"
    assert place(book, "b", 40) == "placed"
    assert place(book, "c", 1) == "insufficient"


def test_what_costs_nothing_is_placed_for_an_account_that_owes(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    assert place(book, "a", 0, balance=-5) == "placed"
    assert place(book, "b", 1, balance=-5) == "insufficient"


def test_one_accounts_holds_are_none_of_anothers_business(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    assert place(book, "a", _BALANCE) == "placed"
    assert place(book, "a", _BALANCE, account="bolt") == "placed"


def test_placed_again_it_is_one_hold_of_the_last_amount(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    assert [place(book, "a", amount) for amount in (70, 70, 90, 101)] == ["placed"] * 3 + ["insufficient"]
    assert book.report() == HoldsReport(count=1, held_usd_picos=90)


def test_a_hold_lapses_when_its_lease_is_over_and_not_before(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "a", 70)
    clock.now_ns += _LEASE_NS - 1
    assert place(book, "b", 70) == "insufficient"
    clock.now_ns += 1
    assert place(book, "b", 70) == "placed"


def test_a_renewed_hold_lives_a_lease_longer_and_never_shorter(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "a", 70)
    clock.now_ns += _LEASE_NS - 1
    book.renew("acme", "a", 70, lease_ns=_LEASE_NS)
    book.renew("acme", "a", 70, lease_ns=1)
    clock.now_ns += _LEASE_NS - 1
    assert book.report().count == 1
    clock.now_ns += 1
    assert book.report().count == 0


def test_a_renewed_hold_comes_back_after_a_restart_even_past_the_balance(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "new", 70)
    book.renew("acme", "under way", 80, lease_ns=_LEASE_NS)
    assert book.held_usd_picos("acme") == 150
    assert place(book, "newer", 1) == "insufficient"


def test_a_renewal_never_lowers_what_a_hold_was_extended_to(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "a", 10)
    assert extend(book, "a", 40) == 40
    book.renew("acme", "a", 10, lease_ns=_LEASE_NS)
    assert book.held_usd_picos("acme") == 40


def test_an_extension_takes_what_the_balance_leaves_and_no_more(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "a", 10)
    place(book, "b", 30)
    assert extend(book, "a", 80) == 70
    assert extend(book, "b", 31) == 30, "nothing is left"
    assert extend(book, "b", 40, balance=50) == 30, "the balance fell by a charge: what is held stays"
    book.end("acme", "a")
    assert extend(book, "b", 60) == 60


def test_an_extended_hold_lives_a_lease_longer(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "a", 10)
    clock.now_ns += _LEASE_NS - 1
    extend(book, "a", 20)
    clock.now_ns += _LEASE_NS - 1
    assert book.held_usd_picos("acme") == 20
    clock.now_ns += 1
    assert book.report().count == 0


def test_what_has_ended_or_finds_no_room_is_not_extended(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock, most_holds=1, remembered_ns=_REMEMBERED_NS)
    place(book, "a", 10)
    assert extend(book, "b", 20) == 0
    for _ in range(5):  # its replica hasn't heard of the end for longer than it is remembered
        book.end("acme", "a")
        clock.now_ns += _REMEMBERED_NS - 1
        assert extend(book, "a", 20) == 0
    assert book.report().count == 0


def test_an_extension_comes_back_after_a_restart_as_far_as_the_balance_goes(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    place(book, "new", 70)
    assert extend(book, "under way", 80) == 30
    assert extend(book, "another", 80, balance=60) == 0, "not below nothing"


def test_a_renewal_that_comes_late_does_not_bring_back_what_has_ended(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock, remembered_ns=_REMEMBERED_NS)
    place(book, "a", 70)
    book.end("acme", "a")
    for _ in range(5):  # its ingress hasn't heard of the end for longer than it is remembered
        clock.now_ns += _REMEMBERED_NS - 1
        book.renew("acme", "a", 70, lease_ns=_LEASE_NS)
    assert book.report().count == 0


def test_a_release_that_overtakes_the_placing_wins(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock)
    book.end("acme", "a")
    assert place(book, "a", 70) == "busy"
    assert book.report().count == 0


def test_a_full_book_is_busy_and_forgets_the_oldest_ends_first(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock, most_holds=2, most_remembered=2)
    assert [place(book, each, 1) for each in "abc"] == ["placed", "placed", "busy"]
    assert place(book, "a", 2) == "placed", "it is there already"
    book.renew("acme", "c", 1, lease_ns=_LEASE_NS)
    assert book.held_usd_picos("acme") == 2 + 1
    for each in "abc":
        book.end("acme", each)
    for each, held in (("a", 7), ("b", 7), ("c", 7)):
        book.renew("acme", each, 7, lease_ns=_LEASE_NS)
        assert book.held_usd_picos("acme") == held


def test_what_ended_early_leaves_nothing_behind_that_grows(clock: Clock) -> None:
    book = HoldBook(monotonic_ns=clock, most_remembered=10)
    for number in range(5000):
        place(book, f"{number}", 1)
        book.end("acme", f"{number}")
    assert len(book._ends) < 2000
    assert len(book._ended) == 10
