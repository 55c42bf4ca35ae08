"""Process trees on a made-up /proc, and once on real processes of this machine."""

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from metering.cpu_shares import CpuShares
from metering.errors import CounterLost, ProcessGone
from metering.host_cpu import HostCpu
from metering.process_tree import ProcessTrees, process_cpu_ns

MILLISECOND = 1_000_000


class FakeProc:
    """A process table whose CPU clocks the test moves."""

    def __init__(self, root):
        self.root = root
        self.now_ns = 0
        self.cpu_ns = {}
        self.spawn(1, 0)

    def spawn(self, pid, parent, started=5, command="a b) (c"):
        (self.root / str(pid)).mkdir(exist_ok=True)
        after = ["S", str(parent), *["0"] * 17, str(started), "0"]
        (self.root / str(pid) / "stat").write_text(f"{pid} ({command}) {' '.join(after)}\n")
        self.cpu_ns[pid] = 0

    def end(self, pid):
        (self.root / str(pid) / "stat").unlink()
        (self.root / str(pid)).rmdir()
        del self.cpu_ns[pid]

    def zombie(self, pid):
        stat = self.root / str(pid) / "stat"
        stat.write_text(stat.read_text().replace(") S ", ") Z "))

    def work(self, pid, milliseconds):
        self.cpu_ns[pid] += milliseconds * MILLISECOND

    def later(self, seconds=3):
        self.now_ns += int(seconds * 1_000_000_000)


@pytest.fixture
def proc(tmp_path):
    return FakeProc(tmp_path)


@pytest.fixture
def trees(proc):
    return ProcessTrees(proc.root, monotonic_ns=lambda: proc.now_ns, cpu_ns=proc.cpu_ns.get)


