"""What a host meter shows of itself: its counters, its replicas, its book, and what went wrong. Values only."""

from dataclasses import asdict, dataclass
from typing import Any

from metering.book import BookTotals
from metering.calibration import ReplicaWork
from metering.settlement import Confidence, MeteredSilicon


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something that could have made a figure wrong and was booked apart instead: one line with device and reason.

    Recorded once per event, however long it lasts.
    """

    at_unix_ns: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One counter. ``counted_microjoules`` since the book began, ``quarantine_microjoules`` of it included.

    ``reading_microjoules`` is what the device itself said last, and ``trouble`` why it can't be read or trusted now.
    """

    device_id: str
    method: str
    scope: str
    period_ns: int
    maximum_power_milliwatts: int | None
    error_percent: float
    best_confidence: Confidence
    counted_microjoules: int
    quarantine_microjoules: int
    reading_microjoules: int | None
    read_at_monotonic_ns: int | None
    power_milliwatts: int | None
    floor_milliwatts: int | None
    trouble: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """One registered replica.

    ``unavailable`` is why its requests' energy can't be known, ``shared`` why its devices aren't its alone.
    """

    replica: str
    model: str
    device_ids: tuple[str, ...]
    is_calibrated: bool
    unavailable: str | None
    shared: str | None
    resident_requests: int
    work: ReplicaWork


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReport:
    """One host's meter at a moment.

    ``counters_microjoules`` is what the counters say they have counted since the book began, each by itself, those of
    devices that are gone and the balance that the book was opened with included. ``trueup_magnitude_microjoules``
    sums, over the settled requests, how far the estimate of each one's open part was from what the counters then
    said. ``incidents`` are the newest ones, newest last.
    """

    node: str
    silicon: MeteredSilicon
    notes: tuple[str, ...]
    devices: tuple[DeviceReport, ...]
    replicas: tuple[ReplicaReport, ...]
    totals: BookTotals
    counters_microjoules: int
    trueup_magnitude_microjoules: int
    settled_requests: int
    open_requests: int
    unacknowledged: int
    meter_key: str
    statement_sequence: int
    incidents: tuple[Incident, ...]

    @property
    def identity_error_microjoules(self) -> int:
        """All accounts less what the counters have counted: 0, or energy was read that isn't in the book."""
        return self.totals.sum_microjoules - self.counters_microjoules

    @property
    def trueup_share(self) -> float | None:
        """The magnitude of all estimates' errors over what was counted; ``None`` when nothing was."""
        return self._share(self.trueup_magnitude_microjoules)

    @property
    def trueup_bias(self) -> float | None:
        """The trueup account, signed, over what was counted; ``None`` when nothing was."""
        return self._share(self.totals.trueup_microjoules)

    def to_jsonable(self) -> dict[str, Any]:
        """The report and its derived figures in plain JSON types."""
        return {
            **asdict(self),
            "identity_error_microjoules": self.identity_error_microjoules,
            "trueup_share": self.trueup_share,
            "trueup_bias": self.trueup_bias,
        }

    def _share(self, microjoules: int) -> float | None:
        counted = self.totals.counted_microjoules
        return microjoules / counted if counted else None
