"""Energy budgets: their windows, what counts, and that memory and database agree."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opened_ledger import opened

from receipts.budgets import BUDGET_WINDOWS, MOST_BUDGETS, Budget, BudgetKind, BudgetUse, BudgetWindow, window_at
from receipts.errors import LedgerError
from receipts.ledger import Ledger

_JOULES_MICRO = 310_000
"""What a settlement of the tests bills."""
_ERA_NS = st.integers(0, 4_102_444_800 * 10**9 - 1)
_KEY = f"key_{'0' * 15}1"


class Clock:
    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def moment(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.fixture
def clock() -> Clock:
    return Clock(moment("2026-06-23T13:05:00"))


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    ledger = opened(ledger_url, wall_clock_ns=clock)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


def budget(
    microjoules: int, window: BudgetWindow = "day", kind: BudgetKind = "workload", subject: str = "etl"
) -> Budget:
    return Budget(account="acme", kind=kind, subject=subject, window=window, microjoules=microjoules)


def overdrawn(ledger: Ledger, workload: str | None = "etl", key_id: str = _KEY) -> BudgetUse | None:
    return ledger.standing("acme", bytes(32), key_id, workload).overdrawn


class TestWindows:
    @pytest.mark.parametrize(
        ("window", "now", "start", "end"),
        [
            ("hour", "2026-06-23T13:05:09", "2026-06-23T13:00:00", "2026-06-23T14:00:00"),
            ("day", "2026-06-23T00:00:00", "2026-06-23T00:00:00", "2026-06-24T00:00:00"),
            ("month", "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
            ("month", "2028-02-29T12:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        ],
    )
    def test_they_are_the_calendars(self, window: BudgetWindow, now: str, start: str, end: str) -> None:
        span = window_at(window, moment(now) + 999_999_999)
        assert (span.start_unix_ns, span.end_unix_ns) == (moment(start), moment(end))

    @given(st.sampled_from(BUDGET_WINDOWS), _ERA_NS)
    def test_each_moment_lies_in_one_and_the_next_begins_where_it_ends(self, window: BudgetWindow, now_ns: int) -> None:
        span = window_at(window, now_ns)
        assert span.start_unix_ns <= now_ns < span.end_unix_ns
        assert window_at(window, span.start_unix_ns) == window_at(window, span.end_unix_ns - 1) == span
        assert window_at(window, span.end_unix_ns).start_unix_ns == span.end_unix_ns


class TestDrawing:
    def settled(self, ledger: Ledger, clock: Clock, make_settlement, number: int, **changes) -> None:
        started = {"start_unix_ns": clock.now_ns, "placement": None}
        ledger.settle([make_settlement(number, **{**started, **changes})])

    def test_a_budget_lets_in_while_less_was_drawn(self, ledger: Ledger, clock: Clock, make_settlement) -> None:
        ledger.set_budget(budget(2 * _JOULES_MICRO))
        for number in (1, 2):
            assert overdrawn(ledger) is None
            self.settled(ledger, clock, make_settlement, number, workload_name="etl")
        assert overdrawn(ledger) == BudgetUse(
            budget=budget(2 * _JOULES_MICRO),
            used_microjoules=2 * _JOULES_MICRO,
            window_ends_unix_ns=moment("2026-06-24T00:00:00"),
        )
        assert overdrawn(ledger, workload="web") is None
        assert overdrawn(ledger, workload=None) is None

    def test_what_was_drawn_before_the_budget_was_set_counts(
        self, ledger: Ledger, clock: Clock, make_settlement
    ) -> None:
        self.settled(ledger, clock, make_settlement, 1, workload_name="etl")
        self.settled(ledger, clock, make_settlement, 2, workload_name="web")
        self.settled(ledger, clock, make_settlement, 3, account="other", workload_name="etl")
        ledger.set_budget(budget(_JOULES_MICRO + 1))
        (use,) = ledger.budgets("acme")
        assert use.used_microjoules == _JOULES_MICRO

    def test_the_next_window_begins_with_nothing(self, ledger: Ledger, clock: Clock, make_settlement) -> None:
        ledger.set_budget(budget(1))
        self.settled(ledger, clock, make_settlement, 1, workload_name="etl")
        assert overdrawn(ledger) is not None
        clock.now_ns = moment("2026-06-24T00:00:00")
        assert overdrawn(ledger) is None
        self.settled(ledger, clock, make_settlement, 2, workload_name="etl")
        assert overdrawn(ledger).used_microjoules == _JOULES_MICRO

    def test_a_receipt_that_comes_late_counts_where_it_ended(
        self, ledger: Ledger, clock: Clock, make_settlement
    ) -> None:
        ledger.set_budget(budget(1))
        assert overdrawn(ledger) is None
        self.settled(
            ledger, clock, make_settlement, 1, workload_name="etl", start_unix_ns=clock.now_ns - 86_400 * 10**9
        )
        assert overdrawn(ledger) is None

    def test_a_key_has_its_own(self, ledger: Ledger, clock: Clock, make_settlement) -> None:
        key_id = ledger.create_key("acme", "").key.key_id
        ledger.set_budget(budget(1, kind="key", subject=key_id))
        self.settled(ledger, clock, make_settlement, 1, api_key_id=_KEY)
        assert overdrawn(ledger, None, key_id) is None
        self.settled(ledger, clock, make_settlement, 2, api_key_id=key_id)
        assert overdrawn(ledger, None, key_id).used_microjoules == _JOULES_MICRO

    def test_of_several_that_are_drawn_the_one_that_ends_last_is_told(
        self, ledger: Ledger, clock: Clock, make_settlement
    ) -> None:
        for window in BUDGET_WINDOWS:
            ledger.set_budget(budget(1, window))
        self.settled(ledger, clock, make_settlement, 1, workload_name="etl")
        assert overdrawn(ledger).budget.window == "month"

    def test_a_ledger_that_is_opened_again_knows_as_much(
        self, ledger: Ledger, ledger_url: str, clock: Clock, make_settlement
    ) -> None:
        ledger.set_budget(budget(10**9, "hour"))
        ledger.set_budget(budget(10**9, "month"))
        assert overdrawn(ledger) is None
        for number in range(1, 6):
            clock.now_ns += 17 * 60 * 10**9
            self.settled(ledger, clock, make_settlement, number, workload_name="etl")
        ledger.set_budget(budget(7, "hour", subject="web"))
        ledger.set_budget(budget(7, "hour", "key", ledger.list_keys("acme")[0].key_id))
        remembered = ledger.budgets("acme")
        ledger.close()
        again = opened(ledger_url, wall_clock_ns=clock)
        assert again.budgets("acme") == remembered
        assert [each.used_microjoules for each in remembered] == [0, 2 * _JOULES_MICRO, 5 * _JOULES_MICRO, 0]
        again.close()

    def test_nothing_is_read_where_all_is_remembered(self, ledger: Ledger) -> None:
        ledger.set_budget(budget(1))
        asked = ("acme", bytes(32), _KEY, "etl")
        assert ledger.cached_standing(*asked) is None
        read = ledger.standing(*asked)
        assert ledger.cached_standing(*asked) == read
        ledger.set_budget(budget(1, "hour"))
        assert ledger.cached_standing(*asked) is None, "of this window nothing was read"


def test_one_that_is_forgotten_while_it_is_looked_up_lets_nothing_in(ledger: Ledger, clock: Clock) -> None:
    """The database fails in the thread that writes, while another reads."""
    ledger.set_budget(budget(0))
    assert overdrawn(ledger) is not None
    book = ledger._budgets

    class Forgetful(dict):
        def get(self, key, default=None):
            book.forget()
            return super().get(key, default)

    assert book._budgets is not None
    book._budgets = Forgetful(book._budgets)
    is_known, use = book.overdrawn("acme", _KEY, "etl", clock.now_ns)
    assert is_known
    assert use is not None
    assert book.overdrawn("acme", _KEY, "etl", clock.now_ns) == (False, None)


def test_a_nothing_budget_lets_nothing_in(ledger: Ledger) -> None:
    ledger.set_budget(budget(0))
    assert overdrawn(ledger) is not None


def test_one_that_is_set_again_or_taken_away_is_so_also_after_a_restart(
    ledger: Ledger, ledger_url: str, clock: Clock
) -> None:
    for each in (budget(1), budget(2), budget(3, "hour"), budget(4, subject="web")):
        ledger.set_budget(each)
    assert ledger.remove_budget("acme", "workload", "etl", "hour")
    assert not ledger.remove_budget("acme", "workload", "etl", "hour")
    expected = [budget(2), budget(4, subject="web")]
    assert [each.budget for each in ledger.budgets("acme")] == expected
    ledger.close()
    again = opened(ledger_url, wall_clock_ns=clock)
    assert [each.budget for each in again.budgets("acme")] == expected
    assert again.remove_budget("acme", "workload", "etl")
    assert [each.budget for each in again.budgets("acme")] == expected[1:]
    again.close()


def test_nobody_sees_or_removes_anothers(ledger: Ledger) -> None:
    ledger.set_budget(budget(1))
    assert ledger.budgets("other") == ()
    assert not ledger.remove_budget("other", "workload", "etl")
    key_id = ledger.create_key("other", "").key.key_id
    with pytest.raises(LedgerError, match="has no key"):
        ledger.set_budget(budget(1, kind="key", subject=key_id))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "model"},
        {"window": "year"},
        {"microjoules": -1},
        {"microjoules": 2**63},
        {"microjoules": True},
        {"subject": ""},
        {"subject": "a b"},
        {"subject": "x" * 129},
        {"kind": "key", "subject": "\0"},
        {"kind": "key", "subject": _KEY},
    ],
)
def test_what_is_no_budget_is_refused(ledger: Ledger, wrong: dict[str, object]) -> None:
    with pytest.raises(LedgerError):
        ledger.set_budget(replace(budget(1), **wrong))  # type: ignore[arg-type]
    assert ledger.budgets("acme") == ()


def test_an_account_has_only_so_many(tmp_path, clock: Clock) -> None:
    ledger = opened(f"sqlite:///{tmp_path}/l.db", wall_clock_ns=clock)
    ledger.create_key("acme", "")
    for number in range(MOST_BUDGETS):
        ledger.set_budget(budget(1, subject=f"w{number}"))
    with pytest.raises(LedgerError, match="1000 budgets"):
        ledger.set_budget(budget(1))
    ledger.set_budget(budget(2, subject="w0"))
    ledger.close()
