"""What every counter owes, on the stand-in that other tests use and on each real adapter."""

import types

import pytest

from clusters.silicon import Catalogue
from metering.counters.nvml import nvml_gpus
from metering.counters.rapl import rapl_counters
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
    module.nvmlDeviceGetUUID = ask(lambda: "GPU-1")
    module.nvmlDeviceGetName = ask(lambda: "NVIDIA L4")
    module.nvmlDeviceGetPowerManagementLimitConstraints = ask(lambda: (1, 72_000))
    module.nvmlDeviceGetTotalEnergyConsumption = ask(lambda: gpu.millijoules, lambda: has_energy)
    module.nvmlDeviceGetPowerUsage = ask(lambda: 10_000)
    (counter,) = nvml_gpus(module, catalogue=Catalogue.load(), monotonic_ns=clock.monotonic_ns).counters

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


RIGS = {
    "stand-in": _stand_in,
    "rapl": _rapl,
    "nvml-total-energy": lambda lab, _: _nvml(lab, has_energy=True),
    "nvml-power-integrated": lambda lab, _: _nvml(lab, has_energy=False),
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
    with pytest.raises(CounterLost, match=rig.counter.facts.device_id if rig.counter.facts.scope != "cpu" else "stat"):
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
