"""What every counter owes, on the stand-in that other tests use and on each real adapter."""

import json
import types

import pytest

from clusters.silicon import Catalogue
from metering.counters.ioreport import ioreport_counters
from metering.counters.nvml import nvml_gpus
from metering.counters.rapl import rapl_counters
from metering.counters.replay import replay
from metering.counters.util_tdp import UtilTdpCounter
from metering.errors import CounterLost
from metering.host_cpu import HostCpu


class Rig:
    """A counter, what makes it count one joule in 0.1 s, and what makes it unreadable and readable again."""

    def __init__(self, counter, clock, work, lose, recover):
        self.counter = counter
        self.clock = clock
        self.work = work
        self.lose = lose
        self.recover = recover


def _stand_in(lab, _):
    clock = lab.clock()
    counter = lab.counter(clock)

    def set_lost(is_lost):
        counter.is_lost = is_lost

    return Rig(
        counter, clock, lambda: counter.add(1_000_000), lambda: set_lost(is_lost=True), lambda: set_lost(is_lost=False)
    )


def _rapl(lab, folder):
    clock = lab.clock()
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    energy, hidden = zone / "energy_uj", zone / "hidden"
    for file, text in ((zone / "name", "package-0"), (energy, "0"), (zone / "max_energy_range_uj", "1000000000")):
        file.write_text(text)
    (counter,) = rapl_counters(folder, monotonic_ns=clock.monotonic_ns)
    return Rig(
        counter,
        clock,
        lambda: energy.write_text(str(int(energy.read_text()) + 1_000_000)),
        lambda: energy.rename(hidden),
        lambda: hidden.rename(energy),
    )


def _nvml(lab, *, has_energy):
    clock = lab.clock()
    gpu = types.SimpleNamespace(millijoules=0, is_lost=False)
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})

    def ask(value, supported=lambda: True):
        def function(_):
            if gpu.is_lost or not supported():
                raise module.NVMLError("GPU is lost")
            return value()

        return function

    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 1
    module.nvmlDeviceGetHandleByIndex = lambda _: gpu
    module.nvmlDeviceGetHandleByUUID = lambda _: gpu
    module.nvmlDeviceGetUUID = ask(lambda: "GPU-1")
    module.nvmlDeviceGetName = ask(lambda: "NVIDIA L4")
    module.nvmlDeviceGetPowerManagementLimitConstraints = ask(lambda: (1, 72_000))
    module.nvmlDeviceGetTotalEnergyConsumption = ask(lambda: gpu.millijoules, lambda: has_energy)
    module.nvmlDeviceGetPowerUsage = ask(lambda: 10_000)
    found = nvml_gpus(module, catalogue=Catalogue.load(), monotonic_ns=clock.monotonic_ns, sleep=lambda _: None)
    (counter,) = found.counters

    def work():
        gpu.millijoules += 1000

    def set_lost(is_lost):
        gpu.is_lost = is_lost

    return Rig(counter, clock, work, lambda: set_lost(is_lost=True), lambda: set_lost(is_lost=False))


def _util_tdp(lab, folder):
    clock = lab.clock()
    stat, hidden = folder / "stat", folder / "hidden"
    stat.write_text("cpu  0 0 0 0 0 0 0 0\n")
    counter = UtilTdpCounter(
        HostCpu(folder, ticks_per_second=100),
        tdp_milliwatts=10_000,
        tdp_threads=1,
        visible_threads=1,
        monotonic_ns=clock.monotonic_ns,
    )

    def work():
        stat.write_text(f"cpu  {int(stat.read_text().split()[1]) + 10} 0 0 0 0 0 0 0\n")

    return Rig(counter, clock, work, lambda: stat.rename(hidden), lambda: hidden.rename(stat))


def _ioreport(lab, _):
    clock = lab.clock()
    metrics = types.SimpleNamespace(cpu_total_mj=0, gpu_mj=None, ane_mj=None, dram_mj=None)
    is_lost = False

    def get_cumulative_energy():
        if is_lost:
            raise RuntimeError("no sample")
        return metrics

    module = types.ModuleType("zeus_apple_silicon")
    module.AppleEnergyMonitor = lambda: types.SimpleNamespace(get_cumulative_energy=get_cumulative_energy)
    (counter,) = ioreport_counters(module, monotonic_ns=clock.monotonic_ns)

    def work():
        metrics.cpu_total_mj += 1000

    def set_lost(lost):
        nonlocal is_lost
        is_lost = lost
        clock.now_ns += 1_000_000

    return Rig(counter, clock, work, lambda: set_lost(lost=True), lambda: set_lost(lost=False))


def _replay(lab, folder):
    clock = lab.clock()
    facts = {
        "device_id": "cpu-package-0",
        "method": "rapl",
        "scope": "cpu-package",
        "period_ns": 1_000_000,
        "wrap_microjoules": None,
        "maximum_power_milliwatts": None,
        "error_percent": 5.0,
        "best_confidence": "measured-apportioned",
        "closes_at_will": True,
    }
    rows = [f"cpu-package-0,{7 + tenth * 100_000_000},{tenth * 1_000_000}" for tenth in range(10)]
    rows += ["cpu-package-0,1000000007,", "cpu-package-0,1100000007,9000000"]
    file = folder / "recording"
    file.write_text("\n".join([json.dumps({"counters": [facts]}), "device_id,at_ns,energy_microjoules", *rows]))
    (counter,) = replay(file, monotonic_ns=clock.monotonic_ns).counters
    start_ns = clock.now_ns

    def go_to(second):
        clock.now_ns = start_ns + int(second * 1_000_000_000)

    return Rig(counter, clock, lambda: None, lambda: go_to(1), lambda: go_to(1.1))


RIGS = {
    "stand-in": _stand_in,
    "rapl": _rapl,
    "nvml-total-energy": lambda lab, _: _nvml(lab, has_energy=True),
    "nvml-power-integrated": lambda lab, _: _nvml(lab, has_energy=False),
    "ioreport": _ioreport,
    "replay": _replay,
    "util-tdp": _util_tdp,
}


@pytest.fixture(params=RIGS)
def rig(request, lab, tmp_path):
    return RIGS[request.param](lab, tmp_path)


def _pass_a_tenth(rig):
    rig.clock.now_ns += 100_000_000
    rig.work()


def test_it_counts_cumulatively_with_the_time_of_the_reading(rig):
    first = rig.counter.read()
    readings = []
    for _ in range(5):
        _pass_a_tenth(rig)
        readings.append(rig.counter.read())
    assert [reading.energy_microjoules - first.energy_microjoules for reading in readings] == [
        number * 1_000_000 for number in range(1, 6)
    ]
    assert readings[-1].at_monotonic_ns == rig.clock.now_ns


def test_it_is_lost_and_never_zero_when_it_cannot_be_read(rig):
    rig.counter.read()
    rig.lose()
    with pytest.raises(
        CounterLost, match="stat" if rig.counter.facts.method == "util-tdp" else rig.counter.facts.device_id
    ):
        rig.counter.read()
    rig.recover()
    assert rig.counter.read().energy_microjoules >= 0


def test_its_facts_hold(rig):
    facts = rig.counter.facts
    rig.counter.read()
    assert rig.counter.facts == facts
    assert facts.period_ns > 0
    assert facts.error_percent > 0
    assert facts.maximum_power_milliwatts is None or facts.maximum_power_milliwatts > 0
    assert facts.wrap_microjoules is None or facts.wrap_microjoules > 0
