"""NVML counters on a stand-in for the pynvml module."""

import types

import pytest

from clusters.silicon import Catalogue
from metering.counters.counter import difference
from metering.counters.nvml import NvmlEnergyCounter, NvmlPowerCounter, nvml_gpus
from metering.errors import CounterLost, CounterUnavailable


class FakeNvmlError(Exception):
    pass


class FakeGpu:
    def __init__(self, uuid="GPU-1", name="NVIDIA H100 80GB HBM3"):
        self.uuid = uuid
        self.name = name
        self.millijoules = 0
        self.milliwatts = 100_000
        self.limits = (200_000, 700_000)
        self.unsupported = set()


def _pynvml(gpus):
    """A module with the functions that the adapter calls; a GPU can lack any of them."""
    module = types.ModuleType("pynvml")

    def ask(attribute):
        def function(gpu):
            if attribute in gpu.unsupported:
                raise FakeNvmlError("Not Supported")
            return getattr(gpu, attribute)

        return function

    module.NVMLError = FakeNvmlError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: len(gpus)
    module.nvmlDeviceGetHandleByIndex = gpus.__getitem__
    module.nvmlDeviceGetHandleByUUID = lambda uuid: next(gpu for gpu in gpus if gpu.uuid == uuid)
    module.nvmlDeviceGetUUID = ask("uuid")
    module.nvmlDeviceGetName = ask("name")
    module.nvmlDeviceGetTotalEnergyConsumption = ask("millijoules")
    module.nvmlDeviceGetPowerUsage = ask("milliwatts")
    module.nvmlDeviceGetPowerManagementLimitConstraints = ask("limits")
    return module


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.load()


def _take(gpus, catalogue, now):
    return nvml_gpus(_pynvml(gpus), catalogue=catalogue, monotonic_ns=lambda: now[0], sleep=lambda _: None)


def test_total_energy_is_taken_by_uuid_and_in_microjoules(catalogue):
    gpus = [FakeGpu("GPU-1"), FakeGpu("GPU-2", b"NVIDIA A100-SXM4-80GB")]
    found = _take(gpus, catalogue, [7])
    assert [counter.facts.device_id for counter in found.counters] == ["GPU-1", "GPU-2"]
    assert found.models["GPU-2"] == "NVIDIA A100-SXM4-80GB"
    gpus[0].millijoules = 12_345
    reading = found.counters[0].read()
    assert (reading.energy_microjoules, reading.at_monotonic_ns) == (12_345_000, 7)
    assert isinstance(found.counters[0], NvmlEnergyCounter)
    assert not found.counters[0].facts.closes_at_will


def test_a_driver_reset_is_a_new_epoch_and_no_guess(catalogue):
    gpu, now = FakeGpu(), [0]
    gpu.millijoules = 5_000
    counter = _take([gpu], catalogue, now).counters[0]
    before = counter.read()
    gpu.millijoules, now[0] = 10, 100_000_000
    delta = difference(before, counter.read(), counter.facts)
    assert delta.energy_microjoules is None
    assert "reset" in delta.lost


def test_without_total_energy_power_is_integrated_without_drift(catalogue):
    gpu, now = FakeGpu(), [0]
    gpu.unsupported.add("millijoules")
    counter = _take([gpu], catalogue, now).counters[0]
    assert isinstance(counter, NvmlPowerCounter)
    assert counter.facts.method == "nvml-power-integrated"
    first = counter.read().energy_microjoules
    for _ in range(3000):
        now[0] += 333_333
        gpu.milliwatts = 300_001
        counter.read()
    # 1 s at 300.001 W, but for the first trapezoid, which begins at 100 W.
    expected = 300_001 * 333_333 * 3000 - 200_001 * 333_333 // 2
    assert counter.read().energy_microjoules - first == expected // 1_000_000


def test_power_samples_too_far_apart_are_not_bridged(catalogue):
    gpu, now = FakeGpu(), [0]
    gpu.unsupported.add("millijoules")
    counter = _take([gpu], catalogue, now).counters[0]
    before = counter.read()
    now[0] += 60_000_000_000
    with pytest.raises(CounterLost, match="60 s"):
        counter.read()
    now[0] += 100_000_000
    assert counter.read().energy_microjoules - before.energy_microjoules == 10_000_000


def test_the_time_without_power_readings_is_not_bridged(catalogue):
    gpu, now = FakeGpu(), [0]
    gpu.unsupported.add("millijoules")
    counter = _take([gpu], catalogue, now).counters[0]
    before = counter.read()
    gpu.unsupported.add("milliwatts")
    with pytest.raises(CounterLost, match="GPU-1"):
        counter.read()
    gpu.unsupported.discard("milliwatts")
    now[0] += 1_000_000_000
    assert counter.read().energy_microjoules == before.energy_microjoules


