import csv
from pathlib import Path

import pytest

from clusters.grid import UnknownZone, YearlyMeansFeed

_SERIES = Path(__file__).parents[4] / "shared" / "data" / "carbon"


def test_the_table_says_that_it_is_an_estimate_and_whence():
    mean = YearlyMeansFeed().intensity("WORLD")
    assert mean.is_estimated
    assert mean.source
    assert mean.as_of == "2023"


def test_an_unknown_zone_is_refused_with_the_known_ones():
    with pytest.raises(UnknownZone, match=r"'XX'.*DE, FR, WORLD"):
        YearlyMeansFeed().intensity("XX")


@pytest.mark.parametrize("zone", ["DE", "FR"])
def test_the_yearly_means_are_those_of_the_hourly_series(zone):
    if not _SERIES.is_dir():
        pytest.skip(f"{_SERIES} is absent: the hourly series are not part of the repository")
    with (_SERIES / f"{zone}.csv").open() as file:
        hours = [float(row["gco2_per_kwh"]) for row in csv.DictReader(file)]
    assert YearlyMeansFeed().intensity(zone).gco2_per_kwh == pytest.approx(sum(hours) / len(hours), abs=0.05)
