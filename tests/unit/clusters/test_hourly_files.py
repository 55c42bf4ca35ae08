import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters.hourly_figures import HOUR_S, hour_text
from clusters.hourly_files import BadSeries, HourlyFiles, HourlySeries, read_series

_SERIES = Path(__file__).parents[4] / "shared" / "data" / "carbon"
_HOUR = 1_577_836_800


def _file(tmp_path: Path, *rows: str, header: str = "utc_hour,gco2_per_kwh") -> Path:
    path = tmp_path / "DE.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_series_is_read_and_the_newest_begun_hour_found(tmp_path):
    series = read_series(_file(tmp_path, "2020-01-01T00:00Z,352.1", "2020-01-01T01:00Z,347.6"))
    assert series.at(_HOUR - 1) is None
    assert series.at(_HOUR) == (_HOUR, 352.1)
    assert series.at(_HOUR + HOUR_S - 1) == (_HOUR, 352.1)
    assert series.at(_HOUR + 9 * HOUR_S) == (_HOUR + HOUR_S, 347.6)


@pytest.mark.parametrize("zone", ["DE", "FR"])
def test_a_real_year_is_read_whole(zone):
    if not _SERIES.is_dir():
        pytest.skip(f"{_SERIES} is absent: the hourly series are not part of the repository")
    series = read_series(_SERIES / f"{zone}.csv")
    assert len(series.hours) == 366 * 24
    assert series.at(_HOUR) == (_HOUR, {"DE": 352.1, "FR": 54.4}[zone])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("2020-01-01T02:00Z", "is not an hour and a figure"),
        ("2020-01-01T02:00Z,1,2", "is not an hour and a figure"),
        ("2020-01-01T02:30Z,1", "not a whole hour"),
        ("2020-01-01 02:00,1", "not like 2020-01-31T08:00Z"),
        ("2020-02-30T02:00Z,1", "not like 2020-01-31T08:00Z"),
        ("2020-01-01T02:00Z,", "is not a number"),
        ("2020-01-01T02:00Z,nan", "no intensity"),
        ("2020-01-01T02:00Z,inf", "no intensity"),
        ("2020-01-01T02:00Z,-1", "no intensity"),
        ("2020-01-01T02:00Z,1e300", "no intensity"),
        ("2020-01-01T01:00Z,1", "does not come after 2020-01-01T01:00Z"),
        ("2020-01-01T00:00Z,1", "does not come after"),
        ("", "is not an hour"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path, row, says):
    path = _file(tmp_path, "2020-01-01T00:00Z,352.1", "2020-01-01T01:00Z,347.6", row)
    with pytest.raises(BadSeries, match=rf"DE\.csv, line 4: .*{says}"):
        read_series(path)


@pytest.mark.parametrize("header", ["", "hour,g", "gco2_per_kwh,utc_hour"])
def test_another_header_is_refused(tmp_path, header):
    with pytest.raises(BadSeries, match="line 1"):
        read_series(_file(tmp_path, header=header))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(BadSeries, match="cannot read"):
        read_series(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSeries, match="cannot read"):
        read_series(tmp_path / "binary.csv")


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_header(tmp_path):
    path = _file(tmp_path, "2020-01-01T00:00Z,352.1")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_series(path).at(_HOUR) == (_HOUR, 352.1)


def test_what_is_too_large_is_refused_and_not_cut(tmp_path):
    path = _file(tmp_path, "2020-01-01T00:00Z,352.1")
    os.truncate(path, 100_000_001)
    with pytest.raises(BadSeries, match="more than 100000000 bytes"):
        read_series(path)


@given(
    st.lists(st.integers(0, 500_000), min_size=1, max_size=20, unique=True).map(sorted),
    st.integers(0, 500_000 * HOUR_S),
)
def test_the_hour_found_is_the_last_that_has_begun(places: list[int], now: int):
    hours = tuple(place * HOUR_S for place in places)
    found = HourlySeries(hours=hours, gco2_per_kwh=tuple(map(float, places))).at(now)
    begun = [hour for hour in hours if hour <= now]
    assert found == ((begun[-1], begun[-1] / HOUR_S) if begun else None)


class TestFiles:
    def test_a_change_is_taken_up_at_the_next_refresh(self, tmp_path):
        path = _file(tmp_path, "2020-01-01T00:00Z,352.1")
        files = HourlyFiles({"DE": path})
        assert files.figure("DE", _HOUR) is None
        files.refresh()
        assert files.figure("DE", _HOUR).gco2_per_kwh == 352.1
        assert files.figure("DE", _HOUR).source == "hourly series DE.csv"
        _file(tmp_path, "2020-01-01T00:00Z,10.0")
        assert files.figure("DE", _HOUR).gco2_per_kwh == 352.1, "no disk is read on a request's way"
        files.refresh()
        assert files.figure("DE", _HOUR).gco2_per_kwh == 10.0

    def test_a_change_of_equal_length_is_taken_up_too(self, tmp_path):
        path = _file(tmp_path, "2020-01-01T00:00Z,352.1")
        files = HourlyFiles({"DE": path})
        files.refresh()
        _file(tmp_path, "2020-01-01T00:00Z,111.1")
        os.utime(path, ns=(1, 1))
        files.refresh()
        assert files.figure("DE", _HOUR).gco2_per_kwh == 111.1

    def test_an_unchanged_file_is_not_read_again(self, tmp_path):
        path = _file(tmp_path, "2020-01-01T00:00Z,352.1")
        files = HourlyFiles({"DE": path})
        files.refresh()
        before = path.stat()
        path.write_text(path.read_text().replace("352.1", "111.1"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        files.refresh()
        assert files.figure("DE", _HOUR).gco2_per_kwh == 352.1

    def test_a_file_that_turns_bad_or_goes_is_told_once_and_what_it_said_stays(self, tmp_path, caplog):
        path = _file(tmp_path, "2020-01-01T00:00Z,352.1")
        files = HourlyFiles({"DE": path})
        files.refresh()
        _file(tmp_path, "2020-01-01T00:00Z,what")
        files.refresh()
        files.refresh()
        assert "line 2" in files.trouble("DE")
        assert files.figure("DE", _HOUR).gco2_per_kwh == 352.1
        assert caplog.text.count("line 2") == 1
        path.unlink()
        files.refresh()
        assert "No such file" in files.trouble("DE")
        _file(tmp_path, "2020-01-01T00:00Z,7")
        files.refresh()
        assert files.trouble("DE") is None
        assert files.figure("DE", _HOUR).gco2_per_kwh == 7

    def test_a_zone_without_a_file_says_so(self, tmp_path):
        files = HourlyFiles({})
        files.refresh()
        assert files.figure("FR", _HOUR) is None
        assert files.trouble("FR") == "no hourly file is named for FR"


def test_hours_are_written_as_they_are_read():
    assert hour_text(_HOUR) == "2020-01-01T00:00Z"
