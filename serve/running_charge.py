"""What a replica's requests have cost so far, beside what is held for them.

Every `LOOK_EVERY_S` their meter is asked what they have drawn. A hold that may soon be reached is extended; where the
account's balance gives no more, the answer ends there, as if it had reached its ``max_tokens``. So a request is charged
more than its account could pay by no more than what it draws from one look to the next.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from receipts.arithmetic import price_usd_picos
from receipts.holds import Renewal
from serve.messages import Allowance

LOOK_EVERY_S = 0.25
"""A look costs one call to the meter for all the requests of a replica, and one to the ledger where holds are short."""

_ANSWERED_WITHIN_S = 1.0
_RENEWALS_PER_LEASE = 3

_LOG = logging.getLogger(__name__)


class HoldExtender(Protocol):
    """Where holds are. Calls may raise whatever keeps the ledger from answering; then nothing is known of them."""

    async def extend(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> Sequence[int]:
        """As `LedgerActor.extend_holds`: what is held for each from now on."""

    async def renew(self, holds: Sequence[Renewal], lease_s: float) -> None:
        """As `LedgerActor.renew_holds`."""


@dataclass(slots=True, kw_only=True)
class RunningCharge:
    """One request's charge so far, and what is held for it; in pico-USD. ``held_at_s`` is when the ledger was told."""

    allowance: Allowance
    held_usd_picos: int
    held_at_s: float
    usd_picos: int = 0
    is_stopped: bool = False
    _step_usd_picos: int = 0

    def saw(self, microjoules: int) -> None:
        """What the request has drawn until this look. The next may add as much as the largest look of late did."""
        now_usd_picos = price_usd_picos(microjoules, self.allowance.usd_per_kwh)
        self._step_usd_picos = max(now_usd_picos - self.usd_picos, self._step_usd_picos // 2)
        self.usd_picos = now_usd_picos

    @property
    def soon_usd_picos(self) -> int:
        """What it may have cost at the next look."""
        return self.usd_picos + self._step_usd_picos

    @property
    def is_short(self) -> bool:
        """Whether its hold is to be extended: early, so that a ledger that restarts meanwhile ends no answer."""
        return 2 * self.soon_usd_picos > self.held_usd_picos

    @property
    def is_over(self) -> bool:
        """Whether it must end now."""
        return self.soon_usd_picos > self.held_usd_picos

    @property
    def wanted_usd_picos(self) -> int:
        """What its hold is to be extended to. Doubled each time, and what it doesn't cost comes back at its end."""
        return 2 * max(self.held_usd_picos, self.soon_usd_picos)

    @property
    def is_extended(self) -> bool:
        """Whether more is held than its ingress knows of, and renews."""
        return self.held_usd_picos > self.allowance.usd_picos


class RunningCharges:
    """Looks after the requests of one replica for as long as there are any.

    A meter that doesn't answer says nothing of a request: it goes on. (One that was restarted doesn't know the whole
    energy of what ran, which is then not billed.) While the ledger doesn't answer, what is held stays what it is.
    """

    def __init__(
        self,
        running: Callable[[], Awaitable[Mapping[str, int]]],
        ledger: HoldExtender,
        stop: Callable[[str], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``running`` as `HostMeter.running` of this replica; ``stop`` as `Engine.stop_at_length`."""
        self._running = running
        self._ledger = ledger
        self._stop = stop
        self._sleep = sleep
        self._clock = clock
        self._open: dict[str, RunningCharge] = {}
        self._looking: asyncio.Task[None] | None = None
        self._silent: set[str] = set()

    @contextmanager
    def watched(self, request_id: str, allowance: Allowance | None) -> Iterator[None]:
        """Compare the request's charge with its allowance meanwhile; without one, nothing."""
        if allowance is None:
            yield
            return
        charge = RunningCharge(allowance=allowance, held_usd_picos=allowance.usd_picos, held_at_s=self._clock())
        self._open[request_id] = charge
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_while_open())
        try:
            yield
        finally:
            # An earlier attempt may still be on its way out here: the later one goes on.
            if self._open.get(request_id) is charge:
                del self._open[request_id]

    async def _look_while_open(self) -> None:
        while True:
            await self._sleep(LOOK_EVERY_S)
            if not self._open:
                return
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - one look that went wrong must not end the looking
                _LOG.exception("the running charges were not looked at; the next look goes on")

    async def look(self) -> None:
        """Take in what each has drawn, extend holds that are short, and end what may pass its own."""
        drawn: Mapping[str, int] = {}
        async with self._asking("meter"):
            drawn = await self._running()
        for request_id in self._open.keys() & drawn.keys():
            self._open[request_id].saw(drawn[request_id])
        async with self._asking("ledger"):
            await self._extend({each: charge for each, charge in self._open.items() if charge.is_short})
            await self._renew({each: charge for each, charge in self._open.items() if self._is_due(charge)})
        for request_id, charge in tuple(self._open.items()):
            if charge.is_over:
                self._end(request_id, charge)

    async def _extend(self, short: Mapping[str, RunningCharge]) -> None:
        if not short:
            return
        wanted = [(each.allowance.account, request_id, each.wanted_usd_picos) for request_id, each in short.items()]
        held = await self._ledger.extend(wanted, _lease_s(short.values()))
        for charge, usd_picos in zip(short.values(), held, strict=True):
            # Nothing is held any more for what has ended, and what was promised before stays so.
            charge.held_usd_picos = max(charge.held_usd_picos, usd_picos)
            charge.held_at_s = self._clock()

    def _is_due(self, charge: RunningCharge) -> bool:
        """An ingress renews what it placed; how much further a hold was extended, only its replica knows."""
        renew_at_s = charge.held_at_s + charge.allowance.lease_s / _RENEWALS_PER_LEASE
        return charge.is_extended and self._clock() >= renew_at_s

    async def _renew(self, due: Mapping[str, RunningCharge]) -> None:
        if not due:
            return
        holds = [Renewal(each.allowance.account, request_id, each.held_usd_picos) for request_id, each in due.items()]
        await self._ledger.renew(holds, _lease_s(due.values()))
        for charge in due.values():
            charge.held_at_s = self._clock()

    def _end(self, request_id: str, charge: RunningCharge) -> None:
        """Also again, where it went on: an answer may be made by several generations, one after the other."""
        if not charge.is_stopped:
            charge.is_stopped = True
            _LOG.info("the answer to %s ends: its account's balance holds no more for it", request_id)
        self._stop(request_id)

    @asynccontextmanager
    async def _asking(self, whose: str) -> AsyncIterator[None]:
        """Ask the meter or the ledger, for a second at most; that it doesn't answer is said once."""
        try:
            async with asyncio.timeout(_ANSWERED_WITHIN_S):
                yield
        except Exception as away:  # noqa: BLE001 - whatever it was, the next look asks again
            if whose not in self._silent:
                self._silent.add(whose)
                _LOG.warning("running charges: the %s doesn't answer: %s", whose, type(away).__name__)
        else:
            self._silent.discard(whose)


def _lease_s(charges: Iterable[RunningCharge]) -> float:
    return max(charge.allowance.lease_s for charge in charges)
