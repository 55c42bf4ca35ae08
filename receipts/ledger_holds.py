"""Holds against the ledger's own balances: what the ledger actor answers to an ingress before a request may run."""

import math
from collections.abc import Sequence

from receipts.budgets import BudgetUse
from receipts.holds import AccountBalance, HoldAnswer, HoldBook, HoldOutcome, HoldsReport, HoldWanted, Renewal
from receipts.ledger_writer import LedgerWriter
from receipts.standing import Standing

_NS_PER_S = 10**9
_MICROJOULES_PER_JOULE = 10**6


class LedgerHolds:
    """Places, renews and releases holds; in the event loop of its writer, which ends them with their receipts."""

    def __init__(self, writer: LedgerWriter, book: HoldBook, *, most_unsigned: int) -> None:
        """``book`` is the writer's too. With ``most_unsigned`` receipts unsigned, nothing new is let in."""
        self._writer = writer
        self._book = book
        self._most_unsigned = most_unsigned

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        """As `HoldBook.place`, for a request whose key is live and whose budgets aren't drawn; it waits for no commit.

        Only where the request has an idempotency key is the database asked, whether another one with it has its
        receipt; such keys are kept for ever. One whose request ended without a receipt is free again.

        Busy past the bound of unsigned receipts, and while the database takes no commit: what has run then waits at
        its meter to be charged, and its hold may lapse before.
        """
        unsigned = self._writer.backlog.count
        if unsigned >= self._most_unsigned:
            return self._refused("busy", f"{unsigned} receipts wait for their signatures")
        if not self._writer.is_storing:
            return self._refused("busy", "its database stores nothing now")
        # Nothing may happen between this and the placing: the balance must be the one that the book's holds are beside.
        standing = await self._writer.standing(wanted.account, wanted.key_sha256, wanted.api_key_id, wanted.workload)
        if not standing.has_live_key:
            return self._refused("unknown key")
        answer = self._place(wanted, standing)
        if wanted.idempotency_sha256 is None or answer.outcome in ("busy", "repeated"):
            return answer
        return await self._unless_repeated(wanted, wanted.idempotency_sha256, answer)

    def _place(self, wanted: HoldWanted, standing: Standing) -> HoldAnswer:
        first = self._book.under_way(wanted.account, wanted.idempotency_sha256)
        if first not in (None, wanted.request_id):
            return self._refused("repeated", first_receipt_id=f"rcpt_{first}")
        if standing.overdrawn is not None:
            wait_ns = standing.overdrawn.window_ends_unix_ns - standing.now_unix_ns
            return self._refused(
                "over budget", _drawn(standing.overdrawn), retry_after_s=max(1, math.ceil(wait_ns / _NS_PER_S))
            )
        return self._book.place(
            wanted.account,
            wanted.request_id,
            wanted.usd_picos,
            balance_usd_picos=standing.balance_usd_picos,
            lease_ns=_nanoseconds(wanted.lease_s),
            idempotency_sha256=wanted.idempotency_sha256,
        )

    async def _unless_repeated(self, wanted: HoldWanted, idempotency_sha256: str, answer: HoldAnswer) -> HoldAnswer:
        """The answer, unless another request with the key has its receipt.

        The hold is in the book meanwhile: whoever comes with the same key now is told so. And a request that left the
        book before, with its receipt, is one that the database has.
        """
        try:
            first = await self._writer.call(lambda ledger: ledger.receipt_of_repeat(wanted.account, idempotency_sha256))
        except BaseException:
            self._book.end(wanted.account, wanted.request_id)
            raise
        if first in (None, f"rcpt_{wanted.request_id}"):
            return answer
        self._book.end(wanted.account, wanted.request_id)
        return self._refused("repeated", first_receipt_id=first)

    def _refused(
        self,
        outcome: HoldOutcome,
        reason: str | None = None,
        *,
        first_receipt_id: str | None = None,
        retry_after_s: int | None = None,
    ) -> HoldAnswer:
        return HoldAnswer(
            outcome=outcome,
            book_began_ns=self._book.began_ns,
            balance_usd_picos=None,
            held_usd_picos=None,
            reason=reason,
            first_receipt_id=first_receipt_id,
            retry_after_s=retry_after_s,
        )

    def renew(self, holds: Sequence[Renewal], lease_s: float) -> None:
        """Renew an ingress's or a replica's holds, each as `HoldBook.renew`."""
        for account, request_id, usd_picos, idempotency_sha256 in holds:
            self._book.renew(
                account,
                request_id,
                usd_picos,
                lease_ns=_nanoseconds(lease_s),
                idempotency_sha256=idempotency_sha256,
            )

    async def extend(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> list[int]:
        """Extend a replica's holds, each its account, request id and wanted amount in pico-USD; as `HoldBook.extend`.

        What has begun may go on while nothing new is let in: then too it runs on what its account can pay.
        """
        extended = []
        for account, request_id, usd_picos in holds:
            # Nothing may happen between the two, as in `place`.
            balance = await self._writer.balance_usd_picos(account)
            extended.append(
                self._book.extend(
                    account, request_id, usd_picos, balance_usd_picos=balance, lease_ns=_nanoseconds(lease_s)
                )
            )
        return extended

    def release(self, account: str, request_id: str) -> None:
        """The request will cost nothing."""
        self._book.end(account, request_id)

    async def balance(self, account: str) -> AccountBalance:
        """The account's balance, and what its live holds set aside of it."""
        balance = await self._writer.balance_usd_picos(account)
        return AccountBalance(balance_usd_picos=balance, held_usd_picos=self._book.held_usd_picos(account))

    def report(self) -> HoldsReport:
        """As `HoldBook.report`."""
        return self._book.report()


def _drawn(use: BudgetUse) -> str:
    budget = use.budget
    return (
        f"the {budget.kind} {budget.subject} has drawn {use.used_microjoules / _MICROJOULES_PER_JOULE:g} J of its "
        f"{budget.microjoules / _MICROJOULES_PER_JOULE:g} J for this {budget.window}"
    )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NS_PER_S)
