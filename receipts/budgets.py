"""Energy budgets: how much a key, or a workload, may draw in an hour, a day or a month; and the windows' bounds."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

BudgetKind = Literal["key", "workload"]
BudgetWindow = Literal["hour", "day", "month"]
BUDGET_KINDS: Final[tuple[BudgetKind, ...]] = get_args(BudgetKind)
BUDGET_WINDOWS: Final[tuple[BudgetWindow, ...]] = get_args(BudgetWindow)
MOST_BUDGETS: Final = 1000
"""Of one account: all budgets of all accounts are in the memory of the ledger's process."""

_NS_PER_S: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most so many microjoules in each window of the UTC calendar, for what was billed to one key or workload.

    ``subject`` is the key's id or the workload's name. A request is let in while its key and its workload have drawn
    less: what is under way isn't counted, so a window ends over its budget by that much at most.
    """

    account: str
    kind: BudgetKind
    subject: str
    window: BudgetWindow
    microjoules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUse:
    """A budget, what was drawn of it in the present window, and when that window ends, in ns since 1970."""

    budget: Budget
    used_microjoules: int
    window_ends_unix_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A window: from its first nanosecond to just before ``end_unix_ns``."""

    start_unix_ns: int
    end_unix_ns: int


def window_at(window: BudgetWindow, unix_ns: int) -> Span:
    """The calendar hour, day or month, in UTC, that a moment of this era lies in."""
    moment = datetime.fromtimestamp(unix_ns // _NS_PER_S, UTC)
    start = moment.replace(minute=0, second=0, microsecond=0)
    if window == "hour":
        end = start + timedelta(hours=1)
    elif window == "day":
        start = start.replace(hour=0)
        end = start + timedelta(days=1)
    else:
        start = start.replace(hour=0, day=1)
        end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return Span(start_unix_ns=int(start.timestamp()) * _NS_PER_S, end_unix_ns=int(end.timestamp()) * _NS_PER_S)
