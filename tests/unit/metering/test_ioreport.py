"""Apple silicon on a stand-in for the zeus_apple_silicon module."""

import sys
import types

import pytest

from metering.counters.ioreport import installed_module, ioreport_counters
from metering.errors import CounterLost, CounterUnavailable


class FakeMac:
    def __init__(self, **changes):
        fields = {"cpu_total_mj": 10, "gpu_mj": 20, "gpu_sram_mj": 5, "ane_mj": 30, "dram_mj": 40, **changes}
        self.metrics = types.SimpleNamespace(**fields)
        self.samples = 0
        self.now_ns = 0
        self.module = types.ModuleType("zeus_apple_silicon")
        self.module.AppleEnergyMonitor = lambda: self

    def get_cumulative_energy(self):
        if self.metrics is None:
            raise RuntimeError("Failed to create IOReport subscription.")
        self.samples += 1
        return self.metrics

    def counters(self):
        found = ioreport_counters(self.module, monotonic_ns=lambda: self.now_ns)
        return {counter.facts.device_id: counter for counter in found}


def test_each_part_is_a_counter_of_the_host_and_the_gpus_sram_is_not_counted_twice():
    counters = FakeMac().counters()
    assert {device_id: counter.read().energy_microjoules for device_id, counter in counters.items()} == {
        "apple-cpu": 10_000,
        "apple-gpu": 20_000,
        "apple-ane": 30_000,
        "apple-dram": 40_000,
    }
    assert "gpu" not in {counter.facts.scope for counter in counters.values()}, "that is a replica's own device"


def test_the_parts_share_a_sample_and_later_readings_get_another():
    mac = FakeMac()
    counters = mac.counters()
    for counter in counters.values():
        counter.read()
    assert mac.samples == 1
    mac.now_ns = 100_000_000
    mac.metrics.cpu_total_mj = 11
    reading = counters["apple-cpu"].read()
    assert (reading.energy_microjoules, reading.at_monotonic_ns) == (11_000, 100_000_000)
    assert mac.samples == 2


def test_a_part_that_this_mac_does_not_report_has_no_counter():
    assert "apple-ane" not in FakeMac(ane_mj=None).counters()


def test_a_part_that_is_reported_no_more_is_lost_and_not_zero():
    mac = FakeMac()
    counters = mac.counters()
    mac.now_ns, mac.metrics.gpu_mj = 100_000_000, None
    with pytest.raises(CounterLost, match="apple-gpu"):
        counters["apple-gpu"].read()
    assert counters["apple-dram"].read().energy_microjoules == 40_000


def test_a_mac_without_cpu_energy_or_subscription_is_unavailable():
    with pytest.raises(CounterUnavailable, match="no CPU energy"):
        FakeMac(cpu_total_mj=None).counters()
    mac = FakeMac()
    mac.metrics = None
    with pytest.raises(CounterUnavailable, match="subscription"):
        mac.counters()


def test_the_package_is_only_looked_for_on_a_mac(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", FakeMac().module)
    assert installed_module() is None
    monkeypatch.setattr("sys.platform", "darwin")
    assert installed_module() is not None
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    assert installed_module() is None
