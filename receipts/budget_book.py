"""The energy budgets of all accounts, and what was drawn of those that were asked for, in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from sqlalchemy import Connection, func, insert, select

from receipts.budgets import (
    BUDGET_KINDS,
    BUDGET_WINDOWS,
    MOST_BUDGETS,
    Budget,
    BudgetKind,
    BudgetUse,
    BudgetWindow,
    window_at,
)
from receipts.errors import LedgerError
from receipts.ledger_books import halves, joined
from receipts.ledger_schema import budgets, receipts

_COLUMNS: Final[Mapping[BudgetKind, str]] = {"key": "api_key_id", "workload": "workload_name"}

_Subject = tuple[str, BudgetKind, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    start_unix_ns: int
    microjoules: int


class BudgetBook:
    """Which budgets there are, and what their subjects have drawn. Written by one thread, read by any.

    What was drawn is read at the first use of a budget, and added up from then on as receipts are committed.
    """

    def __init__(self) -> None:
        self._budgets: dict[_Subject, dict[BudgetWindow, Budget]] | None = None
        self._drawn: dict[_Subject, dict[BudgetWindow, _Drawn]] = {}

    def read(
        self, connection: Connection, account: str, api_key_id: str | None, workload: str | None, now_ns: int
    ) -> None:
        """Read what `overdrawn` needs, of these."""
        self.read_budgets(connection)
        self._read_drawn(connection, account, tuple(_subjects(account, api_key_id, workload)), now_ns)

    def read_all(self, connection: Connection, account: str, now_ns: int) -> None:
        """Read what was drawn of all the account's budgets: in six walks along its receipts at most."""
        self.read_budgets(connection)
        subjects = tuple(subject for subject in self._budgets or {} if subject[0] == account)
        self._read_drawn(connection, account, subjects, now_ns)

    def _read_drawn(self, connection: Connection, account: str, subjects: Sequence[_Subject], now_ns: int) -> None:
        known = self._budgets or {}
        for kind, window in product(BUDGET_KINDS, BUDGET_WINDOWS):
            missing = [
                subject
                for subject in subjects
                if subject[1] == kind
                and window in known.get(subject, {})
                and window not in self._drawn.get(subject, {})
            ]
            if not missing:
                continue
            start_unix_ns = window_at(window, now_ns).start_unix_ns
            sums = _sums(connection, account, kind, [name for _, _, name in missing], start_unix_ns)
            for subject in missing:
                drawn = _Drawn(start_unix_ns=start_unix_ns, microjoules=sums.get(subject[2], 0))
                self._drawn[subject] = {**self._drawn.get(subject, {}), window: drawn}

    def read_budgets(self, connection: Connection) -> None:
        """Read which budgets there are, if it isn't known."""
        if self._budgets is not None:
            return
        newest = select(func.max(budgets.c.position)).group_by(
            budgets.c.account, budgets.c.kind, budgets.c.subject, budgets.c.period
        )
        rows = connection.execute(select(budgets).where(budgets.c.position.in_(newest)).order_by(budgets.c.position))
        found: dict[_Subject, dict[BudgetWindow, Budget]] = {}
        for row in rows:
            if row.microjoules is not None:
                found.setdefault((row.account, row.kind, row.subject), {})[row.period] = Budget(
                    account=row.account,
                    kind=row.kind,
                    subject=row.subject,
                    window=row.period,
                    microjoules=row.microjoules,
                )
        self._budgets = found

    def of_account(self, account: str) -> tuple[Budget, ...]:
        """The account's budgets, in order of kind, subject and window; empty while none are known."""
        found = [
            each
            for (owner, _, _), windows in (self._budgets or {}).items()
            if owner == account
            for each in windows.values()
        ]
        return tuple(sorted(found, key=lambda each: (each.kind, each.subject, each.window)))

    def uses(self, account: str, now_ns: int) -> tuple[BudgetUse, ...]:
        """What the account's budgets have in the window of that moment; in the order of `of_account`."""
        return tuple(
            use
            for each in self.of_account(account)
            for use in _uses({each.window: each}, self._drawn.get((account, each.kind, each.subject), {}), now_ns)
        )

    def overdrawn(
        self, account: str, api_key_id: str | None, workload: str | None, now_ns: int
    ) -> tuple[bool, BudgetUse | None]:
        """Whether it is known without another `read`, and the drawn budget that keeps them out longest; None when
        they may come in.
        """
        known, drawn = self._budgets, self._drawn  # once: the writing thread may forget them meanwhile
        if known is None:
            return False, None
        uses: list[BudgetUse] = []
        for subject in _subjects(account, api_key_id, workload):
            budgets_of, drawn_of = known.get(subject, {}), drawn.get(subject, {})
            if not budgets_of.keys() <= drawn_of.keys():
                return False, None
            uses += _uses(budgets_of, drawn_of, now_ns)
        over = [each for each in uses if each.used_microjoules >= each.budget.microjoules]
        return True, max(over, key=lambda each: each.window_ends_unix_ns, default=None)

    def committed(self, rows: Sequence[Mapping[str, object]]) -> None:
        """These receipts were stored; rows of their table."""
        for row in rows:
            account, microjoules, end_unix_ns = row["account"], row["energy_microjoules"] or 0, row["end_unix_ns"]
            assert isinstance(account, str), "a receipt has an account"
            assert isinstance(microjoules, int), "energy is counted"
            assert isinstance(end_unix_ns, int), "time is counted"
            for kind, column in _COLUMNS.items():
                name = row[column]
                if isinstance(name, str):
                    self._add((account, kind, name), end_unix_ns, microjoules)

    def entered(self, budget: Budget) -> None:
        """This budget was stored."""
        subject = (budget.account, budget.kind, budget.subject)
        if self._budgets is not None:
            self._budgets[subject] = {**self._budgets.get(subject, {}), budget.window: budget}

    def removed(self, budget: Budget) -> None:
        """This one was taken away."""
        subject = (budget.account, budget.kind, budget.subject)
        windows = {**(self._budgets or {}).get(subject, {})}
        windows.pop(budget.window, None)
        if self._budgets is not None:
            self._budgets.pop(subject, None)
            if windows:
                self._budgets[subject] = windows

    def forget(self) -> None:
        """What is in the ledger is not certain."""
        self._budgets = None
        self._drawn = {}

    def _add(self, subject: _Subject, end_unix_ns: int, microjoules: int) -> None:
        drawn = self._drawn.get(subject)
        if drawn is None:
            return
        added = dict(drawn)
        for window, latest in drawn.items():
            start_unix_ns = window_at(window, end_unix_ns).start_unix_ns
            if start_unix_ns > latest.start_unix_ns:
                added[window] = _Drawn(start_unix_ns=start_unix_ns, microjoules=microjoules)
            elif start_unix_ns == latest.start_unix_ns:
                added[window] = _Drawn(start_unix_ns=start_unix_ns, microjoules=latest.microjoules + microjoules)
        self._drawn[subject] = added


