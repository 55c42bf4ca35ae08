"""A simulated host: every clock, counter, process and engine step of it is what the test says."""

import os
import resource
import signal
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from clusters.silicon import DetectedCpu
from metering.calibration import Calibration
from metering.counters.counter import CounterFacts, Reading
from metering.counters.detect import Sensors
from metering.cpu_shares import CpuUse
from metering.engine_steps import RequestWork, StepBegan, StepEnded
from metering.errors import CounterLost, ProcessGone
from metering.host_meter import HostMeter
from metering.journal import Journal
from metering.metered_replica import ReplicaRegistration
from metering.statements import MeterKey

GPU = "GPU-0a1b"
SECOND_GPU = "GPU-2c3d"
MODEL = "SmolLM2-135M-Instruct"


class FakeClock:
    def __init__(self):
        self.now_ns = 5_000_000_000
        self.suspended_ns = 0
        self.boot = "first-boot"

    def monotonic_ns(self):
        return self.now_ns

    def boottime_ns(self):
        return self.now_ns + self.suspended_ns

    def wall_ns(self):
        return 1_780_000_000_000_000_000 + self.now_ns + self.suspended_ns

    def boot_id(self):
        return self.boot


class SeenReading(NamedTuple):
    """What an outside reader keeps of a reading, and what the silicon had really drawn by then, wraps undone."""

    reading: Reading
    true_microjoules: int
    resets: int
    suspended_ns: int
    boot: str


class FakeCounter:
    """Counts what it is given; wraps where its facts say, and can be reset or lost.

    ``true_microjoules`` is what went through it, whatever became of its value. With ``steps`` its value moves at the
    ends of its periods only, as a GPU's does.
    """

    def __init__(self, clock, *, steps=False, **changes):
        facts = {
            "device_id": "cpu-package-0",
            "method": "rapl",
            "scope": "cpu-package",
            "period_ns": 1_000_000,
            "wrap_microjoules": None,
            "maximum_power_milliwatts": 1_000_000,
            "error_percent": 5.0,
            "best_confidence": "measured-apportioned",
            "closes_at_will": True,
        }
        self.facts = CounterFacts(**{**facts, **changes})
        self.value = 0
        self.true_microjoules = 0
        self.resets = 0
        self._shown = (0, 0)
        self._steps = steps
        self.is_lost = False
        self.is_stuck = False
        self.reads = []
        self._clock = clock

    def add(self, microjoules):
        if self.is_stuck:
            return
        self.value += microjoules
        self.true_microjoules += microjoules
        if self.facts.wrap_microjoules is not None:
            self.value %= self.facts.wrap_microjoules

    def reset(self):
        self.value = 0
        self.resets += 1

    def read(self):
        if self.is_lost:
            raise CounterLost(f"{self.facts.device_id}: gone")
        reading = Reading(energy_microjoules=self._value(), at_monotonic_ns=self._clock.now_ns)
        seen = (self.true_microjoules, self.resets, self._clock.suspended_ns, self._clock.boot)
        self.reads.append(SeenReading(reading, *seen))
        return reading

    def pass_time(self):
        """To be told after each `add` of a counter that steps."""
        period = self._clock.now_ns // self.facts.period_ns
        if period != self._shown[0]:
            self._shown = (period, self.value)

    def _value(self):
        return self._shown[1] if self._steps else self.value


class FakeProcesses:
    def __init__(self):
        self.pids_of = {}
        self.running = {}
        self.is_lost = False
        self._dead = set()
        self.use_ns = {}
        self.overhead_ns = 0
        self.foreign_ns = 0

    def add(self, replica, pid):
        if pid not in self.running:
            raise ProcessGone(f"no process {pid}")
        self.pids_of[replica] = pid

    def remove(self, replica):
        self.pids_of.pop(replica, None)
        self.use_ns.pop(replica, None)
        self._dead.discard(replica)

    def dead(self):
        return frozenset(self._dead)

    def started_ticks(self, pid):
        return self.running.get(pid)

    def pids(self, replica):
        return frozenset({self.pids_of[replica]}) if replica in self.pids_of else frozenset()

    def since_last(self):
        if self.is_lost:
            raise CounterLost("/proc/stat: gone")
        self._dead |= {replica for replica, pid in self.pids_of.items() if pid not in self.running}
        known = {replica: self.use_ns.get(replica, 0) for replica in self.pids_of}
        use = CpuUse(replicas_ns=known, overhead_ns=self.overhead_ns, foreign_ns=self.foreign_ns)
        self.use_ns, self.overhead_ns, self.foreign_ns = {}, 0, 0
        return use


