"""Top-ups by transfer: a person sees the money arrive, and the mesh's operator enters it."""

from typing import Final

from serve.errors import PaymentRefused, WebhookRefused
from serve.payments.protocol import Charge, Paid, RefundFailed, RefundWanted, WhereToPay

MANUAL: Final = "manual"


class ManualPayments:
    """The provider where people move the money. ``instructions`` tells customers where to."""

    name = MANUAL
    smallest_usd_picos = 1

    def __init__(self, instructions: str) -> None:
        self._instructions = instructions

    async def start(self, account: str, usd_picos: int, *, save: bool) -> WhereToPay:  # noqa: ARG002 - the protocol's
        """The instructions, and what to write on the transfer.

        Raises:
            PaymentRefused: nothing can be saved for recharges.
        """
        if save:
            raise PaymentRefused("this mesh is paid by transfer: there is nothing to save for recharges")
        return WhereToPay(pay_url=None, instructions=f"{self._instructions} Write the account's name on it: {account}")

    async def confirm(self, body: bytes, signature: str) -> Paid | RefundFailed | None:  # noqa: ARG002
        """Nobody may claim that money arrived.

        Raises:
            WebhookRefused: always.
        """
        raise WebhookRefused("this mesh takes no payments by webhook")

    async def refund(self, wanted: RefundWanted) -> str:  # noqa: ARG002
        """Whoever sends it back enters it.

        Raises:
            PaymentRefused: always.
        """
        raise PaymentRefused("a transfer is sent back by the operator of this mesh")

    async def saved_means(self, reference: str) -> str | None:  # noqa: ARG002
        """None, always."""
        return None

    async def charge(self, wanted: Charge) -> Paid | None:  # noqa: ARG002
        """Nobody is there to transfer it.

        Raises:
            PaymentRefused: always.
        """
        raise PaymentRefused("this mesh is paid by transfer")
