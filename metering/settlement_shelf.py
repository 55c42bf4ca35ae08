"""Settlements between the meter and the ledger: each is kept, and can be delivered again, until it is acknowledged."""

from collections.abc import Iterable
from dataclasses import dataclass

from metering.book import BookTotals
from metering.journal import Journal
from metering.settlement import Settlement

# Acknowledged settlements that are remembered, so that a late second `settle` gets the same answer.
_MOST_REMEMBERED = 4096


@dataclass(slots=True, kw_only=True)
class _Kept:
    settlement: Settlement
    settled_ns: int | None  # None: by an earlier meter


class SettlementShelf:
    """Keeps settlements in the order in which they were made, and writes them to the journal."""

    def __init__(self, journal: Journal) -> None:
        """Take over what the journal holds; it is older than anything made from now on."""
        self._journal = journal
        self._waiting = {
            settlement.request_id: _Kept(settlement=settlement, settled_ns=None)
            for settlement in journal.state.settled.values()
        }
        self._unwritten: list[Settlement] = []
        self._acknowledged: dict[str, Settlement] = {}

    @property
    def waiting(self) -> int:
        """How many aren't acknowledged."""
        return len(self._waiting)

    def get(self, request_id: str) -> Settlement | None:
        """The request's settlement, if it is still remembered."""
        kept = self._waiting.get(request_id)
        return kept.settlement if kept is not None else self._acknowledged.get(request_id)

    def put(self, settlement: Settlement, settled_ns: int) -> None:
        """Keep a new settlement; `write` records it."""
        self._waiting[settlement.request_id] = _Kept(settlement=settlement, settled_ns=settled_ns)
        self._unwritten.append(settlement)

    def write(self, totals: BookTotals) -> None:
        """Record what hasn't been, with the book's totals: a restart finds both or neither.

        Raises:
            JournalUnwritable: it is kept, and will be tried again.
        """
        while self._unwritten:
            self._journal.settled(self._unwritten[0], totals)
            del self._unwritten[0]

    def discard(self, request_id: str) -> None:
        """Forget a failed attempt's settlement: the request begins again."""
        self._waiting.pop(request_id, None)
        self._acknowledged.pop(request_id, None)
        self._forget_unwritten(request_id)

    def unacknowledged(self, settled_until_ns: int) -> Iterable[Settlement]:
        """What was made until then and isn't acknowledged, oldest first."""
        for kept in self._waiting.values():
            if kept.settled_ns is None or kept.settled_ns <= settled_until_ns:
                yield kept.settlement

    def acknowledge(self, request_id: str) -> None:
        """The ledger has it; doing so twice, or for what isn't kept, changes nothing.

        Raises:
            JournalUnwritable: it couldn't be recorded, and may be delivered again.
        """
        kept = self._waiting.get(request_id)
        if kept is None:
            return
        self._journal.acknowledged(request_id)
        self._forget_unwritten(request_id)
        del self._waiting[request_id]
        self._acknowledged[request_id] = kept.settlement
        if len(self._acknowledged) > _MOST_REMEMBERED:
            del self._acknowledged[next(iter(self._acknowledged))]

    def _forget_unwritten(self, request_id: str) -> None:
        self._unwritten = [settlement for settlement in self._unwritten if settlement.request_id != request_id]
