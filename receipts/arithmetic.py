"""The receipt's arithmetic, exact: everyone who repeats it gets the same integers.

A figure that stands on a receipt as a double (PUE, intensity, price) counts as the decimal number that its shortest
spelling shows: 1.15 is 115/100, not the binary fraction next to it. Results are rounded half to even, once.
"""

from decimal import Decimal

from receipts.document import Energy, Receipt
from receipts.errors import InvalidDocument
from receipts.placement_rules import ServedBy, check_placement, waited_milliseconds

MICROJOULES_PER_JOULE = 10**6
PICOGRAMS_PER_GRAM = 10**12
_NS_PER_MS = 10**6
# One kWh is 3.6e12 microjoules. Divided into grams or dollars times 10^12, the powers of ten cancel: 3.6 is left.
_KWH_NUMERATOR, _KWH_DENOMINATOR = 36, 10


def facility_microjoules(total_microjoules: int, dc_pue: float) -> int:
    """Energy of the whole facility: IT energy times PUE."""
    numerator, denominator = _ratio(dc_pue)
    return _half_even(total_microjoules * numerator, denominator)


def carbon_picograms(facility_energy_microjoules: int, gco2_per_kwh: float) -> int:
    """CO2-equivalent of the facility's energy."""
    return _per_kwh(facility_energy_microjoules, gco2_per_kwh)


def price_usd_picos(total_microjoules: int, usd_per_kwh: float) -> int:
    """Charge for the IT energy."""
    return _per_kwh(total_microjoules, usd_per_kwh)


def duration_milliseconds(start_unix_ns: int, end_unix_ns: int) -> int:
    """The receipt's ``duration_ms``."""
    return _half_even(end_unix_ns - start_unix_ns, _NS_PER_MS)


def as_double(count: int, units_per_whole: int) -> float:
    """``count`` small units as the receipt shows them: the double nearest to ``count / units_per_whole``."""
    return count / units_per_whole


def microjoules(joules: float, place: str) -> int:
    """What `as_double` was given; ``place`` names the member, for the message.

    Raises:
        InvalidDocument: no whole number of microjoules.
    """
    numerator, denominator = _ratio(joules)
    count, rest = divmod(numerator * MICROJOULES_PER_JOULE, denominator)
    if rest:
        raise InvalidDocument(f"{place} is {joules!r}, not a whole number of microjoules")
    return count


def picograms(gco2eq: float) -> int:
    """A figure in grams as a whole number of picograms, which it was made from wherever a double can show that."""
    numerator, denominator = _ratio(gco2eq)
    return _half_even(numerator * PICOGRAMS_PER_GRAM, denominator)


def check_arithmetic(receipt: Receipt) -> None:
    """Check that the receipt's figures follow from each other, and its placement from what ran.

    Raises:
        InvalidDocument: the first figure that does not.
    """
    execution, energy, carbon, price = receipt.execution, receipt.energy, receipt.carbon, receipt.price
    duration_ms = duration_milliseconds(execution.start_unix_ns, execution.end_unix_ns)
    _check("execution.duration_ms", execution.duration_ms, duration_ms)
    for place, attempt in enumerate(execution.attempts):
        if attempt.joules is not None:
            microjoules(attempt.joules, f"execution.attempts.{place}.joules")
    _check_placement(receipt)
    if energy.total_joules is None:
        _check("price.usd_picos", price.usd_picos, 0)
        return
    total = microjoules(energy.total_joules, "energy.total_joules")
    _check_parts(energy, total)
    facility = facility_microjoules(total, receipt.operator.dc_pue)
    grams = as_double(carbon_picograms(facility, carbon.grid_intensity_gco2_per_kwh), PICOGRAMS_PER_GRAM)
    _check("carbon.facility_joules", carbon.facility_joules, as_double(facility, MICROJOULES_PER_JOULE))
    _check("carbon.gco2eq_total", carbon.gco2eq_total, grams)
    _check("price.usd_picos", price.usd_picos, price_usd_picos(total, price.usd_per_kwh))


def _check_placement(receipt: Receipt) -> None:
    placement = receipt.placement
    if placement is None:
        return
    waited_ms = waited_milliseconds(placement.accepted_unix_ns, receipt.execution.start_unix_ns)
    _check("placement.waited_ms", placement.waited_ms, waited_ms)
    check_placement(
        placement,
        ServedBy(
            model=receipt.workload.model,
            operator=receipt.silicon.operator,
            region=receipt.silicon.region,
            country=receipt.operator.country,
            failed_attempts=len(receipt.execution.attempts),
        ),
    )


def _check_parts(energy: Energy, total: int) -> None:
    active = microjoules(_known(energy.active_joules), "energy.active_joules")
    floor = microjoules(_known(energy.floor_joules), "energy.floor_joules")
    estimated = microjoules(_known(energy.estimated_joules), "energy.estimated_joules")
    _check("energy.total_joules", energy.total_joules, as_double(active + floor, MICROJOULES_PER_JOULE))
    if estimated > total:
        raise InvalidDocument(f"energy.estimated_joules is {energy.estimated_joules!r}, more than the total")


def _known(joules: float | None) -> float:
    assert joules is not None, "the schema lets no part be null where there is a total"
    return joules


def _check(place: str, found: float | None, expected: float) -> None:
    if found != expected:
        raise InvalidDocument(f"{place} is {found!r}, but the other figures make it {expected!r}")


def _per_kwh(energy_microjoules: int, rate_per_kwh: float) -> int:
    numerator, denominator = _ratio(rate_per_kwh)
    return _half_even(energy_microjoules * numerator * _KWH_DENOMINATOR, denominator * _KWH_NUMERATOR)


def _ratio(figure: float) -> tuple[int, int]:
    """The decimal spelling as a fraction; Decimal's constructor is exact whatever the context."""
    return Decimal(repr(figure)).as_integer_ratio()


def _half_even(numerator: int, denominator: int) -> int:
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + (twice > denominator or (twice == denominator and quotient % 2))
