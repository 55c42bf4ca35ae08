"""Settlements between the meter and the ledger: each is kept, and can be delivered again, until it is acknowledged."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

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
    """Keeps settlements and writes them to the journal: each request's newest, and failed attempts before it.

    Those have their energy in the ledger too, as overhead, whatever became of their request afterwards.
    """

    def __init__(self, journal: Journal) -> None:
        """Take over what the journal holds; it is older than anything made from now on."""
        self._journal = journal
        self._newest = {
            request_id: _Kept(settlement=settlement, settled_ns=None)
            for request_id, settlement in journal.state.settled.items()
        }
        self._superseded = {
            attempt_id: _Kept(settlement=settlement, settled_ns=None)
            for attempt_id, settlement in journal.state.superseded.items()
        }
        self._unwritten: dict[str, Settlement] = {}
        self._acknowledged: dict[str, Settlement] = {}

    @property
    def waiting(self) -> int:
        """How many aren't acknowledged."""
        return len(self._newest) + len(self._superseded)

    def get(self, request_id: str) -> Settlement | None:
        """The request's newest settlement, if it is still remembered and the request hasn't begun again."""
        kept = self._newest.get(request_id)
        return kept.settlement if kept is not None else self._acknowledged.get(request_id)

    def put(self, settlement: Settlement, settled_ns: int) -> None:
        """Keep a new settlement; `write` records it."""
        self._newest[settlement.request_id] = _Kept(settlement=settlement, settled_ns=settled_ns)
        self._unwritten[settlement.request_id] = settlement

    def write(self, checkpoint: Checkpoint) -> None:
        """Record what hasn't been, with where the meter stands: a restart finds all of it or nothing.

        Raises:
            JournalUnwritable: it is kept, and will be tried again.
        """
        if self._unwritten:
            self._journal.settled(tuple(self._unwritten.values()), checkpoint)
            self._unwritten = {}

    def supersede(self, request_id: str) -> None:
        """The request begins again: its failed attempt, which was written, is its newest no longer."""
        assert request_id not in self._unwritten, "written later, it would end the attempt that begins"
        earlier = self._newest.pop(request_id, None)
        if earlier is not None:
            self._superseded[earlier.settlement.attempt_id] = earlier
        self._acknowledged.pop(request_id, None)

    def unacknowledged(self, settled_until_ns: int) -> Iterable[Settlement]:
        """What was made and recorded until then and isn't acknowledged: attempts before others, then oldest first.

        What isn't recorded isn't given away: a restart would make it anew, with other content.
        """
        written = (kept for name, kept in self._newest.items() if name not in self._unwritten)
        for kept in chain(self._superseded.values(), written):
            if kept.settled_ns is None or kept.settled_ns <= settled_until_ns:
                yield kept.settlement

    def acknowledge(self, settlement: Settlement) -> bool:
        """The ledger has it; whether that is new. For what isn't kept it changes nothing.

        Raises:
            JournalUnwritable: it couldn't be recorded, and may be delivered again.
        """
        request_id, attempt_id = settlement.request_id, settlement.attempt_id
        superseded, newest = self._superseded.get(attempt_id), self._newest.get(request_id)
        if superseded is not None and superseded.settlement == settlement:
            self._journal.acknowledged(settlement)
            del self._superseded[attempt_id]
            return True
        if newest is None or newest.settlement != settlement:
            return False
        self._journal.acknowledged(settlement)
        del self._newest[request_id]
        self._remember(settlement)
        return True

    def _remember(self, settlement: Settlement) -> None:
        self._acknowledged[settlement.request_id] = settlement
        if len(self._acknowledged) > _MOST_REMEMBERED:
            del self._acknowledged[next(iter(self._acknowledged))]