def insert_budget(connection: Connection, budget: Budget, now_ns: int, *, is_removed: bool = False) -> None:
    """Store a budget as it is from now on, or that there is none any more."""
    row = {
        "account": budget.account,
        "kind": budget.kind,
        "subject": budget.subject,
        "period": budget.window,
        "microjoules": None if is_removed else budget.microjoules,
        "created_unix_ns": now_ns,
    }
    connection.execute(insert(budgets), row)


def check_room(known: Sequence[Budget], budget: Budget) -> None:
    """See that the account may have one budget more.

    Raises:
        LedgerError: it has as many as it may.
    """
    places = {(each.kind, each.subject, each.window) for each in known}
    if (budget.kind, budget.subject, budget.window) not in places and len(places) >= MOST_BUDGETS:
        raise LedgerError(f"the account has {MOST_BUDGETS} budgets already: remove one first")


def _subjects(account: str, api_key_id: str | None, workload: str | None) -> Iterator[_Subject]:
    if api_key_id is not None:
        yield account, "key", api_key_id
    if workload is not None:
        yield account, "workload", workload


def _uses(
    budgets_of: Mapping[BudgetWindow, Budget], drawn: Mapping[BudgetWindow, _Drawn], now_ns: int
) -> Iterator[BudgetUse]:
    """Of one subject."""
    for window, budget in budgets_of.items():
        span, latest = window_at(window, now_ns), drawn.get(window)
        is_of_now = latest is not None and latest.start_unix_ns >= span.start_unix_ns
        yield BudgetUse(
            budget=budget,
            used_microjoules=latest.microjoules if latest is not None and is_of_now else 0,
            window_ends_unix_ns=span.end_unix_ns,
        )


def _sums(
    connection: Connection, account: str, kind: BudgetKind, names: Sequence[str], start_unix_ns: int
) -> dict[str, int]:
    """What each of these has drawn since then, in microjoules; those that drew nothing are left out."""
    column = receipts.c[_COLUMNS[kind]]
    query = (
        select(column, *halves(receipts.c.energy_microjoules))
        .where(receipts.c.account == account, receipts.c.end_unix_ns >= start_unix_ns, column.in_(names))
        .group_by(column)
    )
    return {name: joined(high, low) for name, high, low in connection.execute(query)}
