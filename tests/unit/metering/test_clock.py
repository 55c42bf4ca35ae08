"""A suspend is seen between two clocks, and a busy machine isn't taken for one."""

from metering.clock import SuspendWatch, SystemClock


class _Clock:
    """Each reading takes as long as is next in line."""

    def __init__(self):
        self.now_ns = 10**12
        self.suspended_ns = 0
        self.delays_ns = []

    def monotonic_ns(self):
        return self.now_ns

    def boottime_ns(self):
        self.now_ns += self.delays_ns.pop(0) if self.delays_ns else 0
        return self.now_ns + self.suspended_ns


def test_a_suspend_shows_and_stays():
    clock = _Clock()
    watch = SuspendWatch(clock)
    assert watch.suspended_ns() == 0
    clock.suspended_ns = 3_000_000_000
    clock.now_ns += 5
    assert watch.suspended_ns() == watch.suspended_ns() == 3_000_000_000


def test_a_thread_that_was_put_aside_between_the_clocks_was_not_suspended():
    clock = _Clock()
    clock.delays_ns = [400_000_000, 0, 0]
    watch = SuspendWatch(clock)
    clock.delays_ns = [700_000_000, 0]
    assert watch.suspended_ns() == 0


def test_the_machines_own_clocks_agree_on_now():
    clock = SystemClock()
    assert clock.boottime_ns() >= clock.monotonic_ns() - 1_000_000
    assert clock.boot_id() == SystemClock().boot_id()
