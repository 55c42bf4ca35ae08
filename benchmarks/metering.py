"""What metering costs: `python -m benchmarks.metering` prints a table with the goals, and judges nothing.

Idle is a real meter on this machine's own counters, ticked at 10 Hz. The other rows feed it steps of many
requests over the real socket, as an engine would, and read the same real counters. A tick closes an interval, divides
it and journals the book; a settlement closes another, signs its statement and journals both.
"""

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pynvml

from clusters.silicon import Catalogue
from metering.clock import SystemClock
from metering.counters.detect import Machine, detect
from metering.cpu_shares import CpuShares
from metering.engine_steps import RequestWork, StepInbox, StepReporter
from metering.host_cpu import HostCpu
from metering.host_meter import HostMeter
from metering.journal import Journal
from metering.metered_replica import ReplicaRegistration
from metering.process_tree import ProcessTrees
from metering.statements import MeterKey

IDLE_SECONDS = 5
RESIDENTS = 256
STEPS_PER_INTERVAL = 4
INTERVALS = 25
GOAL_IDLE_PERCENT = 1
GOAL_ATTRIBUTION_US = 20
GOAL_SETTLEMENT_US = 2000


class Bench:
    """A meter on this machine and one engine's reporter, both in this process."""

    def __init__(self, folder: Path) -> None:
        proc = Path("/proc")
        clock = SystemClock()
        sensors = detect(
            Machine(
                proc_root=proc,
                powercap_root=Path("/sys/class/powercap"),
                nvml=pynvml,
                catalogue=Catalogue.load(),
                monotonic_ns=clock.monotonic_ns,
            )
        )
        trees = ProcessTrees(proc, monotonic_ns=clock.monotonic_ns)
        self.inbox = StepInbox(folder / "steps.sock")
        self.meter = HostMeter(
            sensors=sensors,
            processes=CpuShares(trees, HostCpu(proc), threads=sensors.cpu.threads),
            inbox=self.inbox,
            journal=Journal(folder / "journal"),
            clock=clock,
            node="bench",
            signing_key=MeterKey(secrets.token_bytes(32)),
        )
        self.meter.register(ReplicaRegistration(replica="bench", pid=os.getpid(), model="none", device_ids=()))
        self.reporter = StepReporter(str(folder / "steps.sock"), "bench")
        self.step = 0

    def run_step(self, work: tuple[RequestWork, ...]) -> float:
        """One engine step's two reports; the seconds that the engine spends on them."""
        self.step += 1
        before = time.perf_counter()
        self.reporter.began(self.step, time.monotonic_ns(), work)
        self.reporter.ended(self.step, time.monotonic_ns(), dict.fromkeys((entry[0] for entry in work), 1))
        return time.perf_counter() - before


def idle(bench: Bench) -> tuple[float, float, float]:
    """Mean and highest microseconds of a tick, and percent of one core at 10 Hz."""
    ticks = []
    cpu_before, began = time.process_time(), time.monotonic()
    for number in range(IDLE_SECONDS * 10):
        ticks.append(_seconds(bench.meter.tick))
        time.sleep(max(0.0, began + (number + 1) / 10 - time.monotonic()))
    percent = (time.process_time() - cpu_before) / (time.monotonic() - began) * 100
    return statistics.mean(ticks) * 1e6, max(ticks) * 1e6, percent


def loaded(bench: Bench, residents: int) -> dict[str, float]:
    """Microseconds of a tick, of a settlement, and of the engine's reports, with this many residents."""
    requests = [f"{number:032x}" for number in range(bench.step * 1000, bench.step * 1000 + residents)]
    for request in requests:
        bench.meter.begin(request, "bench", b"")
    work = tuple(RequestWork(request, 100, 0, 0, 1, 100) for request in requests)
    ticks, reports = [], []
    for _ in range(INTERVALS):
        for _ in range(STEPS_PER_INTERVAL):
            reports.append(bench.run_step(work))
            time.sleep(0.1 / STEPS_PER_INTERVAL)
        ticks.append(_seconds(bench.meter.tick))
    settlements = []
    for request in requests:
        time.sleep(0.002)
        settlements.append(_seconds(lambda request=request: bench.meter.settle(request, "finished")))
        bench.meter.acknowledge(bench.meter.settle(request, "finished"))
    totals = bench.meter.totals()
    assert totals.sum_microjoules == totals.counted_microjoules
    return {
        "tick": statistics.median(ticks) * 1e6,
        "settle": statistics.median(settlements) * 1e6,
        "settle, 99 of 100": statistics.quantiles(settlements, n=100)[98] * 1e6
        if residents > 1
        else settlements[0] * 1e6,
        "report": statistics.median(reports) * 1e6,
    }


def _seconds(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def _show(what: str, figure: float, unit: str, goal: float | None = None) -> None:
    decimals = 2 if figure < 10 else 0
    against = "" if goal is None else f"   goal: below {goal:g} {unit}"
    print(f"{what:<62}{figure:>8.{decimals}f} {unit}{against}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for note in bench.meter.notes:
            print(f"  {note}")
        mean, highest, percent = idle(bench)
        _show("idle at 10 Hz, of one core", percent, "%", GOAL_IDLE_PERCENT)
        _show("idle tick, mean", mean, "us")
        _show("idle tick, highest", highest, "us")
        for residents in (1, 32, RESIDENTS):
            cost = loaded(bench, residents)
            label = f"{residents} resident, {STEPS_PER_INTERVAL} steps an interval"
            is_full = residents == RESIDENTS
            goal = GOAL_ATTRIBUTION_US if is_full else None
            _show(f"{label}: tick, per resident", cost["tick"] / residents, "us", goal)
            _show(f"{label}: tick", cost["tick"], "us")
            _show(f"{label}: settlement", cost["settle"], "us", GOAL_SETTLEMENT_US)
            _show(f"{label}: settlement, 99 of 100 below", cost["settle, 99 of 100"], "us")
            _show(f"{label}: reports of a step, in the engine", cost["report"], "us")
        bench.inbox.close()


if __name__ == "__main__":
    main()
