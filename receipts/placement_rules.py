"""What a receipt's placement must agree with: where the request ran, when it began, and what it was pinned to."""

from dataclasses import dataclass

from placement.pins import Pins as PoolPins
from receipts.errors import InvalidDocument
from receipts.placement_section import Pins, PlacementContext

_NS_PER_MS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """Which model answered, where, and after how many attempts that failed."""

    model: str
    operator: str
    region: str
    country: str | None
    failed_attempts: int


def waited_milliseconds(accepted_unix_ns: int, start_unix_ns: int) -> int:
    """The receipt's ``waited_ms``; none where the clocks of two hosts have it begin before it was accepted."""
    return max(0, (start_unix_ns - accepted_unix_ns) // _NS_PER_MS)


def check_placement(placement: PlacementContext, served: ServedBy) -> None:
    """Check that what was planned is what was done.

    Raises:
        InvalidDocument: the first member of ``placement`` that what ran contradicts.
    """
    if placement.resumed_after_tokens and not served.failed_attempts:
        raise InvalidDocument("placement.resumed_after_tokens: nothing to resume, for no attempt failed")
    site = f"{served.model}@{served.operator}/{served.region}"
    if placement.pool != site and not placement.pool.startswith(f"{site}/"):
        raise InvalidDocument(f"placement.pool is {placement.pool!r}, but {site} answered")
    _check_pins(placement.pins, served)


def _check_pins(pins: Pins, served: ServedBy) -> None:
    try:
        asked = PoolPins(
            model=pins.model,
            region=pins.region,
            residency=pins.residency,
            operators=None if pins.operators is None else frozenset(pins.operators),
        )
    except ValueError as error:
        raise InvalidDocument(f"placement.pins: {error}") from error
    refusal = asked.refusal(model=served.model, region=served.region, country=served.country, operator=served.operator)
    if refusal is not None:
        raise InvalidDocument(f"placement.pins: the pool that answered {refusal}")
