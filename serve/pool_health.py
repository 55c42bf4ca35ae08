"""Which pools failed lately: set aside for a while that doubles with each failure in a row, then tried by one request.

A pool that is set aside ranks last; it is never refused, for it may be all that there is.
"""

from collections.abc import Callable
from dataclasses import dataclass

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
_MOST_DOUBLINGS = 6


@dataclass(slots=True)
class _Record:
    """A pool whose last attempt failed. ``until_s`` is on the clock; past it, one request is let in as its probe."""

    failures: int
    until_s: float
    is_probed: bool = False


class PoolHealth:
    """What the last attempts on each pool came to. ``clock`` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failing: dict[str, _Record] = {}

    def is_set_aside(self, pool: str) -> bool:
        """Whether it failed a moment ago, or is being probed by another request."""
        record = self._failing.get(pool)
        return record is not None and (record.is_probed or self._clock() < record.until_s)

    def set_aside(self) -> list[str]:
        """Every pool that is set aside at this moment."""
        return [pool for pool in self._failing if self.is_set_aside(pool)]

    def probe(self, pool: str) -> bool:
        """An attempt on it begins; whether that is the pool's probe.

        The probe ends with `begun` or `failed`, or with `left` where neither could be told.
        """
        record = self._failing.get(pool)
        if record is None or self.is_set_aside(pool):
            return False
        record.is_probed = True
        return True

    def left(self, pool: str) -> None:
        """Its probe ended and told nothing, as when the client went: the next request is the probe."""
        record = self._failing.get(pool)
        if record is not None:
            record.is_probed = False

    def begun(self, pool: str) -> None:
        """It began to answer: it is no longer set aside, but its failures still count until an answer is whole."""
        record = self._failing.get(pool)
        if record is not None:
            record.is_probed = False
            record.until_s = self._clock()

    def succeeded(self, pool: str) -> None:
        """It gave a whole answer: what failed before is forgotten."""
        self._failing.pop(pool, None)

    def failed(self, pool: str) -> None:
        """An attempt on it failed, by no fault of the request: it is set aside, longer with each failure in a row.

        Attempts that were under way when it was set aside tell nothing new, and prolong nothing.
        """
        now_s = self._clock()
        record = self._failing.setdefault(pool, _Record(failures=0, until_s=now_s))
        if now_s < record.until_s:
            return
        backoff_s = FIRST_BACKOFF_S * 2.0 ** min(record.failures, _MOST_DOUBLINGS)
        record.failures += 1
        record.until_s = now_s + min(backoff_s, LONGEST_BACKOFF_S)
        record.is_probed = False
