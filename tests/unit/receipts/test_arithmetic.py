"""Exact sums: what anybody gets who repeats them with pencil and paper."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.arithmetic import (
    MICROJOULES_PER_JOULE,
    PICOGRAMS_PER_GRAM,
    as_double,
    carbon_picograms,
    check_arithmetic,
    duration_milliseconds,
    facility_microjoules,
    microjoules,
    price_usd_picos,
)
from receipts.canonical import parse_strict
from receipts.document import Receipt, document_from
from receipts.errors import InvalidDocument

# Doubles on a receipt come from people and feeds: few digits, but any double must do.
RATES = st.decimals(0, 2000, places=3).map(float) | st.floats(0, 1e6)
PUES = st.decimals(1, 3, places=2).map(float) | st.floats(1, 100)
ENERGIES = st.integers(0, 2**33 * MICROJOULES_PER_JOULE - 1)


def half_even(exact: Fraction) -> int:
    """Python's own rounding of fractions is half to even."""
    return round(exact)


@given(ENERGIES, PUES)
def test_facility_energy_is_it_energy_times_pue(energy: int, pue: float) -> None:
    assert facility_microjoules(energy, pue) == half_even(energy * Fraction(repr(pue)))


@given(ENERGIES, RATES)
def test_carbon_and_price_are_energy_in_kwh_times_a_rate(energy: int, rate: float) -> None:
    kwh = Fraction(energy, 1_000_000) / 3_600_000
    assert carbon_picograms(energy, rate) == half_even(kwh * Fraction(repr(rate)) * 10**12)
    assert price_usd_picos(energy, rate) == half_even(kwh * Fraction(repr(rate)) * 10**12)


def test_the_product_pages_request() -> None:
    # 0.31 J in a facility of PUE 1.15 on a grid of 110 g/kWh; the page's 0.07 g is four orders too much.
    assert facility_microjoules(310_000, 1.15) == 356_500
    assert carbon_picograms(356_500, 110.0) == 10_893_056
    # DESIGN: a lookup of 0.01 J at $0.50/kWh is about 1,400 pico-USD.
    assert price_usd_picos(10_000, 0.5) == 1_389


def test_a_tie_goes_to_the_even_neighbour() -> None:
    assert [facility_microjoules(1, pue) for pue in (1.5, 2.5, 3.5)] == [2, 2, 4]
    assert [duration_milliseconds(0, ns) for ns in (500_000, 1_500_000, 2_500_000, 2_500_001)] == [0, 2, 2, 3]


@given(ENERGIES)
def test_microjoules_survive_being_shown_as_joules(energy: int) -> None:
    assert microjoules(as_double(energy, MICROJOULES_PER_JOULE), "x") == energy


@given(st.integers(0, 2**13 * PICOGRAMS_PER_GRAM - 1))
def test_picograms_survive_being_shown_as_grams(picograms: int) -> None:
    grams = as_double(picograms, PICOGRAMS_PER_GRAM)
    assert Fraction(repr(grams)) * PICOGRAMS_PER_GRAM == picograms


def test_less_than_a_microjoule_is_refused() -> None:
    with pytest.raises(InvalidDocument, match=r"energy\.x is 1e-07, not a whole number of microjoules"):
        microjoules(1e-7, "energy.x")


@pytest.fixture(scope="session")
def receipt(group) -> Receipt:
    document = document_from(parse_strict(group.receipt(1, 1, None)))
    assert isinstance(document, Receipt)
    return document


def changed(receipt: Receipt, section: str, **members: object) -> Receipt:
    return receipt.model_copy(update={section: getattr(receipt, section).model_copy(update=members)})


def test_a_drafted_receipt_adds_up(receipt: Receipt) -> None:
    check_arithmetic(receipt)


@pytest.mark.parametrize(
    ("section", "members", "says"),
    [
        ("execution", {"duration_ms": 313}, "execution.duration_ms is 313, but the other figures make it 312"),
        ("execution", {"end_unix_ns": 1_782_219_835_000_000_000}, "execution.duration_ms is 312"),
        ("energy", {"total_joules": 0.32}, "energy.total_joules is 0.32, but the other figures make it 0.31"),
        ("energy", {"total_joules": 0.3100001}, "energy.total_joules is 0.3100001, not a whole number"),
        ("energy", {"active_joules": 0.1}, "energy.total_joules is 0.31, but the other figures make it 0.114999"),
        ("energy", {"floor_joules": 0.0}, "energy.total_joules is 0.31"),
        ("energy", {"estimated_joules": 0.310001}, "energy.estimated_joules is 0.310001, more than the total"),
        ("carbon", {"facility_joules": 0.31}, "carbon.facility_joules is 0.31, but the other figures make it 0.3565"),
        ("carbon", {"gco2eq_total": 0.07}, "carbon.gco2eq_total is 0.07"),
        ("carbon", {"grid_intensity_gco2_per_kwh": 11.0}, "carbon.gco2eq_total is"),
        ("operator", {"dc_pue": 1.1}, "carbon.facility_joules is 0.3565"),
        ("price", {"usd_picos": 43_055}, "price.usd_picos is 43055, but the other figures make it 43056"),
        ("price", {"usd_per_kwh": 0.6}, "price.usd_picos is 43056"),
    ],
)
def test_a_figure_that_does_not_follow_is_named(
    receipt: Receipt, section: str, members: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidDocument, match=says.replace(".", r"\.")):
        check_arithmetic(changed(receipt, section, **members))


def test_unknown_energy_costs_nothing(receipt: Receipt) -> None:
    unknown = changed(receipt, "energy", total_joules=None)
    with pytest.raises(InvalidDocument, match=r"price\.usd_picos is 43056, but the other figures make it 0"):
        check_arithmetic(unknown)
    check_arithmetic(changed(unknown, "price", usd_picos=0))
