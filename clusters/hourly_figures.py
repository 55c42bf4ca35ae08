"""Figures that are true for one hour, how long they may stand in for the present, and the feed that serves them."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

from clusters.grid import CarbonFeed, GridIntensity

_LOG = logging.getLogger(__name__)
HOUR_S = 3600
# A figure whose hour is over for longer says too little about now.
STALE_AFTER_S = 2 * HOUR_S
# Several times the dirtiest plant: what is above is an error, or in another unit.
MOST_GCO2_PER_KWH = 10_000.0
# Clocks differ, and a service may round up.
_AHEAD_S = HOUR_S
_ENDS_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HourFigure:
    """A zone's intensity in the hour that began at ``hour_unix_s``."""

    zone: str
    gco2_per_kwh: float
    hour_unix_s: int
    source: str
    is_estimated: bool


class HourlySource(Protocol):
    """Where hourly figures come from. `refresh` is called in one thread; the others in any, and never block."""

    def refresh(self) -> None:
        """Bring the figures up to date. May block for seconds; what fails is kept for `trouble`, never raised."""

    def figure(self, zone: str, now_unix_s: float) -> HourFigure | None:
        """The newest figure that is not of the future; None where there is none."""

    def trouble(self, zone: str) -> str | None:
        """What went wrong at the last refresh of the zone; None when nothing did."""


def intensity_now(
    figure: HourFigure | None, mean: GridIntensity, *, now_unix_s: float, trouble: str | None
) -> GridIntensity:
    """The figure within its hour; for two hours more as an estimate with its age; then the yearly mean.

    ``trouble`` tells, in the mean's source, why there is nothing better.
    """
    age_s = None if figure is None else max(0.0, now_unix_s - figure.hour_unix_s - HOUR_S)
    if figure is None or age_s is None or age_s > STALE_AFTER_S or figure.hour_unix_s > now_unix_s + _AHEAD_S:
        newest = "" if figure is None else f", the newest is of {hour_text(figure.hour_unix_s)}"
        why = f" ({trouble})" if trouble else ""
        return replace(mean, source=f"{mean.source}; no figure for this hour{newest}{why}", is_estimated=True)
    return GridIntensity(
        zone=figure.zone,
        gco2_per_kwh=figure.gco2_per_kwh,
        source=figure.source,
        as_of=hour_text(figure.hour_unix_s),
        is_estimated=figure.is_estimated or age_s > 0,
        age_s=age_s,
    )


def hour_text(unix_s: float) -> str:
    """As the CSV files and Electricity Maps write an hour, to the minute."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%MZ")


class HourlyFeed:
    """A `CarbonFeed` over a source that a thread of this process refreshes, off the request's way."""

    def __init__(
        self, source: HourlySource, means: CarbonFeed, *, refresh_s: float, wall_clock_s: Callable[[], float]
    ) -> None:
        """``means`` answers where there is no figure; ``wall_clock_s`` is the Unix time in seconds."""
        self._source = source
        self._means = means
        self._refresh_s = refresh_s
        self._wall_clock_s = wall_clock_s
        self._stopping = threading.Event()
        self._refreshed = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="grid-carbon", daemon=True)

    def intensity(self, zone: str) -> GridIntensity:
        """The zone's intensity now, from what was last heard."""
        now = self._wall_clock_s()
        return intensity_now(
            self._source.figure(zone, now),
            self._means.intensity(zone),
            now_unix_s=now,
            trouble=self._source.trouble(zone),
        )

    def start(self, *, within_s: float = 0.0) -> None:
        """Refresh now and again in a thread; waits at most ``within_s`` for the first time."""
        self._thread.start()
        self._refreshed.wait(within_s)

    def stop(self) -> None:
        """Refresh no longer."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_ENDS_WITHIN_S)

    def _go_on(self) -> None:
        while not self._stopping.is_set():
            try:
                self._source.refresh()
            except Exception:  # noqa: BLE001 - a feed that ended silently would go stale for good
                _LOG.exception("carbon intensities were not refreshed; the next time they are")
            self._refreshed.set()
            self._stopping.wait(self._refresh_s)
