"""What went wrong on a host, a line for each event, in the journal and for whoever asks."""

from collections import deque

from metering.clock import Clock
from metering.journal import Journal
from metering.meter_report import Incident

_MOST_UNWRITTEN = 32


class IncidentLog:
    """Keeps incidents until they are recorded, so that a full disk holds up no booking; the newest, if it lasts."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._unwritten: deque[Incident] = deque(maxlen=_MOST_UNWRITTEN)

    @property
    def newest(self) -> tuple[Incident, ...]:
        """The newest ones, newest last."""
        known = self._journal.state.incidents
        return (*known, *self._unwritten)[-(known.maxlen or 0) :]

    def note(self, what: str) -> None:
        """Something happened now; `write` records it."""
        self._unwritten.append(Incident(at_unix_ns=self._clock.wall_ns(), what=what))

    def write(self) -> None:
        """Record what hasn't been.

        Raises:
            JournalUnwritable: it is kept, and will be tried again.
        """
        while self._unwritten:
            self._journal.incident(self._unwritten[0])
            self._unwritten.popleft()
