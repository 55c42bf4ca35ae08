"""Utilisation times TDP on a made-up /proc, and once on this machine's."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.counters.util_tdp import UtilTdpCounter
from metering.errors import CounterLost
from metering.host_cpu import HostCpu


def _write_stat(root, user=0, nice=0, system=0, idle=0, iowait=0, irq=0, softirq=0, steal=0, guest=0):
    (root / "stat").write_text(
        f"cpu  {user} {nice} {system} {idle} {iowait} {irq} {softirq} {steal} {guest} 0\ncpu0 1 2 3 4\n"
    )


def _counter(root, **changes):
    arguments = {"tdp_milliwatts": 400_000, "tdp_threads": 192, "visible_threads": 2, **changes}
    return UtilTdpCounter(HostCpu(root, ticks_per_second=100), monotonic_ns=lambda: 1, **arguments)


def test_work_counts_and_waiting_does_not(tmp_path):
    _write_stat(tmp_path, user=100, nice=10, system=20, irq=3, softirq=4, idle=10**6, iowait=10**6, steal=10**6)
    assert HostCpu(tmp_path, ticks_per_second=100).busy_ns() == 137 * 10_000_000


def test_guest_time_is_inside_user_time(tmp_path):
    _write_stat(tmp_path, user=100, guest=60)
    assert HostCpu(tmp_path, ticks_per_second=100).busy_ns() == 1_000_000_000


def test_one_busy_thread_second_is_the_parts_watts_per_thread(tmp_path):
    _write_stat(tmp_path, user=100)
    assert _counter(tmp_path).read().energy_microjoules == 400_000_000 // 192


def test_the_maximum_is_all_visible_threads_and_not_the_socket(tmp_path):
    _write_stat(tmp_path)
    facts = _counter(tmp_path).facts
    assert facts.maximum_power_milliwatts == 4_167
    assert (facts.method, facts.scope, facts.best_confidence) == ("util-tdp", "cpu", "derived")


@settings(deadline=None)  # it writes files
@given(ticks=st.lists(st.integers(0, 1000), max_size=50))
def test_many_readings_add_up_to_one(tmp_path_factory, ticks):
    root = tmp_path_factory.mktemp("proc")
    _write_stat(root)
    counter = _counter(root)
    last, moved, total = counter.read().energy_microjoules, 0, 0
    for more in ticks:
        total += more
        _write_stat(root, user=total)
        now = counter.read().energy_microjoules
        moved, last = moved + now - last, now
    assert moved == total * 10_000_000 * 400_000 // 192 // 1_000_000


def test_a_sum_that_steps_back_does_not_go_back(tmp_path):
    _write_stat(tmp_path, user=100)
    counter = _counter(tmp_path)
    before = counter.read().energy_microjoules
    _write_stat(tmp_path, user=90)
    assert counter.read().energy_microjoules == before


@pytest.mark.parametrize("content", ["", "cpu", "cpu 1 2 x 4 5 6 7 8"])
def test_an_unreadable_stat_is_lost(tmp_path, content):
    (tmp_path / "stat").write_text(content)
    with pytest.raises(CounterLost, match="stat"):
        _counter(tmp_path).read()
    (tmp_path / "stat").unlink()
    with pytest.raises(CounterLost):
        _counter(tmp_path).read()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_this_machines_counter_moves_while_it_works():
    counter = UtilTdpCounter(
        HostCpu(Path("/proc")),
        tdp_milliwatts=400_000,
        tdp_threads=192,
        visible_threads=2,
        monotonic_ns=time.monotonic_ns,
    )
    before = counter.read()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    after = counter.read()
    # One thread for 0.3 s at 2.08 W, less the 10 ms ticks at both ends.
    assert after.energy_microjoules - before.energy_microjoules > 0.2 * 2_000_000
    assert after.at_monotonic_ns > before.at_monotonic_ns
