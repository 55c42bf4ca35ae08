"""The meter on this machine's own /proc, with a process that burns CPU as the replica."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusters.silicon import Catalogue
from metering.clock import SystemClock
from metering.counters.detect import Machine, detect
from metering.cpu_shares import CpuShares
from metering.engine_steps import RequestWork, StepInbox, StepReporter
from metering.host_cpu import HostCpu
from metering.host_meter import HostMeter
from metering.journal import Journal
from metering.metered_replica import ReplicaRegistration
from metering.process_tree import ProcessTrees, process_cpu_ns
from metering.statements import MeterKey

MILLIWATTS_PER_THREAD = 2_000
BURNS_NS = 800_000_000
PROC = Path("/proc")

pytestmark = pytest.mark.skipif(not (PROC / "stat").exists(), reason="needs Linux")


def _burner():
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


@pytest.fixture
def burners():
    """The replica's process, and one that isn't the mesh's."""
    processes = (_burner(), _burner())
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def _meter(folder, inbox):
    clock = SystemClock()
    sensors = detect(
        Machine(
            proc_root=PROC,
            powercap_root=folder / "no-powercap",
            nvml=None,
            catalogue=Catalogue.load(),
            monotonic_ns=clock.monotonic_ns,
            milliwatts_per_thread=MILLIWATTS_PER_THREAD,
        )
    )
    trees = ProcessTrees(PROC, monotonic_ns=clock.monotonic_ns)
    return HostMeter(
        sensors=sensors,
        processes=CpuShares(trees, HostCpu(PROC), threads=sensors.cpu.threads),
        inbox=inbox,
        journal=Journal(folder / "journal"),
        clock=clock,
        node="this-machine",
        signing_key=MeterKey(bytes(32)),
    )


def test_a_request_is_charged_for_its_replicas_cpu_time_and_not_for_the_neighbours(tmp_path, burners):
    replica, neighbour = burners
    inbox = StepInbox(tmp_path / "steps.sock")
    reporter = StepReporter(str(tmp_path / "steps.sock"), "replica")
    meter = _meter(tmp_path, inbox)
    meter.register(ReplicaRegistration(replica="replica", pid=replica.pid, model="none", device_ids=()))
    request = "1" * 32
    outer_ns = process_cpu_ns(replica.pid)
    meter.begin(request, "replica", b"")
    reporter.began(1, time.monotonic_ns(), (RequestWork(request, 5, 5, 0, 0, 5),))
    inner_ns = process_cpu_ns(replica.pid)
    while process_cpu_ns(replica.pid) - inner_ns < BURNS_NS:
        time.sleep(0.1)
        meter.tick()
    least_ns = process_cpu_ns(replica.pid) - inner_ns
    reporter.ended(1, time.monotonic_ns(), {request: 1})
    settlement = meter.settle(request, "finished")
    most_ns = process_cpu_ns(replica.pid) - outer_ns

    energy = settlement.energy
    assert (energy.method, energy.method_confidence, energy.scope) == ("util-tdp", "derived", ("cpu",))
    # Independent readings of the same process, inside and around; 10 ms ticks of two threads at both ends.
    charged_ns = energy.total_microjoules * 10**6 / MILLIWATTS_PER_THREAD
    assert 0.7 * least_ns < charged_ns < 1.3 * most_ns
    totals = meter.totals()
    assert totals.foreign_microjoules > 0
    assert totals.sum_microjoules == totals.counted_microjoules
    assert settlement.tokens.output == 1

    replica.kill()
    replica.wait()
    meter.begin("2" * 32, "replica", b"")
    time.sleep(0.12)
    meter.tick()
    assert [settled.outcome for settled in meter.unacknowledged(0)] == ["finished", "failed"]
    assert neighbour.poll() is None
    reporter.close()
    inbox.close()
