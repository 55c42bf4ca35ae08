"""What a reading says, whatever happened to the counter, the device or the machine since the one before."""

import pytest

from metering.watched_counter import WatchedCounter

SECOND_NS = 1_000_000_000


class Watch:
    """A counter of 1 kW at the most, watched; time passes in `after`."""

    def __init__(self, lab, **facts):
        self.clock = lab.clock()
        self.counter = lab.counter(self.clock, **facts)
        self.watched = self.fresh()
        self.watched.resume(None, unusable=None, suspended_ns=0)

    def fresh(self):
        return WatchedCounter(self.counter, power_window_ns=SECOND_NS // 10)

    def after(self, milliseconds, microjoules):
        self.clock.now_ns += milliseconds * 1_000_000
        self.counter.add(microjoules)
        return self.watched.take(self.clock.suspended_ns)


@pytest.fixture
def watch(lab):
    return Watch(lab)


def _parts(movement):
    return movement.energy_microjoules, movement.stray_microjoules, movement.quarantine_microjoules


def test_what_is_plain_is_divided(watch):
    movement = watch.after(100, 5_000_000)
    assert _parts(movement) == (5_000_000, 0, 0)
    assert movement.lost is movement.news is None
    assert watch.watched.power_milliwatts == 50_000


def test_a_reset_is_unknown_and_a_new_epoch_begins(watch):
    watch.after(100, 5_000_000)
    watch.counter.value = 0
    movement = watch.after(100, 1_000_000)
    assert _parts(movement) == (0, 0, 0)
    assert "reset" in movement.lost
    assert movement.news == movement.lost
    assert _parts(watch.after(100, 2_000_000)) == (2_000_000, 0, 0)


def test_each_reset_is_news(watch):
    for _ in range(2):
        watch.after(100, 5_000_000)
        watch.counter.value = 0
        assert watch.after(100, 0).news


def test_a_wrap_is_undone(lab):
    watch = Watch(lab, wrap_microjoules=250_000_000)
    for _ in range(5):
        assert _parts(watch.after(100, 90_000_000)) == (90_000_000, 0, 0)


def test_jumps_are_quarantined_and_one_event_while_they_go_on(watch):
    jumps = [watch.after(100, 10**9) for _ in range(5)]
    assert [_parts(movement) for movement in jumps] == [(0, 0, 10**9)] * 5
    assert [movement.news is not None for movement in jumps] == [True] + [False] * 4
    assert all("jumped" in movement.lost for movement in jumps)
    watch.after(20_000, 0)
    assert watch.after(100, 10**9).news


def test_a_device_that_comes_back_has_drawn_overhead_meanwhile(watch):
    watch.after(100, 1_000_000)
    watch.counter.is_lost = True
    gone = [watch.after(100, 1_000_000) for _ in range(3)]
    assert [_parts(movement) for movement in gone] == [(0, 0, 0)] * 3
    assert [movement.news for movement in gone] == ["cpu-package-0: gone", None, None]
    assert watch.watched.report(None).trouble == "cpu-package-0: gone"
    watch.counter.is_lost = False
    back = watch.after(100, 1_000_000)
    assert _parts(back) == (0, 4_000_000, 0)
    assert back.lost == "cpu-package-0: could not be read for 0.4 s"
    assert back.news.endswith("can be read again after 0.4 s; 4.000 J that it counted meanwhile are overhead")
    assert _parts(watch.after(100, 7)) == (7, 0, 0)
    assert watch.watched.report(None).trouble is None


def test_a_device_that_comes_back_reset_is_not_guessed(watch):
    watch.after(100, 9_000_000)
    watch.counter.is_lost = True
    watch.after(100, 0)
    watch.counter.is_lost, watch.counter.value = False, 0
    back = watch.after(100, 1_000_000)
    assert _parts(back) == (0, 0, 0)
    assert "reset" in back.news


def test_energy_over_a_suspend_is_quarantined(watch):
    watch.after(100, 1_000_000)
    watch.clock.suspended_ns = 3600 * SECOND_NS
    movement = watch.after(100, 2_000_000)
    assert _parts(movement) == (0, 0, 2_000_000)
    assert movement.lost == "cpu-package-0: the machine was suspended for 3600.0 s"
    assert _parts(watch.after(100, 5)) == (5, 0, 0)


@pytest.mark.parametrize("wrap_microjoules", [None, 250_000_000])
def test_a_counter_that_a_suspend_has_set_back_is_not_taken_for_a_wrap(lab, wrap_microjoules):
    watch = Watch(lab, wrap_microjoules=wrap_microjoules)
    watch.after(100, 90_000_000)
    watch.clock.suspended_ns = SECOND_NS // 5
    watch.counter.value = 0
    assert _parts(watch.after(1, 0)) == (0, 0, 0)


def test_a_counter_that_could_have_gone_round_in_a_suspend_is_not_known(lab):
    watch = Watch(lab, wrap_microjoules=250_000_000)
    watch.after(100, 1_000_000)
    watch.clock.suspended_ns = SECOND_NS
    assert _parts(watch.after(1, 1_000_000)) == (0, 0, 0)


@pytest.mark.parametrize(("period_ns", "longest_s"), [(1_000_000, 2), (200_000_000, 4)])
def test_a_counter_that_stands_still_while_work_goes_on(lab, period_ns, longest_s):
    watch = Watch(lab, period_ns=period_ns)
    watch.after(100, 1_000_000)
    verdicts = []
    for _ in range(longest_s * 10 + 5):
        assert watch.after(100, 0).lost is None
        verdicts.append(watch.watched.worked(SECOND_NS // 10))
    assert [verdict.lost is not None for verdict in verdicts] == [False] * (longest_s * 10 - 1) + [True] * 6
    assert sum(verdict.news is not None for verdict in verdicts) == 1
    assert "stood still" in watch.watched.report(None).trouble
    moved = watch.after(100, 3_000_000)
    assert _parts(moved) == (0, 0, 3_000_000)
    assert "moved again" in moved.lost
    assert moved.news
    assert _parts(watch.after(100, 7)) == (7, 0, 0)
    assert watch.watched.report(None).trouble is None


def test_a_counter_may_stand_still_while_nothing_works(watch):
    for _ in range(100):
        assert watch.after(100, 0).lost is None
    assert _parts(watch.after(100, 7)) == (7, 0, 0)


def _resumed(watch, *, unusable=None):
    successor = watch.fresh()
    movement = successor.resume(watch.watched.mark, unusable=unusable, suspended_ns=watch.clock.suspended_ns)
    return successor, movement


def test_the_next_meter_counts_what_was_drawn_between_them(watch):
    watch.after(100, 5_000_000)
    watch.clock.now_ns += SECOND_NS
    watch.counter.add(9_000_000)
    successor, movement = _resumed(watch)
    assert _parts(movement) == (0, 9_000_000, 0)
    assert movement.news is None
    assert successor.report(None).counted_microjoules == 14_000_000


@pytest.mark.parametrize(
    ("happened", "quarantined", "reason"),
    [
        (lambda watch: setattr(watch.counter, "value", 0), 0, "reset"),
        (lambda watch: watch.counter.add(10**10), 10**10, "jumped"),
        (lambda watch: setattr(watch.clock, "suspended_ns", SECOND_NS), 0, "suspended"),
    ],
)
def test_what_happened_while_there_was_no_meter_is_told(watch, happened, quarantined, reason):
    watch.after(100, 5_000_000)
    happened(watch)
    _, movement = _resumed(watch)
    assert _parts(movement) == (0, 0, quarantined)
    assert reason in movement.news
    assert movement.news.endswith("while the meter was away")


def test_after_a_reboot_a_new_epoch_begins_and_the_sums_go_on(watch):
    watch.after(100, 5_000_000)
    watch.counter.value = 50_000_000
    successor, movement = _resumed(watch, unusable="the machine was rebooted")
    assert _parts(movement) == (0, 0, 0)
    assert movement.news.endswith("is unknown: the machine was rebooted")
    assert successor.report(None).counted_microjoules == 5_000_000
    watch.clock.now_ns += SECOND_NS
    watch.counter.add(3)
    assert _parts(successor.take(0)) == (3, 0, 0)


def test_another_methods_reading_is_not_gone_on_from(lab, watch):
    watch.after(100, 5_000_000)
    mark = watch.watched.mark
    other = WatchedCounter(lab.counter(watch.clock, method="ioreport"), power_window_ns=1)
    movement = other.resume(mark, unusable=None, suspended_ns=0)
    assert _parts(movement) == (0, 0, 0)
    assert "rapl" in movement.news


def test_a_counter_that_is_gone_when_the_meter_starts_keeps_its_mark(watch):
    watch.after(100, 5_000_000)
    watch.counter.is_lost = True
    successor, movement = _resumed(watch)
    assert movement.news == "cpu-package-0: gone"
    assert successor.mark.reading == watch.watched.mark.reading
    watch.counter.is_lost = False
    watch.counter.add(1_000_000)
    watch.clock.now_ns += SECOND_NS
    assert _parts(successor.take(0)) == (0, 1_000_000, 0)


def test_a_counter_that_was_never_readable_begins_when_it_is(lab):
    watch = Watch(lab)
    watch.counter.is_lost = True
    fresh = watch.fresh()
    assert fresh.resume(None, unusable=None, suspended_ns=0).news == "cpu-package-0: gone"
    watch.counter.is_lost = False
    watch.counter.value = 77
    movement = fresh.take(0)
    assert _parts(movement) == (0, 0, 0)
    assert movement.news == "cpu-package-0: can be read now"
    assert fresh.take(0).lost is None


def test_a_counter_that_begins_anew_with_each_meter_was_not_reset(lab):
    watch = Watch(lab, begins_anew="its power is summed up by each meter anew")
    watch.after(100, 5_000_000)
    watch.counter.value = 0
    _, movement = _resumed(watch)
    assert _parts(movement) == (0, 0, 0)
    assert movement.news.endswith("is unknown: its power is summed up by each meter anew")


def test_a_counter_in_trouble_shows_no_power(watch):
    watch.after(100, 5_000_000)
    watch.counter.is_lost = True
    watch.after(100, 5_000_000)
    assert watch.watched.trouble == "cpu-package-0: gone"
    assert watch.watched.power_milliwatts is None
