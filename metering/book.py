"""The book: every microjoule that a counter counted, in exactly one account.

    requests + idle + foreign + overhead + quarantine + trueup = counted

holds exactly after every posting. Accounts are kept in grains (2^32 to the microjoule, see `attribution`); a
request is rounded down to whole microjoules once, when it is settled, and the fraction stays with the mesh.
"""

from dataclasses import dataclass

from metering.attribution import GRAINS_PER_MICROJOULE, RequestShare, Shares


@dataclass(frozen=True, slots=True, kw_only=True)
class BookTotals:
    """The accounts in microjoules, and what the counters counted: the first six sum to the last, exactly.

    ``request_microjoules`` holds settled requests and, of these, ``open_microjoules`` belongs to requests that are
    still running. ``trueup_microjoules`` is signed: what receipts closed on an estimate differ from what the
    counter then said. Requests, idle, foreign and trueup are rounded down and overhead takes the fractions, so it
    alone can step back by a few microjoules.
    """

    request_microjoules: int = 0
    idle_microjoules: int = 0
    foreign_microjoules: int = 0
    overhead_microjoules: int = 0
    quarantine_microjoules: int = 0
    trueup_microjoules: int = 0
    counted_microjoules: int = 0
    open_microjoules: int = 0

    def accounts(self) -> dict[str, int]:
        """The six accounts by name, in microjoules."""
        return {
            "request": self.request_microjoules,
            "idle": self.idle_microjoules,
            "foreign": self.foreign_microjoules,
            "overhead": self.overhead_microjoules,
            "quarantine": self.quarantine_microjoules,
            "trueup": self.trueup_microjoules,
        }

    @property
    def sum_microjoules(self) -> int:
        """All accounts; equal to ``counted_microjoules``, or the book is broken."""
        return sum(self.accounts().values())


