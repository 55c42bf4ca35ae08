"""Carbon intensity of electricity grids, location-based and average (not marginal), and the embedded yearly means."""

import csv
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Protocol

# CC BY 4.0. Life-cycle emissions of what is generated in the country, all greenhouse gases over 100 years; imports are
# not in it. Read from the copy that the Green Web Foundation's CO2.js publishes (data/output/average-intensities.json).
_SOURCE = "Ember, Yearly Electricity Data 2025, generation in"


@dataclass(frozen=True, slots=True, kw_only=True)
class GridIntensity:
    """Grams of CO2-equivalent per kWh in one zone; ``as_of`` is the ISO 8601 hour or year it is true for.

    ``age_s`` says how long the hour of ``as_of`` is over, 0 while it lasts; None where the figure is a year's mean.
    """

    zone: str
    gco2_per_kwh: float
    source: str
    as_of: str
    is_estimated: bool
    age_s: float | None = None


class UnknownZone(Exception):
    """No feed knows the zone; the message names it and the zones that are known."""


class CarbonFeed(Protocol):
    """Where intensities come from. Never blocks: a feed that asks a network answers from what it last heard."""

    def intensity(self, zone: str) -> GridIntensity:
        """The zone's intensity now.

        Raises:
            UnknownZone: the feed has no figure for the zone.
        """


class YearlyMeansFeed:
    """The embedded table, always marked as estimated: right on average, wrong at any given hour.

    Zones are countries (ISO 3166-1 alpha-2), EU and WORLD. A part of a country, named as Electricity Maps does
    (``US-CAL-CISO``, ``DK-DK1``), gets its country's mean, and the source says so.
    """

    def __init__(self) -> None:
        with (files("clusters") / "yearly_means.csv").open(encoding="utf-8") as table:
            self._means = {row["zone"]: _mean(row) for row in csv.DictReader(table)}

    def intensity(self, zone: str) -> GridIntensity:
        """The zone's yearly mean."""
        mean = self._means.get(zone) or self._means.get(zone.partition("-")[0])
        if mean is None:
            raise UnknownZone(
                f"no carbon intensity is known for grid zone {zone!r}; known: {', '.join(sorted(self._means))}, "
                "and parts of a country such as US-CAL-CISO"
            )
        return replace(mean, zone=zone)


def _mean(row: dict[str, str]) -> GridIntensity:
    return GridIntensity(
        zone=row["zone"],
        gco2_per_kwh=float(row["gco2_per_kwh"]),
        source=f"{_SOURCE} {row['name']}",
        as_of=row["year"],
        is_estimated=True,
    )
