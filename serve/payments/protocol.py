"""What the mesh asks of whoever moves money, in its own words."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class WhereToPay:
    """How a customer pays a top-up that was started: a page of the provider's, or in words. One of the two is None."""

    pay_url: str | None
    instructions: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """Money that arrived, in pico-USD. ``reference`` is the provider's name for it, the same however often it says so.

    ``account`` is the one that it was paid for.
    """

    account: str
    usd_picos: int
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundFailed:
    """Money that didn't get back to its source after all; ``refund_id`` is the ledger's name for that refund."""

    account: str
    refund_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundWanted:
    """A part of the payment ``reference`` that is to go back to where it came from, in pico-USD.

    However often one with the same ``refund_id`` is asked for, it is sent once.
    """

    account: str
    reference: str
    usd_picos: int
    refund_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A payment without its customer present: ``means`` is what `PaymentProvider.saved_means` gave.

    However often one with the same ``charge_id`` is asked for, it is paid once.
    """

    account: str
    usd_picos: int
    means: str
    charge_id: str


class PaymentProvider(Protocol):
    """Moves money. All methods wait for the network, and none of them writes to the ledger.

    Each may raise `PaymentUncertain`: the provider didn't answer, and whether it has done it isn't known; the same call
    may be made again. `PaymentRefused` says that nothing was moved, and why, in words for the customer.

    ``name`` is the provider's in the ledger's books; its amounts are multiples of ``smallest_usd_picos``.
    """

    name: str
    smallest_usd_picos: int

    async def start(self, account: str, usd_picos: int, *, save: bool) -> WhereToPay:
        """Begin a top-up; with ``save`` the means of payment is kept at the provider, for charges."""

    async def confirm(self, body: bytes, signature: str) -> Paid | RefundFailed | None:
        """What a webhook's body says, as it came; None where that is nothing to the ledger.

        Raises:
            WebhookRefused: the provider has not signed it, or not lately.
        """

    async def refund(self, wanted: RefundWanted) -> str:
        """Send money back; gives the provider's name for the refund."""

    async def saved_means(self, reference: str) -> str | None:
        """What pays charges, as the payment of this reference saved it; None where it saved nothing."""

    async def charge(self, wanted: Charge) -> Paid | None:
        """Take a payment with saved means; None while it is under way: a webhook tells its end."""
