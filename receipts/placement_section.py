"""The receipt's member ``placement``: what was asked of the ranking, the top of its plan, and what was refused.

`PlacementContext` is what the door knows of it before the request runs; `Placement` is what stands on the receipt.
"""

from typing import Annotated, Final, Self

from pydantic import field_validator, model_validator

from receipts.members import MAX_INTEGER, Count, Figure, Joules, StrictModel, Text, json_array

MOST_CANDIDATES: Final = 3
"""Candidates on a receipt: the first of the plan, in its order."""
MOST_REJECTED: Final = 5
"""Rejected pools on a receipt; ``rejected_total`` counts all."""
MOST_PIN_ENTRIES: Final = 32
"""Entries of one pin that is a list."""
_MICROJOULES_PER_JOULE: Final = 10**6
_PICOS_PER_USD: Final = 10**12
_MOST_CHARACTERS: Final = 256
# Up to here a double of joules tells which whole number of microjoules it was made from: 625 kWh.
_MOST_MICROJOULES: Final = 2**51


class Pins(StrictModel):
    """What the request was pinned to; null or empty is not pinned."""

    model: Text | None
    region: Text | None
    residency: Annotated[tuple[Text, ...], json_array(max_length=MOST_PIN_ENTRIES)]
    operators: Annotated[tuple[Text, ...], json_array(max_length=MOST_PIN_ENTRIES)] | None


class Rates(StrictModel):
    """The exchange rates that the ranking went by."""

    usd_per_kgco2: Figure
    usd_per_hour_waited: Figure


class CandidatePool(StrictModel):
    """A pool of the plan, and each part of what the ranking expected this request to cost there."""

    pool: Text
    expected_joules: Joules
    energy_usd_picos: Count
    facility_usd_picos: Count
    carbon_usd_picos: Count
    wait_usd_picos: Count
    network_usd_picos: Count

    @classmethod
    def expecting(
        cls,
        *,
        pool: str,
        expected_microjoules: float,
        energy_usd: float,
        facility_usd: float,
        carbon_usd: float,
        wait_usd: float,
        network_usd: float,
    ) -> Self:
        """From the ranking's own finite figures, in microjoules and USD, each rounded to a whole small unit.

        They are forecasts, and rates that somebody set: one past what a receipt can show stands as the most that it
        can, for no request may fail by it.
        """
        return cls(
            pool=pool,
            expected_joules=min(round(expected_microjoules), _MOST_MICROJOULES) / _MICROJOULES_PER_JOULE,
            energy_usd_picos=_picos(energy_usd),
            facility_usd_picos=_picos(facility_usd),
            carbon_usd_picos=_picos(carbon_usd),
            wait_usd_picos=_picos(wait_usd),
            network_usd_picos=_picos(network_usd),
        )

    @field_validator("expected_joules", mode="after")
    @classmethod
    def _whole_microjoules(cls, joules: float) -> float:
        if round(joules * _MICROJOULES_PER_JOULE) / _MICROJOULES_PER_JOULE != joules:
            raise ValueError(f"{joules!r} is not a whole number of microjoules")
        return joules


class RejectedPool(StrictModel):
    """A pool that could not serve the request, or not now, and why."""

    pool: Text
    reason: Text

    @classmethod
    def because(cls, pool: str, reason: str) -> Self:
        """With a reason of any length and content: control characters become blanks, what is too long is cut."""
        plain = "".join(" " if each < " " or each == "\x7f" else each for each in reason) or "no reason was given"
        cut = plain if len(plain) <= _MOST_CHARACTERS else plain[: _MOST_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"
        return cls(pool=pool, reason=cut)


class PlacementContext(StrictModel):
    """What the door knows of a request's placement when it sends an attempt on.

    ``pool`` is where this attempt goes; ``accepted_unix_ns`` when the mesh took the request, by the wall clock;
    ``resumed_after_tokens`` how many tokens of the answer earlier attempts had sent. ``candidates`` are the first
    `MOST_CANDIDATES` of the plan, ``rejected`` the first `MOST_REJECTED` of ``rejected_total``.
    """

    pool: Text
    accepted_unix_ns: Count
    resumed_after_tokens: Count
    pins: Pins
    rates: Rates
    candidates: Annotated[tuple[CandidatePool, ...], json_array(min_length=1, max_length=MOST_CANDIDATES)]
    rejected: Annotated[tuple[RejectedPool, ...], json_array(max_length=MOST_REJECTED)]
    rejected_total: Count

    @model_validator(mode="after")
    def _first_of_all(self) -> Self:
        if len(self.rejected) != min(self.rejected_total, MOST_REJECTED):
            raise ValueError(f"rejected has {len(self.rejected)} of {self.rejected_total} pools, not the first five")
        candidates, rejected = [each.pool for each in self.candidates], [each.pool for each in self.rejected]
        pools = candidates + rejected
        repeated = sorted({pool for pool in pools if pools.count(pool) > 1})
        if repeated:
            raise ValueError(f"the pool {repeated[0]!r} is there twice")
        if self.pool not in candidates and len(candidates) < MOST_CANDIDATES:
            raise ValueError("pool is no candidate, and these are all of the plan")
        if self.pool in rejected:
            raise ValueError("pool is one that was rejected")
        return self


class Placement(PlacementContext):
    """The same on the receipt, where ``pool`` is the one that answered.

    ``waited_ms`` is how long after the mesh took the request the attempt that answered began, rounded down.
    """

    waited_ms: Count


def _picos(usd: float) -> int:
    return min(round(usd * _PICOS_PER_USD), MAX_INTEGER)
