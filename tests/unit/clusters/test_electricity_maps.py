import pytest

from clusters.electricity_maps import ElectricityMaps, NoFigure
from clusters.hourly_figures import HourFigure

_NOW = 1_700_000_000.0


class _Service:
    """Answers from a script; then with a figure."""

    def __init__(self, *script: NoFigure) -> None:
        self.script = list(script)
        self.asked: list[str] = []

    def latest(self, zone: str) -> HourFigure:
        self.asked.append(zone)
        if self.script:
            raise self.script.pop(0)
        return HourFigure(zone=zone, gco2_per_kwh=300.0, hour_unix_s=0, source="live", is_estimated=False)


class _Trial:
    def __init__(self, service: _Service | None, *zones: str) -> None:
        self.now = _NOW
        self.pauses: list[float] = []
        self.source = ElectricityMaps(
            service,
            zones or ("DE",),
            missing="no API key in KEY",
            wall_clock_s=lambda: self.now,
            pause=self.pauses.append,
        )


def test_each_zone_is_asked_once():
    service = _Service()
    trial = _Trial(service, "DE", "FR", "DE")
    assert trial.source.trouble("DE") == "not heard yet"
    trial.source.refresh()
    assert service.asked == ["DE", "FR"]
    assert trial.source.figure("FR", _NOW).gco2_per_kwh == 300.0
    assert trial.source.trouble("FR") is None


def test_what_may_pass_is_tried_again_with_growing_pauses():
    service = _Service(NoFigure("500", is_passing=True), NoFigure("timeout", is_passing=True))
    trial = _Trial(service)
    trial.source.refresh()
    assert service.asked == ["DE"] * 3
    assert trial.pauses == [1.0, 2.0]
    assert trial.source.figure("DE", _NOW) is not None


def test_after_three_tries_it_waits_for_the_next_refresh(caplog):
    service = _Service(*[NoFigure("500", is_passing=True)] * 6)
    trial = _Trial(service)
    trial.source.refresh()
    assert len(service.asked) == 3
    assert trial.source.trouble("DE") == "500"
    trial.source.refresh()
    assert caplog.text.count("500") == 1, "the same trouble is told once"
    trial.source.refresh()
    assert trial.source.trouble("DE") is None


@pytest.mark.parametrize("status", ["401", "404"])
def test_a_refusal_is_not_tried_again_at_once_and_stops_no_other_zone(status):
    service = _Service(NoFigure(status))
    trial = _Trial(service, "DE", "FR")
    trial.source.refresh()
    assert service.asked == ["DE", "FR"]
    assert trial.source.trouble("DE") == status
    trial.source.refresh()
    assert trial.source.figure("DE", _NOW) is not None


def test_a_rate_limit_stops_every_zone_until_its_time():
    service = _Service(NoFigure("429", retry_after_s=120))
    trial = _Trial(service, "DE", "FR")
    trial.source.refresh()
    assert service.asked == ["DE"]
    trial.now += 119
    trial.source.refresh()
    assert service.asked == ["DE"]
    trial.now += 1
    trial.source.refresh()
    assert service.asked == ["DE", "DE", "FR"]


def test_a_clock_that_is_set_back_makes_no_pause_longer():
    service = _Service(NoFigure("429", retry_after_s=120))
    trial = _Trial(service)
    trial.source.refresh()
    trial.now -= 86_400
    trial.source.refresh()
    assert service.asked == ["DE", "DE"]


def test_what_was_heard_stays_while_the_service_is_away():
    service = _Service()
    trial = _Trial(service)
    trial.source.refresh()
    service.script = [NoFigure("404")]
    trial.source.refresh()
    assert trial.source.figure("DE", _NOW) is not None
    assert trial.source.trouble("DE") == "404"


def test_without_a_key_nothing_is_asked_and_the_reason_is_told():
    trial = _Trial(None)
    trial.source.refresh()
    assert trial.source.figure("DE", _NOW) is None
    assert trial.source.trouble("DE") == "no API key in KEY"
