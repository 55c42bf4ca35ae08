"""All routes of an account: its keys, balance, usage, budgets and money."""

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray.actor import ActorHandle

from serve.authentication import Authentication
from serve.budget_routes import BudgetRoutes
from serve.key_routes import KeyRoutes
from serve.payment_routes import PaymentRoutes
from serve.payments.protocol import PaymentProvider
from serve.recharge_routes import RechargeRoutes
from serve.usage_routes import UsageRoutes


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRoutes:
    """``ledger`` is the ledger actor. Each route asks the ledger for the caller's account alone; what else the
    ``operator_account`` may, the routes say.
    """

    authentication: Authentication
    ledger: ActorHandle[Any]
    provider: PaymentProvider
    operator_account: str

    def add_to(self, app: FastAPI) -> None:
        """Put the routes on the application."""
        KeyRoutes(self.authentication, self.ledger).add_to(app)
        UsageRoutes(self.authentication, self.ledger).add_to(app)
        BudgetRoutes(self.authentication, self.ledger).add_to(app)
        PaymentRoutes(self.authentication, self.ledger, self.provider, self.operator_account).add_to(app)
        RechargeRoutes(self.authentication, self.ledger, self.provider).add_to(app)