def _milliseconds(trees):
    return {tree: total // MILLISECOND for tree, total in trees.sample().items()}


def test_a_tree_counts_from_when_it_was_added_and_descendants_count(proc, trees):
    proc.spawn(10, 1)
    proc.spawn(11, 10)
    proc.spawn(12, 11)
    proc.work(10, 500)
    trees.add("a", 10)
    proc.work(10, 1)
    proc.work(11, 2)
    proc.work(12, 4)
    assert _milliseconds(trees) == {"a": 7}


def test_the_nearest_registered_ancestor_owns_a_process(proc, trees):
    for pid, parent in ((10, 1), (20, 10), (21, 20), (30, 10)):
        proc.spawn(pid, parent)
    trees.add("mesh", 10)
    proc.work(21, 3)
    trees.add("replica", 20)
    for pid in (10, 20, 21, 30):
        proc.work(pid, 1)
    assert _milliseconds(trees) == {"mesh": 3 + 2, "replica": 2}
    trees.remove("replica")
    proc.work(21, 10)
    assert _milliseconds(trees) == {"mesh": 15}


def test_a_trees_processes_are_known_by_pid(proc, trees):
    for pid, parent in ((10, 1), (11, 10), (20, 10), (30, 1)):
        proc.spawn(pid, parent)
    trees.add("mesh", 10)
    trees.add("replica", 20)
    assert trees.pids("mesh") == {10, 11}
    assert trees.pids("replica") == {20}
    assert trees.pids("nobody") == frozenset()


def test_new_processes_are_found_at_most_every_two_seconds(proc, trees):
    proc.spawn(10, 1)
    trees.add("a", 10)
    proc.spawn(11, 10)
    proc.later(1)
    assert _milliseconds(trees) == {"a": 0}
    proc.work(11, 50)
    proc.later(1)
    assert _milliseconds(trees) == {"a": 0}
    proc.work(11, 5)
    assert _milliseconds(trees) == {"a": 5}


def test_a_process_that_ended_keeps_what_it_used(proc, trees):
    proc.spawn(10, 1)
    proc.spawn(11, 10)
    trees.add("a", 10)
    proc.work(11, 9)
    assert _milliseconds(trees) == {"a": 9}
    proc.end(11)
    proc.later()
    assert _milliseconds(trees) == {"a": 9}
    assert trees.dead() == frozenset()


def test_an_orphan_stays_in_its_tree(proc, trees):
    proc.spawn(10, 1)
    proc.spawn(11, 10)
    trees.add("a", 10)
    proc.end(10)
    cpu = proc.cpu_ns[11]
    proc.spawn(11, 1)
    proc.cpu_ns[11] = cpu
    proc.later()
    proc.work(11, 4)
    assert _milliseconds(trees) == {"a": 4}


def test_a_tree_without_its_root_is_dead(proc, trees):
    proc.spawn(10, 1)
    trees.add("a", 10)
    proc.end(10)
    trees.sample()
    assert trees.dead() == {"a"}
    with pytest.raises(ProcessGone):
        trees.add("b", 10)


def test_a_zombie_root_is_dead(proc, trees):
    proc.spawn(10, 1)
    trees.add("a", 10)
    proc.zombie(10)
    proc.later()
    trees.sample()
    assert trees.dead() == {"a"}


def test_a_pid_that_belongs_to_another_process_now_is_not_counted(proc, trees):
    proc.spawn(10, 1, started=5)
    trees.add("a", 10)
    proc.work(10, 100)
    assert _milliseconds(trees) == {"a": 100}
    proc.spawn(10, 1, started=99)
    proc.later()
    proc.work(10, 500)
    assert _milliseconds(trees) == {"a": 100}
    assert trees.dead() == {"a"}
    assert trees.started_ticks(10) == 99


def _write_stat(root, busy_milliseconds):
    (root / "stat").write_text(f"cpu  {busy_milliseconds // 10} 0 0 0 0 0 0 0 0 0\n")


def _shares(proc, trees, **changes):
    _write_stat(proc.root, 0)
    host_cpu = HostCpu(proc.root, ticks_per_second=100)
    return CpuShares(trees, host_cpu, threads=2, **changes)


def test_the_rest_of_the_machines_time_is_foreign(proc, trees):
    for pid, parent in ((10, 1), (20, 10)):
        proc.spawn(pid, parent)
    shares = _shares(proc, trees, mesh_pids=(10,))
    shares.add("replica", 20)
    proc.work(10, 20)
    proc.work(20, 50)
    _write_stat(proc.root, 100)
    use = shares.since_last()
    assert (use.replicas_ns, use.overhead_ns, use.foreign_ns) == (
        {"replica": 50 * MILLISECOND},
        20 * MILLISECOND,
        30 * MILLISECOND,
    )
    assert shares.since_last().foreign_ns == 0


def test_ticks_that_come_late_do_not_turn_into_foreign_time(proc, trees):
    proc.spawn(20, 1)
    shares = _shares(proc, trees)
    shares.add("replica", 20)
    foreign_ns = 0
    for interval in range(1, 101):
        proc.work(20, 5)
        _write_stat(proc.root, interval * 5 // 10 * 10)
        foreign_ns += shares.since_last().foreign_ns
    assert foreign_ns == 0


def test_a_replica_that_is_added_again_starts_from_zero(proc, trees):
    proc.spawn(20, 1)
    shares = _shares(proc, trees)
    shares.add("replica", 20)
    proc.work(20, 100)
    shares.since_last()
    shares.remove("replica")
    shares.add("replica", 20)
    proc.work(20, 5)
    assert shares.since_last().replicas_ns == {"replica": 5 * MILLISECOND}


def test_a_replica_cannot_die_as_the_mesh(proc, trees):
    proc.spawn(10, 1)
    shares = _shares(proc, trees, mesh_pids=(10,))
    proc.end(10)
    shares.since_last()
    assert shares.dead() == frozenset()


needs_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")


def _burn(seconds, burnt, seen):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    burnt.set()
    seen.wait()


@needs_linux
def test_the_cpu_clock_of_another_process_is_exact_to_the_nanosecond():
    fork = multiprocessing.get_context("fork")
    burnt, seen = fork.Event(), fork.Event()
    child = fork.Process(target=_burn, args=(0.2, burnt, seen))
    child.start()
    readings = {process_cpu_ns(child.pid)}
    while not burnt.is_set():
        time.sleep(0.01)
        readings.add(process_cpu_ns(child.pid))
    readings.add(process_cpu_ns(child.pid))
    seen.set()
    child.join()
    assert max(readings) >= 200 * MILLISECOND
    assert any(reading % 10_000 for reading in readings)
    assert process_cpu_ns(child.pid) is None


@needs_linux
def test_a_real_trees_child_is_counted_and_this_process_is_not():
    """This process burns as much meanwhile, so that the bounds would not hold with it."""
    code = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    root = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        child = _only_child(root.pid, deadline=time.monotonic() + 60)
        trees = ProcessTrees(Path("/proc"), monotonic_ns=time.monotonic_ns)
        began = process_cpu_ns(root.pid) + process_cpu_ns(child)
        trees.add("tree", root.pid)
        added, ours = process_cpu_ns(child), time.process_time_ns()
        while min(process_cpu_ns(child) - added, time.process_time_ns() - ours) < 100 * MILLISECOND:
            pass
        least = process_cpu_ns(child) - added
        counted = trees.sample()["tree"]
        assert least <= counted <= process_cpu_ns(root.pid) + process_cpu_ns(child) - began
    finally:
        os.killpg(root.pid, 9)
        root.wait()
    trees.sample()
    assert trees.dead() == {"tree"}


def _only_child(parent, *, deadline):
    while not (children := _children(parent)) and time.monotonic() < deadline:
        time.sleep(0.01)
    (stat,) = children
    return int(stat.parent.name)


def _children(parent):
    return [
        stat
        for stat in Path("/proc").glob("[0-9]*/stat")
        if (text := _text(stat)) and text.rpartition(")")[2].split()[1] == str(parent)
    ]


def _text(path):
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def _no_descriptors_left():
    """No file can be opened in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_file_descriptors_nobody_is_taken_for_dead(proc, trees):
    proc.spawn(10, 1)
    proc.spawn(11, 10)
    trees.add("a", 10)
    proc.work(11, 70)
    proc.later()
    with _no_descriptors_left():
        assert _milliseconds(trees) == {"a": 70}
        assert trees.dead() == frozenset()
        with pytest.raises(CounterLost):
            trees.started_ticks(10)
        with pytest.raises(CounterLost):
            trees.add("b", 11)
    proc.spawn(12, 10)
    proc.work(12, 5)
    trees.sample()
    proc.work(12, 30)
    assert _milliseconds(trees) == {"a": 100}, "it looks again as soon as it can"
