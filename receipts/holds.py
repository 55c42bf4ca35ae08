"""Holds: what requests under way may still cost, set aside from their accounts' balances.

No I/O and no clock of its own. A hold ends with the receipt of its request, by word of whoever placed it, or by
itself when its lease is over. All of it is in memory: after a restart the holds are those that are renewed.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

MOST_HOLDS: Final = 100_000
"""A hundred ingresses' worth of requests under way; about 30 MB."""

MOST_UNSIGNED: Final = 100_000
"""Five minutes of signing at 360 receipts/s, which is one core's; half an hour without a quorum at 50 requests/s."""

_REMEMBERED_NS: Final = 60 * 10**9
_MOST_REMEMBERED: Final = 100_000
_LEAST_STALE: Final = 1024

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldAnswer:
    """What became of a hold that was to be placed.

    ``insufficient``: the balance doesn't cover it beside what other holds of the account set aside, in pico-USD as
    of then. ``busy``: nothing is placed now, for ``reason``; the two amounts are None where they weren't looked at.
    ``book_began_ns`` tells one book from the next: a new one has none of the holds that were placed before.
    """

    outcome: Literal["placed", "insufficient", "busy"]
    book_began_ns: int
    balance_usd_picos: int | None
    held_usd_picos: int | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsReport:
    """The live holds of all accounts, and their sum."""

    count: int
    held_usd_picos: int


@dataclass(slots=True, kw_only=True)
class _Hold:
    usd_picos: int
    until_ns: int


class HoldBook:
    """Every account's live holds, in pico-USD.

    A request that has ended is remembered for a while, so that a renewal which was on its way then doesn't bring
    its hold back.
    """

    def __init__(
        self,
        *,
        monotonic_ns: Callable[[], int],
        most_holds: int = MOST_HOLDS,
        most_remembered: int = _MOST_REMEMBERED,
        remembered_ns: int = _REMEMBERED_NS,
    ) -> None:
        """``remembered_ns`` is longer than a lease and the longest way of a call together."""
        self._monotonic_ns = monotonic_ns
        self.began_ns: Final = monotonic_ns()
        self._most_holds = most_holds
        self._most_remembered = most_remembered
        self._remembered_ns = remembered_ns
        self._holds: dict[_Key, _Hold] = {}
        self._sums: dict[str, int] = {}
        # One entry for each live hold, at or before its end, and some of holds that ended early.
        self._ends: list[tuple[int, _Key]] = []
        self._ended: OrderedDict[_Key, int] = OrderedDict()

    def place(
        self, account: str, request_id: str, usd_picos: int, *, balance_usd_picos: int, lease_ns: int
    ) -> HoldAnswer:
        """Set ``usd_picos`` (0 or more) aside for the lease, if the balance covers it beside the account's other holds.

        Placed again, it is still one hold, of the amount that was said last. One of nothing is always covered.
        """
        now_ns = self._lapse()
        key = (account, request_id)
        live = self._holds.get(key)
        others = self.held_usd_picos(account) - (live.usd_picos if live else 0)
        reason = None
        if key in self._ended:
            outcome: Literal["placed", "insufficient", "busy"] = "busy"
            reason = f"request {request_id} has ended"
        elif live is None and len(self._holds) >= self._most_holds:
            outcome, reason = "busy", f"{len(self._holds)} requests are under way"
        elif usd_picos and others + usd_picos > balance_usd_picos:
            outcome = "insufficient"
        else:
            outcome = "placed"
            self._put(key, usd_picos, now_ns + lease_ns)
        return HoldAnswer(
            outcome=outcome,
            book_began_ns=self.began_ns,
            balance_usd_picos=balance_usd_picos,
            held_usd_picos=others,
            reason=reason,
        )

    def renew(self, account: str, request_id: str, usd_picos: int, *, lease_ns: int) -> None:
        """Prolong the hold, of this amount from now on; one that isn't known comes back, whatever the balance is.

        Its request is under way. Nothing happens where it has ended since, or there is no room.
        """
        now_ns = self._lapse()
        key = (account, request_id)
        if key in self._ended:
            self._remember(key, now_ns)
        elif key in self._holds or len(self._holds) < self._most_holds:
            self._put(key, usd_picos, now_ns + lease_ns)

    def end(self, account: str, request_id: str) -> None:
        """Nothing is set aside for this request any more, nor will be."""
        now_ns = self._lapse()
        key = (account, request_id)
        self._drop(key)
        self._remember(key, now_ns)
        if len(self._ends) > 2 * len(self._holds) + _LEAST_STALE:
            self._ends = [(hold.until_ns, each) for each, hold in self._holds.items()]
            heapq.heapify(self._ends)

    def held_usd_picos(self, account: str) -> int:
        """The sum of the account's holds, those included whose lease is over since the last call of another method."""
        return self._sums.get(account, 0)

    def report(self) -> HoldsReport:
        """The live holds as of now."""
        self._lapse()
        return HoldsReport(count=len(self._holds), held_usd_picos=sum(self._sums.values()))

    def _put(self, key: _Key, usd_picos: int, until_ns: int) -> None:
        assert usd_picos >= 0, "a hold sets something aside, or nothing"
        hold = self._holds.get(key)
        if hold is None:
            hold = self._holds[key] = _Hold(usd_picos=0, until_ns=until_ns)
            heapq.heappush(self._ends, (until_ns, key))
        self._add(key[0], usd_picos - hold.usd_picos)
        hold.usd_picos = usd_picos
        hold.until_ns = max(hold.until_ns, until_ns)

    def _drop(self, key: _Key) -> None:
        hold = self._holds.pop(key, None)
        if hold is not None:
            self._add(key[0], -hold.usd_picos)

    def _add(self, account: str, usd_picos: int) -> None:
        held = self._sums.pop(account, 0) + usd_picos
        if held:
            self._sums[account] = held

    def _remember(self, key: _Key, now_ns: int) -> None:
        self._ended[key] = now_ns + self._remembered_ns
        self._ended.move_to_end(key)
        if len(self._ended) > self._most_remembered:
            self._ended.popitem(last=False)

    def _lapse(self) -> int:
        """End every hold whose lease is over, forget what was remembered long enough, and tell the time."""
        now_ns = self._monotonic_ns()
        while self._ends and self._ends[0][0] <= now_ns:
            _, key = heapq.heappop(self._ends)
            hold = self._holds.get(key)
            if hold is None:
                continue
            if hold.until_ns <= now_ns:
                self._drop(key)
            else:
                heapq.heappush(self._ends, (hold.until_ns, key))
        while self._ended and next(iter(self._ended.values())) <= now_ns:
            self._ended.popitem(last=False)
        return now_ns
