"""Holds of the requests that an ingress has under way: placed with the ledger, renewed until they end.

A ledger that was restarted has no holds: it gets them with the next renewal, and at once when its answer to a placing
shows that it is another's, which is then asked for anew. What other ingresses place until their own renewal may count
on the same balance, and repeat a request that is under way here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Protocol
from weakref import WeakValueDictionary

from receipts.holds import Admission, HoldAnswer, HoldWanted, Renewal
from serve.errors import RequestRefused
from serve.messages import Allowance
from serve.payments.money import picos_to_usd

LEASE_S = 30.0
"""How long a hold outlives an ingress that died; a ledger may be away for two thirds of it and lose none."""

_RENEWALS_PER_LEASE = 3
_RETRY_AFTER_S = 5

_LOG = logging.getLogger(__name__)


class HoldLedger(Protocol):
    """Where balances are. Calls may raise whatever keeps the ledger from answering; then nothing is known of them."""

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        """As `receipts.ledger_holds.LedgerHolds.place`."""

    async def renew(self, holds: Sequence[Renewal], lease_s: float) -> None:
        """As `LedgerActor.renew_holds`."""

    def release(self, account: str, request_id: str) -> None:
        """As `LedgerActor.release_hold`, not waited for; where it is lost, the lease's end does it."""


class Holds:
    """Places holds, and renews those that are open every third of a lease in one call.

    A hold is open for as long as its `Hold` is in use: one that is dropped without a word isn't renewed any more.
    """

    def __init__(
        self,
        ledger: HoldLedger,
        *,
        lease_s: float = LEASE_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._lease_s = lease_s
        self._sleep = sleep
        self._open: WeakValueDictionary[str, Hold] = WeakValueDictionary()
        self._renewing: asyncio.Task[None] | None = None
        self._book_began_ns: int | None = None
        self._telling = asyncio.Lock()

    @property
    def lease_s(self) -> float:
        """How long a hold lasts that nobody renews."""
        return self._lease_s

    async def place(self, account: str, request_id: str, usd_picos: int, admission: Admission) -> "Hold":
        """Hold so much of the account's balance for this request, if it may come in by its ``admission``.

        Raises:
            RequestRefused: 401 when the key isn't live any more, 402 when the balance doesn't cover it, 409 when its
                idempotency key is another request's, 429 when an energy budget is drawn, 503 when the ledger takes
                no new request now.
        """
        wanted = HoldWanted(
            account=account,
            request_id=request_id,
            usd_picos=usd_picos,
            lease_s=self._lease_s,
            key_sha256=admission.key_sha256,
            api_key_id=admission.api_key_id,
            workload=admission.workload,
            idempotency_sha256=admission.idempotency_sha256,
        )
        try:
            answer = await self._place(wanted)
        except BaseException:
            # It may be placed all the same: the answer was lost, or the client went without waiting for it.
            self._ledger.release(account, request_id)
            raise
        if answer.outcome != "placed":
            raise _refusal(usd_picos, answer)
        hold = self._open[request_id] = Hold(
            self, account, request_id, usd_picos, idempotency_sha256=admission.idempotency_sha256
        )
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew_while_open())
        return hold

    async def _place(self, wanted: HoldWanted) -> HoldAnswer:
        """The ledger's answer; by a new book that of when it had all which is open here."""
        answer = await self._ledger.place(wanted)
        if answer.book_began_ns == self._book_began_ns:
            return answer
        async with self._telling:
            if answer.book_began_ns != self._book_began_ns and await self._renew():
                self._book_began_ns = answer.book_began_ns
        if not self._open:
            return answer
        again = await self._ledger.place(wanted)
        if answer.outcome == "placed" != again.outcome:
            self._ledger.release(wanted.account, wanted.request_id)
        return again

    def release(self, hold: "Hold") -> None:
        """As `Hold.release`."""
        if self._open.pop(hold.request_id, None) is not None:
            self._ledger.release(hold.account, hold.request_id)

    def let_go(self, hold: "Hold") -> None:
        """As `Hold.let_go`."""
        self._open.pop(hold.request_id, None)

    async def _renew_while_open(self) -> None:
        pause_s = self._lease_s / _RENEWALS_PER_LEASE
        while self._open:
            await self._sleep(pause_s)
            is_done = await self._renew()
            pause_s = self._lease_s / (_RENEWALS_PER_LEASE if is_done else _RENEWALS_PER_LEASE**2)

    async def _renew(self) -> bool:
        # Values only: what is referred to while it waits would never be dropped.
        holds = [
            Renewal(hold.account, hold.request_id, hold.usd_picos, hold.idempotency_sha256)
            for hold in self._open.values()
        ]
        if not holds:
            return True
        try:
            await self._ledger.renew(holds, self._lease_s)
        except Exception as away:  # noqa: BLE001 - whatever it was, the next renewal may succeed
            _LOG.warning("%d holds weren't renewed, trying again: %s", len(holds), type(away).__name__)
            return False
        return True


