"""Settlements between the meter and the ledger: each is kept, and can be delivered again, until it is acknowledged."""

from collections.abc import Iterable
from dataclasses import dataclass

from metering.checkpoint import Checkpoint
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
        self._unwritten: dict[str, Settlement] = {}
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
        self._unwritten[settlement.request_id] = settlement

    def write(self, checkpoint: Checkpoint) -> None:
        """Record what hasn't been, with where the meter stands: a restart finds all of it or nothing.

        Raises:
            JournalUnwritable: it is kept, and will be tried again.
        """
        if self._unwritten:
            self._journal.settled(tuple(self._unwritten.values()), checkpoint)
            self._unwritten = {}

    def discard(self, request_id: str) -> None:
        """Forget a failed attempt's settlement: the request begins again."""
        self._waiting.pop(request_id, None)
        self._acknowledged.pop(request_id, None)
        self._unwritten.pop(request_id, None)

    def unacknowledged(self, settled_until_ns: int) -> Iterable[Settlement]:
        """What was made and recorded until then and isn't acknowledged, oldest first.

        What isn't recorded isn't given away: a restart would make it anew, with other content.
        """
        for kept in self._waiting.values():
            if kept.settlement.request_id in self._unwritten:
                continue
            if kept.settled_ns is None or kept.settled_ns <= settled_until_ns:
                yield kept.settlement

    def acknowledge(self, settlement: Settlement) -> bool:
        """The ledger has it; whether that is new. For what isn't kept, as of an earlier attempt, it changes nothing.

        Raises:
            JournalUnwritable: it couldn't be recorded, and may be delivered again.
        """
        request_id = settlement.request_id
        kept = self._waiting.get(request_id)
        if kept is None or kept.settlement != settlement:
            return False
        self._journal.acknowledged(request_id)
        del self._waiting[request_id]
        self._acknowledged[request_id] = settlement
        if len(self._acknowledged) > _MOST_REMEMBERED:
            del self._acknowledged[next(iter(self._acknowledged))]
        return True
