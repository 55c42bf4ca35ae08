"""Money that comes in and goes back, and credits: values only. Amounts are in pico-USD."""

from dataclasses import dataclass
from typing import Final, Literal

PaymentKind = Literal["top-up", "refund", "sla-credit", "goodwill-credit"]
CreditKind = Literal["sla", "goodwill"]
MOST_USD_PICOS: Final = 10**6 * 10**12
"""One payment's: a million dollars. A balance of nine such is what a 64-bit count of pico-USD holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A top-up, a refund or a credit, which the books have under ``payment_id``.

    ``reference`` is the provider's name for it, or whatever the operator entered it by; a refund has none until its
    provider took it (``finished``). A refund names the top-up that it ``refunds``, and ``is_cancelled`` when the
    provider refused it and the books have it undone. ``refunded_usd_picos`` is what went back of a top-up, refunds
    under way included.
    """

    payment_id: str
    account: str
    kind: PaymentKind
    usd_picos: int
    provider: str | None
    reference: str | None
    refunds: str | None
    reason: str | None
    created_unix_ns: int
    is_cancelled: bool = False
    refunded_usd_picos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recharge:
    """When the balance is below the threshold, charge this much to the customer that the provider knows by the
    reference.
    """

    account: str
    threshold_usd_picos: int
    amount_usd_picos: int
    provider: str
    customer_reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DueRecharge:
    """A recharge whose time has come. ``top_ups`` are those that the account has had so far.

    Account and number name the charge: tried again by whomever, it is the same one until it is entered.
    """

    recharge: Recharge
    balance_usd_picos: int
    top_ups: int
