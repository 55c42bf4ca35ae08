import pytest

from clusters.grid import UnknownZone, YearlyMeansFeed

_EEA = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IS IT LT LU LV MT NL NO PL PT RO SE SI SK"


def test_the_table_says_that_it_is_an_estimate_and_whence():
    mean = YearlyMeansFeed().intensity("WORLD")
    assert mean.is_estimated
    assert mean.age_s is None
    assert mean.source == "Ember, Yearly Electricity Data 2025, generation in World"
    assert (mean.as_of, mean.gco2_per_kwh) == ("2024", 473.05)


@pytest.mark.parametrize("zone", [*_EEA.split(), "EU", "GB", "CH", "US", "JP", "IN", "CN", "AU", "BR", "CA", "WORLD"])
def test_every_zone_that_is_promised_has_a_plausible_mean(zone):
    mean = YearlyMeansFeed().intensity(zone)
    assert 10 < mean.gco2_per_kwh < 1000
    assert 2022 <= int(mean.as_of) <= 2024


def test_a_part_of_a_country_gets_its_countrys_mean_and_the_source_says_so():
    mean = YearlyMeansFeed().intensity("US-CAL-CISO")
    assert mean.zone == "US-CAL-CISO"
    assert mean.source.endswith("generation in United States")
    assert mean.gco2_per_kwh == YearlyMeansFeed().intensity("US").gco2_per_kwh


@pytest.mark.parametrize("zone", ["XX", "", "XX-CAL", "de", "WORL"])
def test_an_unknown_zone_is_refused_with_the_known_ones(zone):
    with pytest.raises(UnknownZone, match=rf"'{zone}'.*DE, DK.*FR.*WORLD"):
        YearlyMeansFeed().intensity(zone)