def test_a_gpu_that_fell_off_the_bus_is_lost(catalogue):
    gpu = FakeGpu()
    counter = _take([gpu], catalogue, [0]).counters[0]
    gpu.unsupported.add("millijoules")
    with pytest.raises(CounterLost, match="GPU-1"):
        counter.read()


def test_the_highest_plausible_power_is_the_gpus_own_or_the_published(catalogue):
    gpu = FakeGpu()
    assert _take([gpu], catalogue, [0]).counters[0].facts.maximum_power_milliwatts == 700_000
    gpu.unsupported.add("limits")
    gpu.name = "NVIDIA L4"
    assert _take([gpu], catalogue, [0]).counters[0].facts.maximum_power_milliwatts == 72_000
    gpu.name = "NVIDIA Unheard-of"
    assert _take([gpu], catalogue, [0]).counters[0].facts.maximum_power_milliwatts is None


def test_a_gpu_without_any_counter_is_named_with_the_reasons_and_keeps_its_model(catalogue):
    dumb = FakeGpu("GPU-dumb")
    dumb.unsupported |= {"millijoules", "milliwatts"}
    found = _take([FakeGpu(), dumb], catalogue, [0])
    assert [counter.facts.device_id for counter in found.counters] == ["GPU-1"]
    assert found.models["GPU-dumb"] == "NVIDIA H100 80GB HBM3"
    assert "nvml-total-energy: not taken for NVIDIA H100 80GB HBM3 GPU-dumb: Not Supported" in found.notes
    assert "nvml-power-integrated: not taken for NVIDIA H100 80GB HBM3 GPU-dumb: Not Supported" in found.notes
    assert _take([dumb], catalogue, [0]).counters == ()


def test_a_gpu_that_does_not_answer_leaves_the_others(catalogue):
    mute = FakeGpu("GPU-mute")
    mute.unsupported.add("uuid")
    found = _take([mute, FakeGpu()], catalogue, [0])
    assert [counter.facts.device_id for counter in found.counters] == ["GPU-1"]
    assert found.notes[0] == "nvml: not taken for GPU 0: Not Supported"


def test_a_gpu_that_comes_back_is_looked_up_anew(catalogue):
    gpu, gpus = FakeGpu(), []
    gpus.append(gpu)
    counter = _take(gpus, catalogue, [0]).counters[0]
    gpu.unsupported.add("millijoules")
    with pytest.raises(CounterLost, match="GPU-1"):
        counter.read()
    gpus[0] = FakeGpu()
    gpus[0].millijoules = 3
    assert counter.read().energy_microjoules == 3000


def test_each_gpus_period_is_measured_at_start(catalogue):
    fast, slow, now = FakeGpu("GPU-fast"), FakeGpu("GPU-slow"), [0]

    def sleep(seconds):
        now[0] += int(seconds * 1e9)
        fast.millijoules = now[0] // 20_000_000
        slow.millijoules = now[0] // 90_000_000

    module = _pynvml([fast, slow])
    found = nvml_gpus(module, catalogue=catalogue, monotonic_ns=lambda: now[0], sleep=sleep)
    assert [counter.facts.period_ns for counter in found.counters] == [20_000_000, 90_000_000]
    assert now[0] <= 500_000_000
    assert found.notes[0].startswith(
        "nvml-total-energy: taken for NVIDIA H100 80GB HBM3 GPU-fast, which moves every 20.0"
    )


def test_no_driver_and_no_gpu_are_unavailable(catalogue):
    with pytest.raises(CounterUnavailable, match="no GPU"):
        _take([], catalogue, [0])
    module = _pynvml([])

    def no_driver():
        raise FakeNvmlError("Driver Not Loaded")

    module.nvmlInit = no_driver
    with pytest.raises(CounterUnavailable, match="Driver Not Loaded"):
        nvml_gpus(module, catalogue=catalogue, monotonic_ns=lambda: 0, sleep=lambda _: None)


def test_only_power_that_is_summed_here_begins_anew_with_each_meter(catalogue):
    dumb = FakeGpu("GPU-dumb")
    dumb.unsupported.add("millijoules")
    summed, counted = (_take([gpu], catalogue, [0]).counters[0] for gpu in (dumb, FakeGpu()))
    assert "anew" in summed.facts.begins_anew
    assert counted.facts.begins_anew is None
