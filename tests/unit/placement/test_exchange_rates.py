import pytest

from placement.exchange_rates import PREFERENCES, ExchangeRates, exchange_rates

_KWH_PER_JOULE = 1 / 3.6e6


def test_the_preferences_keep_to_what_they_are_called():
    """By the README's sum: what a joule costs at 0.50 USD/kWh and on a grid of 300 g/kWh."""
    price = 0.5 * _KWH_PER_JOULE
    carbon = {name: 0.3 * _KWH_PER_JOULE * rates.usd_per_kgco2 for name, rates in PREFERENCES.items()}
    seconds = {name: rates.usd_per_hour_waited / 3600 for name, rates in PREFERENCES.items()}
    assert carbon["cheapest"] == 0
    assert 0.05 < carbon["balanced"] / price < 1
    assert carbon["cleanest"] / price == pytest.approx(60)
    assert seconds["cheapest"] / price == pytest.approx(2.0)
    assert seconds["balanced"] / (price + carbon["balanced"]) == pytest.approx(17.9, abs=0.1)
    assert seconds["cleanest"] / (price + carbon["cleanest"]) == pytest.approx(3.3, abs=0.05)


def test_given_numbers_stand_in_place_of_the_preferences_own():
    assert exchange_rates("balanced") == PREFERENCES["balanced"]
    assert exchange_rates("cleanest", usd_per_hour_waited=0.0) == ExchangeRates(
        usd_per_kgco2=100.0, usd_per_hour_waited=0.0
    )
    assert exchange_rates("balanced", usd_per_kgco2=0.0).usd_per_kgco2 == 0


def test_an_unknown_preference_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'fastest'.*cheapest, balanced, cleanest"):
        exchange_rates("fastest")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
@pytest.mark.parametrize("name", ["usd_per_kgco2", "usd_per_hour_waited"])
def test_a_rate_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        exchange_rates("balanced", **{name: value})
