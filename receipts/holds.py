"""Holds: what requests under way may still cost, set aside from their accounts' balances.

No I/O and no clock of its own. A hold ends with the receipt of its request, by word of whoever placed it, or by
itself when its lease is over. All of it is in memory: after a restart the holds are those that are renewed.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

MOST_HOLDS: Final = 100_000
"""A hundred ingresses' worth of requests under way; about 30 MB."""

MOST_UNSIGNED: Final = 100_000
"""Five minutes of signing at 360 receipts/s, which is one core's; half an hour without a quorum at 50 requests/s."""

_REMEMBERED_NS: Final = 60 * 10**9
_MOST_REMEMBERED: Final = 100_000
_LEAST_STALE: Final = 1024

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """By which key, and as what, a request comes in.

    ``key_sha256`` is what the ledger keeps of the key; ``workload`` the name that the client gives (`X-Workload`);
    ``idempotency_sha256`` 64 hex digits, of its `Idempotency-Key`, which itself goes no further than the door.
    """

    account: str
    api_key_id: str
    key_sha256: bytes
    workload: str | None = None
    idempotency_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldWanted:
    """A hold that is to be placed, of ``usd_picos`` for ``lease_s``; the rest as in `Admission`."""

    account: str
    request_id: str
    usd_picos: int
    lease_s: float
    key_sha256: bytes
    api_key_id: str
    workload: str | None
    idempotency_sha256: str | None


class Renewal(NamedTuple):
    """A hold that is to be renewed. A tuple: an ingress sends thousands at once.

    Without its request's ``idempotency_sha256`` (a replica doesn't know it) the hold keeps the one that it has.
    """

    account: str
    request_id: str
    usd_picos: int
    idempotency_sha256: str | None = None


HoldOutcome = Literal["placed", "insufficient", "busy", "unknown key", "repeated", "over budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldAnswer:
    """What became of a hold that was to be placed.

    ``insufficient``: the balance doesn't cover it beside what other holds of the account set aside, in pico-USD as
    of then. ``busy``: nothing is placed now, for ``reason``; the two amounts are None where they weren't looked at.
    ``unknown key``: the key isn't live any more. ``repeated``: another request of the account with the same
    idempotency key is under way, or has its receipt, of ``first_receipt_id``. ``over budget``: an energy budget is
    drawn, as ``reason`` says, and its window ends after ``retry_after_s``.
    ``book_began_ns`` tells one book from the next: a new one has none of the holds that were placed before.
    """

    outcome: HoldOutcome
    book_began_ns: int
    balance_usd_picos: int | None
    held_usd_picos: int | None
    reason: str | None = None
    first_receipt_id: str | None = None
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldsReport:
    """The live holds of all accounts, and their sum."""

    count: int
    held_usd_picos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBalance:
    """What an account has, and what of it is set aside for requests under way; both in pico-USD."""

    balance_usd_picos: int
    held_usd_picos: int


@dataclass(slots=True, kw_only=True)
class _Hold:
    usd_picos: int
    until_ns: int
    idempotency_sha256: str | None = None


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
        # Of holds with an idempotency key: whose request came first with it.
        self._first: dict[_Key, str] = {}
        # One entry for each live hold, at or before its end, and some of holds that ended early.
        self._ends: list[tuple[int, _Key]] = []
        self._ended: OrderedDict[_Key, int] = OrderedDict()

    def place(
        self,
        account: str,
        request_id: str,
        usd_picos: int,
        *,
        balance_usd_picos: int,
        lease_ns: int,
        idempotency_sha256: str | None = None,
    ) -> HoldAnswer:
        """Set ``usd_picos`` (0 or more) aside for the lease, if the balance covers it beside the account's other holds.

        Placed again, it is still one hold, of the amount that was said last. One of nothing is always covered. With
        an idempotency key it has to be the first, which `under_way` tells.
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
            self._came_first(key, idempotency_sha256)
        return HoldAnswer(
            outcome=outcome,
            book_began_ns=self.began_ns,
            balance_usd_picos=balance_usd_picos,
            held_usd_picos=others,
            reason=reason,
        )

    def renew(
        self,
        account: str,
        request_id: str,
        usd_picos: int,
        *,
        lease_ns: int,
        idempotency_sha256: str | None = None,
    ) -> None:
        """Prolong the hold, of this amount or the larger one that it has been extended to.

        One that isn't known comes back, whatever the balance is: its request is under way, and came before whichever
        was placed with its idempotency key since. Nothing happens where it has ended since, or there is no room.
        """
        now_ns = self._lapse()
        key = (account, request_id)
        if self._may_live(key, now_ns):
            self._put(key, max(usd_picos, self._amount(key)), now_ns + lease_ns)
            self._came_first(key, idempotency_sha256)

    def extend(self, account: str, request_id: str, usd_picos: int, *, balance_usd_picos: int, lease_ns: int) -> int:
        """Raise the hold to this amount, or to what the balance leaves beside the account's others; and prolong it.

        The amount that it has from now on, which is never less than before. Of a request under way: after a restart
        it comes back by this too. Nothing, 0, where it has ended since, or there is no room.
        """
        now_ns = self._lapse()
        key = (account, request_id)
        if not self._may_live(key, now_ns):
            return 0
        held = self._amount(key)
        free = balance_usd_picos - (self.held_usd_picos(account) - held)
        extended = max(held, min(usd_picos, free))
        self._put(key, extended, now_ns + lease_ns)
        return extended

    def end(self, account: str, request_id: str) -> None:
        """Nothing is set aside for this request any more, nor will be."""
        now_ns = self._lapse()
        key = (account, request_id)
        self._drop(key)
        self._remember(key, now_ns)
        if len(self._ends) > 2 * len(self._holds) + _LEAST_STALE:
            self._ends = [(hold.until_ns, each) for each, hold in self._holds.items()]
            heapq.heapify(self._ends)

    def under_way(self, account: str, idempotency_sha256: str | None) -> str | None:
        """The request whose live hold was placed with this idempotency key."""
        self._lapse()
        return None if idempotency_sha256 is None else self._first.get((account, idempotency_sha256))

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

    def _came_first(self, key: _Key, idempotency_sha256: str | None) -> None:
        if idempotency_sha256 is not None:
            self._holds[key].idempotency_sha256 = idempotency_sha256
            self._first[key[0], idempotency_sha256] = key[1]

    def _amount(self, key: _Key) -> int:
        hold = self._holds.get(key)
        return hold.usd_picos if hold else 0

    def _may_live(self, key: _Key, now_ns: int) -> bool:
        """Whether a request under way may have a hold; that one which has ended was asked for is remembered anew."""
        if key in self._ended:
            self._remember(key, now_ns)
            return False
        return key in self._holds or len(self._holds) < self._most_holds

    def _drop(self, key: _Key) -> None:
        hold = self._holds.pop(key, None)
        if hold is not None:
            self._add(key[0], -hold.usd_picos)
            if hold.idempotency_sha256 is not None:
                first = (key[0], hold.idempotency_sha256)
                if self._first.get(first) == key[1]:
                    del self._first[first]

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
