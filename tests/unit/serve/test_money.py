"""Dollars in text and in pico-USD."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.payments.money import USD_PICOS, picos_to_usd, usd_to_picos


@given(st.integers(0, 10**6 * USD_PICOS - 1))
def test_every_amount_comes_back_from_its_text(usd_picos):
    assert usd_to_picos(picos_to_usd(usd_picos)) == usd_picos


@pytest.mark.parametrize(
    ("text", "usd_picos"),
    [("12.34", 12_340_000_000_000), ("5", 5 * USD_PICOS), ("0.000000000001", 1), ("0.10", USD_PICOS // 10)],
)
def test_an_amount_is_read_exactly(text, usd_picos):
    assert usd_to_picos(text) == usd_picos


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e3", "1,000", "01", ".5", "5.", "1.0000000000001", "1000000", "٣", "5\n"]
)
def test_other_texts_are_no_amount(text):
    with pytest.raises(ValueError, match="an amount in USD"):
        usd_to_picos(text)


def test_what_is_owed_has_its_sign_and_two_decimals_at_least():
    assert picos_to_usd(-USD_PICOS // 20) == "-0.05"
    assert picos_to_usd(12 * USD_PICOS + 340_001_000_000) == "12.340001"
    assert picos_to_usd(0) == "0.00"
