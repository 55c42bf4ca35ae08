"""Hourly series in CSV files (``utc_hour,gco2_per_kwh``), read again when they change."""

import logging
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clusters.hourly_figures import HOUR_S, MOST_GCO2_PER_KWH, HourFigure, hour_text

_LOG = logging.getLogger(__name__)
_HEADER = "utc_hour,gco2_per_kwh"
_HOUR_FORMAT = "%Y-%m-%dT%H:%MZ"
# A hundred years of hours is a quarter of it.
_MOST_BYTES = 100_000_000


class BadSeries(Exception):
    """A file is not an hourly series; the message names the file and the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlySeries:
    """Hours as Unix seconds, ascending, and the intensity of each."""

    hours: tuple[int, ...]
    gco2_per_kwh: tuple[float, ...]

    def at(self, now_unix_s: float) -> tuple[int, float] | None:
        """The newest hour that has begun, and its intensity."""
        place = bisect_right(self.hours, now_unix_s) - 1
        return None if place < 0 else (self.hours[place], self.gco2_per_kwh[place])


def read_series(path: Path) -> HourlySeries:
    """Parse a file strictly: the header, then a row an hour, ascending; gaps are allowed.

    Raises:
        BadSeries: it cannot be read, or a row is malformed.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        lines = content.decode("utf-8-sig").splitlines()  # spreadsheets write a byte order mark
    except (OSError, UnicodeDecodeError) as unreadable:
        raise BadSeries(f"cannot read {path}: {unreadable}") from unreadable
    if len(content) > _MOST_BYTES:
        raise BadSeries(f"{path} has more than {_MOST_BYTES} bytes: it is no hourly series")
    if not lines or lines[0].strip() != _HEADER:
        raise BadSeries(f"{path}, line 1: the header must be {_HEADER}")
    hours: list[int] = []
    figures: list[float] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            hour, figure = _row(line)
        except ValueError as malformed:
            raise BadSeries(f"{path}, line {number}: {malformed}") from malformed
        if hours and hour <= hours[-1]:
            raise BadSeries(f"{path}, line {number}: {hour_text(hour)} does not come after {hour_text(hours[-1])}")
        hours.append(hour)
        figures.append(figure)
    return HourlySeries(hours=tuple(hours), gco2_per_kwh=tuple(figures))


def _row(line: str) -> tuple[int, float]:
    hour_part, comma, figure_part = line.partition(",")
    if not comma or "," in figure_part:
        raise ValueError(f"{line!r} is not an hour and a figure")
    try:
        hour = int(datetime.strptime(hour_part.strip(), _HOUR_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise ValueError(f"{hour_part!r} is not like 2020-01-31T08:00Z") from None
    if hour % HOUR_S:
        raise ValueError(f"{hour_part!r} is not a whole hour")
    try:
        figure = float(figure_part)
    except ValueError:
        raise ValueError(f"{figure_part!r} is not a number") from None
    if not math.isfinite(figure) or not 0 <= figure <= MOST_GCO2_PER_KWH:
        raise ValueError(f"{figure_part!r} is no intensity in grams per kWh")
    return hour, figure


class HourlyFiles:
    """An `HourlySource` over one file a zone. A file that turns bad is named in the log; what it said before stays."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._series: dict[str, HourlySeries] = {}
        self._troubles: dict[str, str] = {}

    def refresh(self) -> None:
        """Read each file that is new or has changed."""
        for zone, path in self._paths.items():
            try:
                stat = path.stat()
            except OSError as missing:
                self._fail(zone, f"cannot read {path.name}: {missing.strerror}")
                continue
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._seen.get(zone) == seen:
                continue
            self._seen[zone] = seen
            try:
                self._series[zone] = read_series(path)
                self._troubles.pop(zone, None)
            except BadSeries as bad:
                self._fail(zone, str(bad))

    def figure(self, zone: str, now_unix_s: float) -> HourFigure | None:
        """As `HourlySource.figure`."""
        series = self._series.get(zone)
        found = None if series is None else series.at(now_unix_s)
        if found is None:
            return None
        hour, figure = found
        return HourFigure(
            zone=zone,
            gco2_per_kwh=figure,
            hour_unix_s=hour,
            source=f"hourly series {self._paths[zone].name}",
            is_estimated=False,
        )

    def trouble(self, zone: str) -> str | None:
        """As `HourlySource.trouble`."""
        return self._troubles.get(zone) if zone in self._paths else f"no hourly file is named for {zone}"

    def _fail(self, zone: str, reason: str) -> None:
        self._seen.pop(zone, None)
        if self._troubles.get(zone) != reason:
            _LOG.warning("grid zone %s: %s", zone, reason)
        self._troubles[zone] = reason