class FakeSharing:
    def __init__(self):
        self.reason = None
        self.asked = []

    def others(self, own_pids):
        self.asked.append(own_pids)
        return self.reason


class FakeInbox:
    def __init__(self):
        self.events = []

    def drain(self):
        events, self.events = self.events, []
        return events


@dataclass
class FakeEngine:
    """One replica's scheduler: at most one step runs."""

    replica: str
    clock: FakeClock
    inbox: FakeInbox
    step: int = 0
    running: bool = False
    working: list = field(default_factory=list)

    def begin(self, *work):
        self.end()
        self.step += 1
        self.running = True
        self.working = list(work)
        self.inbox.events.append(
            StepBegan(replica=self.replica, step=self.step, at_monotonic_ns=self.clock.now_ns, work=tuple(work))
        )

    def end(self):
        if self.running:
            produced = {work.request_id: 1 for work in self.working}
            self.inbox.events.append(
                StepEnded(
                    replica=self.replica,
                    step=self.step,
                    at_monotonic_ns=self.clock.now_ns,
                    produced=produced,
                )
            )
        self.running = False


class SimulatedHost:
    """A host with one socket, replicas on the CPU, and, if asked for, GPUs that other replicas own.

    A replica named "gpu-..." owns the first GPU, one named "tp-..." both.
    """

    def __init__(self, folder, *, host=None, gpu=False, gpus=None, gpu_steps=False, replicas=("cpu-a",), **meter):
        self.clock = FakeClock()
        self.processes = FakeProcesses()
        self.inbox = FakeInbox()
        self.sharing = FakeSharing()
        self.key = MeterKey(bytes(range(32)))
        self.host_counter = FakeCounter(self.clock, **(host or {}))
        self.gpu_counters = [self._gpu_counter(device_id, gpu_steps) for device_id in (GPU, SECOND_GPU)]
        self.gpu_counter = self.gpu_counters[0]
        self.folder = Path(folder)
        self._gpus = int(gpu) if gpus is None else gpus
        self._meter_arguments = meter
        self._forced = {}
        self._named = None
        self.start_meter()
        self.engines = {}
        for number, replica in enumerate((*replicas, *(("gpu-a",) if gpu else ()))):
            self.register(replica, 100 + number)

    def _gpu_counter(self, device_id, steps):
        return FakeCounter(
            self.clock,
            steps=steps,
            device_id=device_id,
            method="nvml-total-energy",
            scope="gpu",
            period_ns=100_000_000,
            error_percent=10.0,
            best_confidence="measured-direct",
            closes_at_will=False,
        )

    def start_meter(self, host_counters=None):
        self.journal = Journal(self.folder, force=self._force)
        gpus = tuple(self.gpu_counters[: self._gpus])
        without = "no published TDP is known for 'AMD EPYC'"
        arguments = {"calibration": Calibration(), **self._meter_arguments}
        self.meter = HostMeter(
            sensors=Sensors(
                host=(self.host_counter,) if host_counters is None else host_counters,
                devices=gpus,
                cpu=DetectedCpu(
                    vendor="amd",
                    model="AMD EPYC",
                    family_number=26,
                    model_number=2,
                    threads=2,
                    packages=(0,),
                ),
                gpu_models={counter.facts.device_id: "NVIDIA H100 80GB HBM3" for counter in gpus},
                notes=(),
                host_unavailable=without if host_counters == () else None,
                sharing={counter.facts.device_id: self.sharing for counter in gpus},
            ),
            processes=self.processes,
            inbox=self.inbox,
            journal=self.journal,
            clock=self.clock,
            node="host-1",
            signing_key=self.key,
            **arguments,
        )

    def restart_meter(self, *, away_ms=0, watts=10, gpu_watts=300):
        """The meter's process is killed and, a while later, started again; nothing is closed in between."""
        self.journal.close()
        self.processes.pids_of.clear()
        if away_ms:
            self.run(away_ms, watts=watts, gpu_watts=gpu_watts)
        self.start_meter()

    def _force(self, descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._named = (self.folder / "journal.ndjson").stat().st_ino
        else:
            self._forced[status.st_ino] = status.st_size

    def _lose_what_was_not_forced(self):
        journal = self.folder / "journal.ndjson"
        inode = journal.stat().st_ino
        if inode != self._named:
            journal.unlink()
        else:
            os.truncate(journal, self._forced[inode])

    def reboot(self, *, by_power_cut=False):
        """The machine starts afresh, and with it its clocks and counters; nothing that ran runs on.

        A power cut also takes of the journal whatever wasn't forced to the disk.
        """
        self.journal.close()
        if by_power_cut:
            self._lose_what_was_not_forced()
        self.processes.pids_of.clear()
        self.processes.running.clear()
        self.clock.boot += "'"
        self.clock.now_ns = 1_000_000_000
        self.clock.suspended_ns = 0
        for counter in (self.host_counter, *self.gpu_counters):
            counter.reset()
        self.start_meter()

    def register(self, replica, pid):
        self.processes.running[pid] = 7
        owned = {"gpu": (GPU,), "tp": (GPU, SECOND_GPU)}
        device_ids = owned.get(replica.partition("-")[0], ())
        self.meter.register(ReplicaRegistration(replica=replica, pid=pid, model=MODEL, device_ids=device_ids))
        self.engines[replica] = FakeEngine(replica, self.clock, self.inbox)

    def kill(self, replica):
        del self.processes.running[self.processes.pids_of[replica]]
        self.engines[replica].running = False

    def run(self, milliseconds, *, watts=10, gpu_watts=300, cpu=None, overhead=0, foreign=0):
        """Let time pass. ``cpu`` maps replicas to the part of the time they spent on one CPU thread."""
        elapsed_ns = milliseconds * 1_000_000
        self.clock.now_ns += elapsed_ns
        self.host_counter.add(watts * milliseconds * 1000)
        for counter in self.gpu_counters:
            counter.add(gpu_watts * milliseconds * 1000)
        parts = dict.fromkeys(self.engines, 1) if cpu is None else cpu
        for replica, part in parts.items():
            self.processes.use_ns[replica] = self.processes.use_ns.get(replica, 0) + int(part * elapsed_ns)
        self.processes.overhead_ns += int(overhead * elapsed_ns)
        self.processes.foreign_ns += int(foreign * elapsed_ns)

    def suspend(self, seconds, *, microjoules=0):
        """The machine sleeps; its counters may go on."""
        self.clock.suspended_ns += int(seconds * 1e9)
        self.host_counter.add(microjoules)
        self.gpu_counter.add(microjoules)

    def close(self):
        self.journal.close()


def decode(request_id, context=40):
    return RequestWork(request_id, 34, 0, 0, 1, context)


def prefill(request_id, tokens=34, cached=0):
    return RequestWork(request_id, tokens + cached, tokens, cached, 0, tokens + cached)


def request_id(number):
    return f"{number:032x}"


@dataclass(frozen=True)
class Lab:
    """What tests take from here, as one fixture: test modules can't import each other."""

    host: type = SimulatedHost
    clock: type = FakeClock
    counter: type = FakeCounter
    gpu: str = GPU
    second_gpu: str = SECOND_GPU
    model: str = MODEL
    decode: staticmethod = decode
    prefill: staticmethod = prefill
    request_id: staticmethod = request_id

    def folder(self):
        return tempfile.TemporaryDirectory()


@pytest.fixture(scope="session")
def lab():
    return Lab()


@contextmanager
def _full_disk(file):
    """A limit on a file's size stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 40, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def full_disk():
    return _full_disk