@dataclass(slots=True, kw_only=True)
class _Estimate:
    """What a settled request's open part was lent, less what the counters have said of it since."""

    settled_ns: int
    owed_grains: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a settled request drew. ``estimated_microjoules`` is the part that no closed interval stands behind yet."""

    active_microjoules: int
    floor_microjoules: int
    estimated_microjoules: int

    @property
    def total_microjoules(self) -> int:
        """Active and floor."""
        return self.active_microjoules + self.floor_microjoules


class Book:
    """Accounts of one host's energy. Requests are named by serial, one for each attempt."""

    def __init__(
        self, opening: BookTotals | None = None, *, trueup_magnitude_microjoules: int = 0, settled_requests: int = 0
    ) -> None:
        """Go on from an earlier book's figures; what its open requests had drawn is overhead now."""
        opening = opening or BookTotals()
        self.settled_requests = settled_requests
        self._open: dict[int, RequestShare] = {}
        self._estimates: dict[int, _Estimate] = {}
        self._trueup_magnitude = trueup_magnitude_microjoules * GRAINS_PER_MICROJOULE
        self._settled_microjoules = opening.request_microjoules - opening.open_microjoules
        self._quarantine_microjoules = opening.quarantine_microjoules
        self._counted_microjoules = opening.counted_microjoules
        self._idle = opening.idle_microjoules * GRAINS_PER_MICROJOULE
        self._foreign = opening.foreign_microjoules * GRAINS_PER_MICROJOULE
        self._overhead = (opening.overhead_microjoules + opening.open_microjoules) * GRAINS_PER_MICROJOULE
        self._trueup = opening.trueup_microjoules * GRAINS_PER_MICROJOULE

    def open(self, serial: int) -> None:
        """Open a request's account."""
        self._open[serial] = RequestShare()

    def post(self, energy_microjoules: int, shares: Shares) -> None:
        """Book a closed interval. Shares of settled requests go to trueup, or to overhead if they weren't billed.

        Raises:
            ValueError: the shares don't sum to the energy; nothing is booked.
        """
        if shares.sum_grains() != energy_microjoules * GRAINS_PER_MICROJOULE:
            raise ValueError("an interval's shares must sum to its energy")
        for serial, share in shares.requests.items():
            account = self._open.get(serial)
            if account is not None:
                account.add(share)
            elif (estimate := self._estimates.get(serial)) is not None:
                self._trueup += share.sum_grains
                estimate.owed_grains -= share.sum_grains
            else:
                self._overhead += share.sum_grains
        self._idle += shares.idle_grains
        self._foreign += shares.foreign_grains
        self._overhead += shares.overhead_grains
        self._counted_microjoules += energy_microjoules

    def post_stray(self, energy_microjoules: int) -> None:
        """Book energy that was drawn while nobody could be charged for it: the mesh's overhead."""
        self._overhead += energy_microjoules * GRAINS_PER_MICROJOULE
        self._counted_microjoules += energy_microjoules

    def quarantine(self, energy_microjoules: int) -> None:
        """Book energy that was counted and cannot be true."""
        self._quarantine_microjoules += energy_microjoules
        self._counted_microjoules += energy_microjoules

    @property
    def counted_microjoules(self) -> int:
        """All that was counted so far."""
        return self._counted_microjoules

    @property
    def trueup_magnitude_microjoules(self) -> int:
        """How far estimates were from what the counters then said: summed without sign over settled requests."""
        return self._trueup_magnitude // GRAINS_PER_MICROJOULE

    @property
    def trueup_at_stake_microjoules(self) -> int:
        """The magnitude if the counters said no more of the requests that are settled: where this book ends."""
        owed = sum(abs(estimate.owed_grains) for estimate in self._estimates.values())
        return (self._trueup_magnitude + owed) // GRAINS_PER_MICROJOULE

    def running_microjoules(self, serial: int, open_part: RequestShare) -> int:
        """What an open request would be charged if it were settled now; nothing is booked."""
        return (self._open[serial].sum_grains + open_part.sum_grains) // GRAINS_PER_MICROJOULE

    def settle(self, serial: int, open_part: RequestShare, *, billed: bool, settled_ns: int) -> Charge:
        """Close a request's account on what was measured and an estimate of the ``open_part``.

        The estimate is lent by trueup, which gets the request's share when the counters have closed the interval.
        What isn't billed (a failed attempt, energy that isn't known whole) is overhead, now and then.
        """
        account = self._open.pop(serial)
        estimated = open_part.sum_grains
        self.settled_requests += 1
        measured = account.sum_grains
        total_microjoules = (measured + estimated) // GRAINS_PER_MICROJOULE
        floor_microjoules = (account.floor_grains + open_part.floor_grains) // GRAINS_PER_MICROJOULE
        self._overhead += measured
        if billed:
            self._estimates[serial] = _Estimate(settled_ns=settled_ns, owed_grains=estimated)
            self._trueup -= estimated
            self._overhead += estimated - total_microjoules * GRAINS_PER_MICROJOULE
            self._settled_microjoules += total_microjoules
        return Charge(
            active_microjoules=total_microjoules - floor_microjoules,
            floor_microjoules=floor_microjoules,
            estimated_microjoules=estimated // GRAINS_PER_MICROJOULE,
        )

    def true_up(self, closed_until_ns: int) -> None:
        """The counters have said all about requests settled until then: what their estimates were off by is known."""
        while self._estimates:
            serial = next(iter(self._estimates))
            if self._estimates[serial].settled_ns > closed_until_ns:
                return
            self._trueup_magnitude += abs(self._estimates.pop(serial).owed_grains)

    def totals(self) -> BookTotals:
        """The accounts in microjoules."""
        open_grains = sum(share.sum_grains for share in self._open.values())
        open_microjoules, open_rest = divmod(open_grains, GRAINS_PER_MICROJOULE)
        idle_microjoules, idle_rest = divmod(self._idle, GRAINS_PER_MICROJOULE)
        foreign_microjoules, foreign_rest = divmod(self._foreign, GRAINS_PER_MICROJOULE)
        trueup_microjoules, trueup_rest = divmod(self._trueup, GRAINS_PER_MICROJOULE)
        fractions = open_rest + idle_rest + foreign_rest + trueup_rest
        return BookTotals(
            request_microjoules=self._settled_microjoules + open_microjoules,
            idle_microjoules=idle_microjoules,
            foreign_microjoules=foreign_microjoules,
            overhead_microjoules=(self._overhead + fractions) // GRAINS_PER_MICROJOULE,
            quarantine_microjoules=self._quarantine_microjoules,
            trueup_microjoules=trueup_microjoules,
            counted_microjoules=self._counted_microjoules,
            open_microjoules=open_microjoules,
        )
