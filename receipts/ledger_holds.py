"""Holds against the ledger's own balances: what the ledger actor answers to an ingress before a request may run."""

from collections.abc import Sequence

from receipts.holds import HoldAnswer, HoldBook, HoldsReport
from receipts.ledger_writer import LedgerWriter

_NS_PER_S = 10**9


class LedgerHolds:
    """Places, renews and releases holds; in the event loop of its writer, which ends them with their receipts."""

    def __init__(self, writer: LedgerWriter, book: HoldBook, *, most_unsigned: int) -> None:
        """``book`` is the writer's too. With ``most_unsigned`` receipts unsigned, nothing new is let in."""
        self._writer = writer
        self._book = book
        self._most_unsigned = most_unsigned

    async def place(self, account: str, request_id: str, usd_picos: int, lease_s: float) -> HoldAnswer:
        """As `HoldBook.place`; no commit under way is waited for.

        Busy past the bound of unsigned receipts, and while the database takes no commit: what has run then waits at
        its meter to be charged, and its hold may lapse before.
        """
        unsigned = self._writer.backlog.count
        if unsigned >= self._most_unsigned:
            return self._busy(f"{unsigned} receipts wait for their signatures")
        if not self._writer.is_storing:
            return self._busy("its database stores nothing now")
        # Nothing may happen between the two: the balance must be the one that the book's holds are beside.
        balance = await self._writer.balance_usd_picos(account)
        return self._book.place(
            account, request_id, usd_picos, balance_usd_picos=balance, lease_ns=_nanoseconds(lease_s)
        )

    def _busy(self, reason: str) -> HoldAnswer:
        return HoldAnswer(
            outcome="busy",
            book_began_ns=self._book.began_ns,
            balance_usd_picos=None,
            held_usd_picos=None,
            reason=reason,
        )

    def renew(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> None:
        """Renew an ingress's holds, each its account, request id and amount in pico-USD; as `HoldBook.renew`."""
        for account, request_id, usd_picos in holds:
            self._book.renew(account, request_id, usd_picos, lease_ns=_nanoseconds(lease_s))

    def release(self, account: str, request_id: str) -> None:
        """The request will cost nothing."""
        self._book.end(account, request_id)

    def report(self) -> HoldsReport:
        """As `HoldBook.report`."""
        return self._book.report()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NS_PER_S)
