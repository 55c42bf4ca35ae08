"""The energy budgets of all accounts, and what was drawn of those that were asked for, in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, insert, select

from receipts.budgets import MOST_BUDGETS, Budget, BudgetKind, BudgetUse, BudgetWindow, window_at
from receipts.errors import LedgerError
from receipts.ledger_books import exact_total
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

    def knows(self, account: str, api_key_id: str | None, workload: str | None) -> bool:
        """Whether `overdrawn` can tell, without another `read`."""
        known = self._budgets
        return known is not None and all(
            known[subject].keys() <= self._drawn.get(subject, {}).keys()
            for subject in _subjects(account, api_key_id, workload)
            if subject in known
        )

    def read(
        self, connection: Connection, account: str, api_key_id: str | None, workload: str | None, now_ns: int
    ) -> None:
        """Read what `overdrawn` needs, of these."""
        self.read_budgets(connection)
        assert self._budgets is not None, "they were just read"
        for subject in _subjects(account, api_key_id, workload):
            windows, drawn = self._budgets.get(subject, {}), self._drawn.get(subject, {})
            missing = {window: _drawn(connection, subject, window, now_ns) for window in windows if window not in drawn}
            if missing:
                self._drawn[subject] = {**drawn, **missing}

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

    def uses(self, account: str, api_key_id: str | None, workload: str | None, now_ns: int) -> Iterator[BudgetUse]:
        """What the budgets that are about this key and workload have in the window of that moment."""
        for subject in _subjects(account, api_key_id, workload):
            drawn = self._drawn.get(subject, {})
            for window, budget in (self._budgets or {}).get(subject, {}).items():
                span, latest = window_at(window, now_ns), drawn.get(window)
                is_of_now = latest is not None and latest.start_unix_ns >= span.start_unix_ns
                yield BudgetUse(
                    budget=budget,
                    used_microjoules=latest.microjoules if latest is not None and is_of_now else 0,
                    window_ends_unix_ns=span.end_unix_ns,
                )

    def overdrawn(self, account: str, api_key_id: str | None, workload: str | None, now_ns: int) -> BudgetUse | None:
        """The drawn budget that keeps them out longest; None when they may come in."""
        drawn = [
            each
            for each in self.uses(account, api_key_id, workload, now_ns)
            if each.used_microjoules >= each.budget.microjoules
        ]
        return max(drawn, key=lambda each: each.window_ends_unix_ns, default=None)

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


def _drawn(connection: Connection, subject: _Subject, window: BudgetWindow, now_ns: int) -> _Drawn:
    account, kind, name = subject
    start_unix_ns = window_at(window, now_ns).start_unix_ns
    microjoules = exact_total(
        connection,
        receipts.c.energy_microjoules,
        (receipts.c.account == account)
        & (receipts.c.end_unix_ns >= start_unix_ns)
        & (receipts.c[_COLUMNS[kind]] == name),
    )
    return _Drawn(start_unix_ns=start_unix_ns, microjoules=microjoules)
