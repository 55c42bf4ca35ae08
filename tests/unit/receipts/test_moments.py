"""Moments as people write them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.errors import InvalidMoment
from receipts.moments import parse_moment, parse_moment_to_come, rfc3339

NOW_NS = 1_782_219_834_000_123_456
DAY_NS = 86_400 * 10**9


@pytest.mark.parametrize(
    ("text", "back_ns"),
    [("90s", 90 * 10**9), ("5m", 300 * 10**9), ("12h", DAY_NS // 2), ("30d", 30 * DAY_NS), ("2w", 14 * DAY_NS)],
)
def test_a_length_counts_back_from_now(text: str, back_ns: int) -> None:
    assert parse_moment(text, NOW_NS) == NOW_NS - back_ns


def test_a_length_reaches_back_no_further_than_1970() -> None:
    assert parse_moment("999999999w", NOW_NS) == 0


@pytest.mark.parametrize(
    ("text", "unix_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-06-23T13:03:54.000123456Z", NOW_NS),
        ("2026-06-23T15:03:54.000123456+02:00", NOW_NS),
        ("2026-06-23t13:03:54.5z", NOW_NS - 123_456 + 500_000_000),
        ("2026-06-23 13:03:54-00:00", NOW_NS - 123_456),
        ("2262-04-11T23:47:16.854775807Z", 2**63 - 1),
    ],
)
def test_rfc_3339_is_read_to_the_nanosecond(text: str, unix_ns: int) -> None:
    assert parse_moment(text, 0) == unix_ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "d",
        "-3d",
        "3.5d",
        "30 d",
        "3y",
        "yesterday",
        "1234567890123d",
        "٣d",
        "2026-06-23",
        "2026-06-23T13:03:54",
        "2026-02-30T00:00:00Z",
        "2026-06-23T24:00:00Z",
        "2026-06-23T13:03:60Z",
        "2026-06-23T13:03:54+24:00",
        "2026-06-23T13:03:54.Z",
        "2026-06-23T13:03:54.0123456789Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "1969-12-31T23:59:59.999999999Z",
        "2262-04-11T23:47:16.854775808Z",
        "9999-12-31T23:59:59Z",
        "2026-06-23T13:03:54Z\n",
        "x" * 100_000,
    ],
)
def test_anything_else_is_refused_in_a_short_line(text: str) -> None:
    with pytest.raises(InvalidMoment) as refused:
        parse_moment(text, NOW_NS)
    assert len(str(refused.value)) < 250


def test_a_lost_plus_is_explained() -> None:
    with pytest.raises(InvalidMoment, match="write the \\+ of an offset as %2B"):
        parse_moment("2026-06-23T13:03:54 02:00", NOW_NS)


@given(st.integers(0, 2**63 - 1))
def test_what_is_written_is_read_back(unix_ns: int) -> None:
    assert parse_moment(rfc3339(unix_ns), 0) == unix_ns


@given(st.timedeltas(timedelta(days=1), timedelta(days=100_000)), st.integers(-23 * 60, 23 * 60))
def test_it_agrees_with_the_standard_library(since_1970: timedelta, offset_minutes: int) -> None:
    shifted = datetime(1970, 1, 1, tzinfo=UTC) + since_1970 + timedelta(minutes=offset_minutes)
    sign = "-" if offset_minutes < 0 else "+"
    text = f"{shifted:%Y-%m-%dT%H:%M:%S.%f}{sign}{abs(offset_minutes) // 60:02d}:{abs(offset_minutes) % 60:02d}"
    assert parse_moment(text, 0) == since_1970 // timedelta(microseconds=1) * 1000


@pytest.mark.parametrize(("text", "ahead_ns"), [("0s", 0), ("12h", DAY_NS // 2), ("90d", 90 * DAY_NS)])
def test_a_length_counts_on_to_a_moment_to_come(text: str, ahead_ns: int) -> None:
    assert parse_moment_to_come(text, NOW_NS) == NOW_NS + ahead_ns


def test_a_moment_to_come_may_be_written_out_and_is_before_2262() -> None:
    written = "2033-05-18T03:33:20Z"
    assert parse_moment_to_come(written, NOW_NS) == parse_moment(written, NOW_NS)
    assert parse_moment_to_come("999999999w", NOW_NS) == 2**63 - 1
    with pytest.raises(InvalidMoment, match="how long from now"):
        parse_moment_to_come("soon", NOW_NS)
