"""What the ledger knows of who sends a request, as of one moment."""

from dataclasses import dataclass

from receipts.budgets import BudgetUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is left, in pico-USD; whether the request's key is live and the account's; and a budget that is drawn."""

    balance_usd_picos: int
    has_live_key: bool
    overdrawn: BudgetUse | None
    now_unix_ns: int
