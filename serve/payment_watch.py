"""Recharges accounts that ask for it, and finishes refunds that were left: beside the routes, in every ingress.

Whichever ingress does it, and however often, each is paid once: by its name, which the provider keeps.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from ray.actor import ActorHandle

from receipts.payments import DueRecharge, Payment
from serve.errors import PaymentRefused, PaymentUncertain
from serve.payment_routes import enter, send_back
from serve.payments.protocol import Charge, PaymentProvider

_AFTER_REFUSAL_S: Final = 3600.0
_LEFT_AFTER_NS: Final = 600 * 10**9
"""A refund that was begun so long ago is nobody's any more; a call to the provider is given up well before."""
_ID_HEX_DIGITS: Final = 32
_TROUBLES_TOLD: Final = 3

_LOG = logging.getLogger(__name__)


class PaymentWatch:
    """Looks every ``every_s``; what fails is tried at the next look, a charge that was refused after an hour."""

    def __init__(
        self,
        ledger: ActorHandle[Any],
        provider: PaymentProvider,
        *,
        every_s: float,
        clock: Callable[[], float],
        wall_clock_ns: Callable[[], int],
    ) -> None:
        self._ledger = ledger
        self._provider = provider
        self._every_s = every_s
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._refused: dict[str, float] = {}
        self._said: str | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.look_once()

    async def look_once(self) -> None:
        """One look. The ledger may be away while it restarts, and what goes wrong for one account is no other's."""
        troubles: list[str] = []
        with _noted(troubles):
            due: Sequence[DueRecharge] = await self._ledger.accounts_to_recharge.remote()
            for recharge in due:
                with _noted(troubles):
                    await self._recharge(recharge)
        with _noted(troubles):
            left: Sequence[Payment] = await self._ledger.unfinished_refunds.remote()
            for refund in left:
                with _noted(troubles):
                    await self._finish(refund)
        said = "; ".join(troubles[:_TROUBLES_TOLD]) or None
        if said is not None and said != self._said:  # else it is the same trouble as the last time
            _LOG.warning("payments can't all be looked after now: %s", said)
        self._said = said

    async def _recharge(self, due: DueRecharge) -> None:
        if due.recharge.provider == self._provider.name and self._may_try(charge_id(due)):
            await self._charge(due)

    async def _charge(self, due: DueRecharge) -> None:
        recharge, name = due.recharge, charge_id(due)
        wanted = Charge(
            account=recharge.account,
            usd_picos=recharge.amount_usd_picos,
            means=recharge.customer_reference,
            charge_id=name,
        )
        try:
            paid = await self._provider.charge(wanted)
        except PaymentRefused as refusal:
            self._refused[name] = self._clock()
            _LOG.warning("account %s was not recharged, and is tried again in an hour: %s", recharge.account, refusal)
            return
        except PaymentUncertain as uncertain:
            _LOG.warning("whether account %s was recharged is not known yet: %s", recharge.account, uncertain)
            return
        if paid is not None:
            await enter(self._ledger, self._provider.name, paid)

    async def _finish(self, refund: Payment) -> None:
        is_left = self._wall_clock_ns() - refund.created_unix_ns > _LEFT_AFTER_NS
        if not is_left or refund.provider != self._provider.name:
            return
        payments: Sequence[Payment] = await self._ledger.payments.remote(refund.account)
        payment = next(each for each in payments if each.payment_id == refund.refunds)
        try:
            reference = await send_back(self._ledger, self._provider, payment, refund)
        except (PaymentRefused, PaymentUncertain) as failure:
            _LOG.warning("refund %s is not sent: %s", refund.payment_id, failure)
        else:
            await self._ledger.finish_refund.remote(refund.payment_id, reference)

    def _may_try(self, name: str) -> bool:
        refused_at = self._refused.get(name)
        if refused_at is None:
            return True
        if self._clock() - refused_at < _AFTER_REFUSAL_S:
            return False
        del self._refused[name]
        return True


@contextmanager
def _noted(troubles: list[str]) -> Iterator[None]:
    """What goes wrong, by its kind: its text may say more than belongs into a log. The watch must go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is
        troubles.append(type(error).__name__)


def charge_id(due: DueRecharge) -> str:
    """The same for the same account, the same recharge and as many top-ups as it has had: one charge."""
    recharge = due.recharge
    parts = (recharge.account, due.top_ups, recharge.provider, recharge.customer_reference, recharge.amount_usd_picos)
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
    return f"recharge_{digest[:_ID_HEX_DIGITS]}"