class Hold:
    """One request's hold: `release` it when the request will cost nothing, or `let_go` of it. Both may come twice.

    A hold that was let go of may lapse before the charge comes, where its settlement waits longer than a lease at a
    meter. While the ledger stores nothing it places no hold either: what an account may then end below zero is what
    it had under way, all of which it could pay when it began.
    """

    def __init__(
        self,
        holds: Holds,
        account: str,
        request_id: str,
        usd_picos: int,
        *,
        idempotency_sha256: str | None,
    ) -> None:
        self._holds = holds
        self.account = account
        self.request_id = request_id
        self.usd_picos = usd_picos
        self.idempotency_sha256 = idempotency_sha256
        self._is_charged_later = False

    def allowance(self, usd_per_kwh: float) -> Allowance:
        """What an attempt may cost before the hold has to be extended, at its pool's price."""
        return Allowance(
            account=self.account, usd_picos=self.usd_picos, usd_per_kwh=usd_per_kwh, lease_s=self._holds.lease_s
        )

    def expect_charge(self) -> None:
        """An attempt failed that may be charged all the same: a release is no more than a letting go from now on."""
        self._is_charged_later = True

    def release(self) -> None:
        """It ends now."""
        if self._is_charged_later:
            self.let_go()
        else:
            self._holds.release(self)

    def let_go(self) -> None:
        """It ends with the request's receipt, or with its lease if there won't be one."""
        self._holds.let_go(self)


def _refusal(usd_picos: int, answer: HoldAnswer) -> RequestRefused:
    match answer.outcome:
        case "unknown key":
            return RequestRefused(HTTPStatus.UNAUTHORIZED, "the API key was revoked, or has expired")
        case "repeated":
            return RequestRefused(
                HTTPStatus.CONFLICT,
                f"the idempotency key is that of an earlier request, with the receipt {answer.first_receipt_id}; its "
                "answer was not kept: send a new key to have it answered anew",
                "Idempotency-Key",
                receipt_id=answer.first_receipt_id,
            )
        case "over budget":
            return RequestRefused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{answer.reason}; try again when the next begins, or raise the budget",
                retry_after_s=answer.retry_after_s,
            )
        case "insufficient":
            return RequestRefused(HTTPStatus.PAYMENT_REQUIRED, _too_little(usd_picos, answer))
        case _:
            return RequestRefused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"the ledger takes no new request now: {answer.reason}; try again later",
                retry_after_s=_RETRY_AFTER_S,
            )


def _too_little(usd_picos: int, answer: HoldAnswer) -> str:
    balance, held = answer.balance_usd_picos or 0, answer.held_usd_picos or 0
    return (
        f"this request can cost up to {_usd(usd_picos)}; the balance of {_usd(balance)}, of which {_usd(held)} is held "
        "for requests under way, doesn't cover it: ask for fewer tokens with max_tokens"
        f"{', or wait for those requests' if held else ''}"
    )


def _usd(usd_picos: int) -> str:
    """Exact to the pico-USD, which is what it is counted in."""
    return f"{'-' if usd_picos < 0 else ''}${picos_to_usd(abs(usd_picos))}"
