"""What a gram of CO2 and a second of waiting are worth in USD: all that tells one preference from another."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from placement.bounds import refuse_outside

MOST_USD_PER_KGCO2 = 1e6
MOST_USD_PER_HOUR_WAITED = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRates:
    """Worth of a kilogram of CO2-equivalent not emitted and of an hour not waited, both in USD; 0 is no worth.

    Raises:
        ValueError: a rate is negative, not finite or above a million.
    """

    usd_per_kgco2: float
    usd_per_hour_waited: float

    def __post_init__(self) -> None:
        refuse_outside("usd_per_kgco2", self.usd_per_kgco2, 0, MOST_USD_PER_KGCO2)
        refuse_outside("usd_per_hour_waited", self.usd_per_hour_waited, 0, MOST_USD_PER_HOUR_WAITED)


PREFERENCES: Mapping[str, ExchangeRates] = MappingProxyType(
    {
        "cheapest": ExchangeRates(usd_per_kgco2=0.0, usd_per_hour_waited=0.001),
        "balanced": ExchangeRates(usd_per_kgco2=0.2, usd_per_hour_waited=0.01),
        "cleanest": ExchangeRates(usd_per_kgco2=100.0, usd_per_hour_waited=0.1),
    }
)
"""The three named preferences; how the numbers were chosen stands in this package's README, "Ranking".

In a line each, at 0.50 USD/kWh and 300 gCO2eq/kWh. ``cheapest``: carbon is worth nothing and a second 2 J, which is
little, but at nothing every request would queue at the one cheapest pool without end. ``balanced``: a tonne is worth
200 USD (near the social cost of carbon of the US EPA, 2023: 190), a second 18 J. ``cleanest``: energy's price is a
sixtieth of its carbon's, so that grams decide; a second is worth 0.28 mg, 3.3 J.
"""


def exchange_rates(
    prefer: str, *, usd_per_kgco2: float | None = None, usd_per_hour_waited: float | None = None
) -> ExchangeRates:
    """A named preference, with the numbers that are given in place of its own.

    Raises:
        ValueError: there is no such preference, or a number is out of range.
    """
    if prefer not in PREFERENCES:
        raise ValueError(f"there is no preference {prefer!r}; there are: {', '.join(PREFERENCES)}")
    named = PREFERENCES[prefer]
    return ExchangeRates(
        usd_per_kgco2=named.usd_per_kgco2 if usd_per_kgco2 is None else usd_per_kgco2,
        usd_per_hour_waited=named.usd_per_hour_waited if usd_per_hour_waited is None else usd_per_hour_waited,
    )
