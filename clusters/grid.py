"""Carbon intensity of electricity grids, location-based and average (not marginal)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class GridIntensity:
    """Grams of CO2-equivalent per kWh in one zone; ``as_of`` is the ISO 8601 time or year it is true for."""

    zone: str
    gco2_per_kwh: float
    source: str
    as_of: str
    is_estimated: bool


class UnknownZone(Exception):
    """No feed knows the zone; the message names it and the zones that are known."""


class CarbonFeed(Protocol):
    """Where intensities come from. Never blocks: a feed that asks a network answers from what it last heard."""

    def intensity(self, zone: str) -> GridIntensity:
        """The zone's intensity now.

        Raises:
            UnknownZone: the feed has no figure for the zone.
        """


YEARLY_MEANS: Mapping[str, GridIntensity] = {
    zone: GridIntensity(zone=zone, gco2_per_kwh=mean, source=source, as_of=year, is_estimated=True)
    for zone, mean, source, year in (
        ("WORLD", 480.0, "Ember, Global Electricity Review 2024, world mean", "2023"),
        (
            "DE",
            313.4,
            "mean of the hourly series of Wiesner et al., Let's Wait Awhile, Middleware 2021",
            "2020",
        ),
        (
            "FR",
            56.3,
            "mean of the hourly series of Wiesner et al., Let's Wait Awhile, Middleware 2021",
            "2020",
        ),
    )
}


class YearlyMeansFeed:
    """The embedded table, always marked as estimated: right on average, wrong at any given hour."""

    def intensity(self, zone: str) -> GridIntensity:
        """The zone's yearly mean."""
        try:
            return YEARLY_MEANS[zone]
        except KeyError:
            raise UnknownZone(
                f"no carbon intensity is known for grid zone {zone!r}; known: {', '.join(sorted(YEARLY_MEANS))}"
            ) from None
