import threading

from hypothesis import given
from hypothesis import strategies as st

from clusters.grid import GridIntensity, YearlyMeansFeed
from clusters.hourly_figures import HOUR_S, STALE_AFTER_S, HourFigure, HourlyFeed, hour_text, intensity_now

_MEAN = GridIntensity(zone="DE", gco2_per_kwh=344.0, source="a table", as_of="2024", is_estimated=True)
_HOUR = 1_577_836_800


def _figure(*, is_estimated: bool = False) -> HourFigure:
    return HourFigure(zone="DE", gco2_per_kwh=350.0, hour_unix_s=_HOUR, source="a file", is_estimated=is_estimated)


def _at(seconds: float, figure: HourFigure | None = None, trouble: str | None = None) -> GridIntensity:
    return intensity_now(figure or _figure(), _MEAN, now_unix_s=_HOUR + seconds, trouble=trouble)


class TestAge:
    def test_within_its_hour_a_figure_is_exact(self):
        for seconds in (0, 1, HOUR_S - 1):
            now = _at(seconds)
            assert (now.gco2_per_kwh, now.is_estimated, now.age_s) == (350.0, False, 0)
            assert (now.source, now.as_of) == ("a file", "2020-01-01T00:00Z")

    def test_for_two_hours_more_it_is_an_estimate_with_its_age(self):
        now = _at(HOUR_S + 600)
        assert (now.gco2_per_kwh, now.is_estimated, now.age_s) == (350.0, True, 600)
        assert _at(HOUR_S + STALE_AFTER_S).age_s == STALE_AFTER_S

    def test_then_the_yearly_mean_tells_why(self):
        now = _at(HOUR_S + STALE_AFTER_S + 1, trouble="the file is gone")
        assert (now.gco2_per_kwh, now.is_estimated, now.age_s, now.as_of) == (344.0, True, None, "2024")
        assert now.source == ("a table; no figure for this hour, the newest is of 2020-01-01T00:00Z (the file is gone)")

    def test_without_any_figure_too(self):
        now = intensity_now(None, _MEAN, now_unix_s=_HOUR, trouble=None)
        assert (now.gco2_per_kwh, now.source) == (344.0, "a table; no figure for this hour")

    def test_an_estimate_stays_one(self):
        assert _at(0, _figure(is_estimated=True)).is_estimated

    def test_a_figure_of_a_far_future_is_not_for_now(self):
        assert _at(-HOUR_S).gco2_per_kwh == 350.0
        assert _at(-HOUR_S - 1).gco2_per_kwh == 344.0

    @given(st.floats(0, 10 * HOUR_S), st.floats(0, 10 * HOUR_S))
    def test_time_alone_never_makes_it_fresher(self, one: float, other: float):
        earlier, later = _at(min(one, other)), _at(max(one, other))
        assert earlier.is_estimated <= later.is_estimated
        assert (later.age_s is None) or (earlier.age_s is not None and earlier.age_s <= later.age_s <= STALE_AFTER_S)
        assert (later.age_s is None) == (later.gco2_per_kwh == _MEAN.gco2_per_kwh)


class _Source:
    """One figure, which comes with the first refresh; the second refresh fails."""

    def __init__(self) -> None:
        self.refreshes = 0
        self.enough = threading.Event()

    def refresh(self) -> None:
        self.refreshes += 1
        if self.refreshes == 2:
            raise RuntimeError("a fault in the feed")
        if self.refreshes >= 3:
            self.enough.set()

    def figure(self, zone: str, now_unix_s: float) -> HourFigure | None:
        return _figure() if self.refreshes else None

    def trouble(self, zone: str) -> str | None:
        return None if self.refreshes else "not heard yet"


def test_the_feed_answers_before_it_has_heard_anything_and_refreshes_off_the_callers_way():
    source = _Source()
    feed = HourlyFeed(source, YearlyMeansFeed(), refresh_s=0.01, wall_clock_s=lambda: _HOUR + 1.0)
    assert feed.intensity("DE").source.endswith("(not heard yet)")
    feed.start(within_s=10)
    try:
        assert feed.intensity("DE").gco2_per_kwh == 350.0
        assert source.enough.wait(10), "a refresh that fails must not be the last"
    finally:
        feed.stop()
    ended_at = source.refreshes
    assert not source.enough.wait(0.05) or source.refreshes == ended_at


@given(st.integers(0, 4_000_000_000))
def test_an_hour_is_written_as_the_files_have_it(unix_s: int):
    assert len(hour_text(unix_s)) == len("2020-01-01T00:00Z")
