"""A meter's process is killed, over and over, while it settles: what it gave away stands, and the book goes on."""

import itertools
import signal
import subprocess
import sys
import time

from metering.journal import Journal
from metering.settlement import Settlement
from metering.statements import MeterKey, check_statement

SEED = bytes(range(32))
# A counter that is a pure function of time, 10 W, so that whoever reads it anew reads on.
METER = """
import itertools, sys, time
from pathlib import Path

from clusters.silicon import DetectedCpu
from metering.clock import SystemClock
from metering.counters.counter import CounterFacts, Reading
from metering.counters.detect import Sensors
from metering.cpu_shares import CpuUse
from metering.host_meter import HostMeter
from metering.journal import Journal
from metering.metered_replica import ReplicaRegistration
from metering.statements import MeterKey

class Counter:
    facts = CounterFacts(
        device_id="cpu", method="rapl", scope="cpu", period_ns=1, wrap_microjoules=None,
        maximum_power_milliwatts=None, error_percent=1.0, best_confidence="derived", closes_at_will=True,
    )
    def read(self):
        now_ns = time.monotonic_ns()
        return Reading(energy_microjoules=now_ns // 100, at_monotonic_ns=now_ns)

class Processes:
    add = remove = lambda self, *_: None
    dead = pids = lambda self, *_: frozenset()
    started_ticks = lambda self, pid: 7
    since_last = lambda self: CpuUse(replicas_ns={"a": 1}, overhead_ns=0, foreign_ns=0)

class Inbox:
    drain = lambda self: []

cpu = DetectedCpu(vendor="amd", model="m", family_number=None, model_number=None, threads=1, packages=(0,))
meter = HostMeter(
    sensors=Sensors(host=(Counter(),), devices=(), cpu=cpu, gpu_models={}, notes=(), host_unavailable=None, sharing={}),
    processes=Processes(), inbox=Inbox(), journal=Journal(Path(sys.argv[1]), compact_after_bytes=50_000),
    clock=SystemClock(), node="n", signing_key=MeterKey(bytes(range(32))),
)
meter.register(ReplicaRegistration(replica="a", pid=1, model="m", device_ids=()))
meter.tick()
for number in itertools.count(int(sys.argv[2])):
    meter.begin(f"{number:032x}", "a", b"")
    if number % 3:
        line = meter.settle(f"{number:032x}", "finished").to_json().decode()
        print(line, flush=True)
    if number % 7 == 0:
        meter.tick()
"""


def _run_and_kill(folder, first_number, alive_s):
    """The settlements that a meter gave away before it was killed."""
    meter = subprocess.Popen(
        [sys.executable, "-c", METER, str(folder), str(first_number)], stdout=subprocess.PIPE, text=True
    )
    first = meter.stdout.readline()
    time.sleep(alive_s)
    meter.send_signal(signal.SIGKILL)
    *lines, _torn = (first + meter.stdout.read()).split("\n")
    meter.stdout.close()
    meter.wait()
    assert lines
    return [Settlement.from_json(line.encode()) for line in lines]


def test_a_killed_meters_book_settlements_and_statements_are_whole(tmp_path):
    given = []
    marks = []
    for turn, alive_s in enumerate((0.1, 0.25, 0.05, 0.2)):
        given += _run_and_kill(tmp_path, turn * 10**6, alive_s)
        journal = Journal(tmp_path)
        journal.close()
        marks.append(journal.state.checkpoint.counters["cpu"])
    settled = journal.state.settled
    assert {settlement.request_id: settlement for settlement in given}.items() <= settled.items()
    public_key = MeterKey(SEED).public_key
    statements = [check_statement(settlement.statement, public_key) for settlement in settled.values()]
    for before, after in itertools.pairwise(sorted(statements, key=lambda statement: statement.sequence)):
        assert after.sequence == before.sequence + 1
        assert after.previous_sha256 == before.sha256
    assert journal.state.checkpoint.chain.sequence == len(statements)
    for before, after in itertools.pairwise(marks):
        moved = after.reading.energy_microjoules - before.reading.energy_microjoules
        assert after.counted_microjoules - before.counted_microjoules == moved
    totals = journal.state.checkpoint.totals
    assert totals.counted_microjoules == totals.sum_microjoules == marks[-1].counted_microjoules
    whats = [incident.what for incident in journal.state.incidents]
    assert sum(what.startswith("the meter was away") for what in whats) == 3
