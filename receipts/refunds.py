"""Refunds beside holds: what requests under way may still cost is no money to send back."""

from itertools import count

from receipts.errors import LedgerError
from receipts.holds import HoldBook
from receipts.ledger_writer import LedgerWriter
from receipts.payments import Payment

_LEASE_NS = 60 * 10**9


class Refunds:
    """Begins refunds, each with its amount held until it is off the balance; in the event loop of its writer."""

    def __init__(self, writer: LedgerWriter, book: HoldBook) -> None:
        """``book`` is the writer's too."""
        self._writer = writer
        self._book = book
        self._numbers = count(1)

    async def refundable_usd_picos(self, account: str, payment_id: str) -> int:
        """As `Ledger.refundable_usd_picos`, less what is held for requests under way beside the balance."""
        left = await self._writer.call(lambda ledger: ledger.refundable_usd_picos(account, payment_id))
        balance = await self._writer.balance_usd_picos(account)
        return max(0, min(left, balance - self._book.held_usd_picos(account)))

    async def begin(self, account: str, payment_id: str, usd_picos: int, reference: str | None = None) -> Payment:
        """As `Ledger.begin_refund`.

        Raises:
            LedgerError: as there, and where what is held leaves less than the amount.
        """
        # No request's id: those are hexadecimal. Nothing may happen between the balance and the placing.
        hold_id = f"refund {next(self._numbers)}"
        balance = await self._writer.balance_usd_picos(account)
        held = self._book.place(account, hold_id, max(usd_picos, 0), balance_usd_picos=balance, lease_ns=_LEASE_NS)
        if held.outcome != "placed":
            free = max(0, balance - (held.held_usd_picos or 0))
            raise LedgerError(held.reason or f"{free} pico-USD are not held for requests under way, which is less")
        try:
            return await self._writer.call(
                lambda ledger: ledger.begin_refund(account, payment_id, usd_picos, reference)
            )
        finally:
            self._book.end(account, hold_id)
