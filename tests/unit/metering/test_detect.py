"""Which counters are taken, in which order, and what is said about the others."""

import json
import types
from pathlib import Path

import pytest

from clusters.silicon import Catalogue
from metering.counters.detect import Machine, detect
from metering.errors import ReplayUnusable

CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: {model}
physical id\t: 0

processor\t: 1
physical id\t: 0
"""


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.load()


@pytest.fixture
def machine(tmp_path, catalogue):
    """A virtual machine with neither RAPL nor a GPU."""
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(model="AMD EPYC"))
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7 8 9 10\n")

    def make(**changes):
        arguments = {
            "proc_root": tmp_path,
            "powercap_root": tmp_path / "powercap",
            "nvml": None,
            "catalogue": catalogue,
            "monotonic_ns": lambda: 0,
            "sleep": lambda _: None,
        }
        return Machine(**{**arguments, **changes})

    return make


def _with_rapl(tmp_path):
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "5"), ("max_energy_range_uj", "1000000")):
        (zone / name).write_text(text + "\n")


def _nvml():
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 1
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUUID = lambda _: "GPU-1"
    module.nvmlDeviceGetName = lambda _: "NVIDIA L4"
    module.nvmlDeviceGetTotalEnergyConsumption = lambda _: 5
    module.nvmlDeviceGetPowerManagementLimitConstraints = lambda _: (1, 72_000)
    return module


def _methods(sensors):
    return [counter.facts.method for counter in (*sensors.devices, *sensors.host)]


def test_a_bare_virtual_machine_is_derived_and_says_why(machine, catalogue):
    sensors = detect(machine())
    assert _methods(sensors) == ["util-tdp"]
    assert sensors.host_unavailable is None
    nvml, rapl, ioreport, util = sensors.notes
    assert nvml == "nvml: not taken: the nvidia-ml-py package is not installed"
    assert rapl.startswith("rapl: not taken: no powercap tree")
    assert ioreport == "ioreport: not taken: it is for Macs with Apple silicon and the zeus-apple-silicon package"
    assert util.startswith("util-tdp: taken at 2.083 W per busy thread: AMD EPYC 9005 series (Zen 5), taken as AMD")
    assert util.endswith(f"({catalogue.thread_power(sensors.cpu).source})")


def test_rapl_comes_before_util_tdp(machine, tmp_path):
    _with_rapl(tmp_path)
    sensors = detect(machine())
    assert _methods(sensors) == ["rapl"]
    assert sensors.notes[1:] == (
        "rapl: taken for cpu-package-0",
        "ioreport: not taken: rapl is better",
        "util-tdp: not taken: rapl is better",
    )


def test_a_gpu_is_metered_beside_the_host(machine, tmp_path):
    _with_rapl(tmp_path)
    sensors = detect(machine(nvml=_nvml()))
    assert _methods(sensors) == ["nvml-total-energy", "rapl"]
    assert sensors.gpu_models == {"GPU-1": "NVIDIA L4"}
    assert sensors.notes[0] == (
        "nvml-total-energy: taken for NVIDIA L4 GPU-1, which is assumed to move every 100 ms: it hardly moved in 0.5 s"
    )
    assert list(sensors.sharing) == ["GPU-1"]


def _apple():
    module = types.ModuleType("zeus_apple_silicon")
    metrics = types.SimpleNamespace(cpu_total_mj=5, gpu_mj=6, ane_mj=0, dram_mj=7)
    module.AppleEnergyMonitor = lambda: types.SimpleNamespace(get_cumulative_energy=lambda: metrics)
    return module


def test_a_mac_without_proc_is_counted_and_told_what_is_missing(machine, tmp_path):
    sensors = detect(machine(proc_root=tmp_path / "nothing", apple=_apple()))
    assert _methods(sensors) == ["ioreport"] * 4
    assert sensors.host_unavailable is None
    assert "ioreport: taken for apple-cpu, apple-gpu, apple-ane, apple-dram" in " ".join(sensors.notes)
    assert any("counted but not attributed" in note for note in sensors.notes)
    assert any("doesn't run on macOS yet" in note for note in sensors.notes)
    assert "util-tdp: not taken: ioreport is better" in sensors.notes


def _recording(folder, scope="cpu-package"):
    facts = {
        "device_id": "recorded-0",
        "method": "rapl",
        "scope": scope,
        "period_ns": 1_000_000,
        "wrap_microjoules": None,
        "maximum_power_milliwatts": None,
        "error_percent": 5.0,
        "best_confidence": "measured-apportioned",
        "closes_at_will": True,
    }
    file = folder / "recording"
    file.write_text(f"{json.dumps({'counters': [facts]})}\ndevice_id,at_ns,energy_microjoules\nrecorded-0,5,7\n")
    return file


def test_a_recording_is_taken_only_when_asked_for_and_then_alone(machine, tmp_path):
    _with_rapl(tmp_path)
    sensors = detect(machine(nvml=_nvml(), replay_file=_recording(tmp_path)))
    assert _methods(sensors) == ["replay"]
    assert sensors.host[0].facts.best_confidence == "derived"
    assert "RECORDING by rapl" in sensors.notes[0]
    assert sensors.notes[1] == "nvml, rapl, ioreport, util-tdp: not taken: a recording is replayed instead"


def test_a_recorded_gpu_is_a_device(machine, tmp_path):
    sensors = detect(machine(replay_file=_recording(tmp_path, scope="gpu")))
    assert (len(sensors.devices), sensors.host) == (1, ())
    assert sensors.gpu_models == {"recorded-0": "recorded GPU"}
    assert "holds no counter of a host" in sensors.host_unavailable


def test_a_recording_that_cannot_be_played_is_no_reason_to_take_something_else(machine, tmp_path):
    with pytest.raises(ReplayUnusable, match="missing"):
        detect(machine(replay_file=tmp_path / "missing"))


def test_unknown_silicon_is_unavailable_with_a_reason(machine, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Quantum Abacus 9\n")
    sensors = detect(machine())
    assert sensors.host == ()
    assert sensors.host_unavailable == (
        "no published TDP is known for 'Quantum Abacus 9' (unknown); set its watts per thread"
    )


def test_a_setting_overrides_the_catalogue(machine, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Quantum Abacus 9\n")
    sensors = detect(machine(milliwatts_per_thread=5_000))
    assert _methods(sensors) == ["util-tdp"]
    assert sensors.host[0].facts.maximum_power_milliwatts == 5_000
    assert "5.000 W per busy thread" in sensors.notes[-1]
    assert "set by the operator" in sensors.notes[-1]


def test_a_machine_without_proc_is_no_error(machine, tmp_path):
    sensors = detect(machine(proc_root=tmp_path / "nothing"))
    assert sensors.host == ()
    assert sensors.cpu.model == "unknown"
    assert sensors.host_unavailable


def test_a_missing_stat_is_a_reason(machine, tmp_path):
    (tmp_path / "stat").unlink()
    assert "stat" in detect(machine()).host_unavailable


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_this_machine_has_a_note_for_every_method(catalogue):
    sensors = detect(
        Machine(
            proc_root=Path("/proc"),
            powercap_root=Path("/sys/class/powercap"),
            nvml=None,
            catalogue=catalogue,
            monotonic_ns=lambda: 0,
        )
    )
    assert {note.partition(":")[0] for note in sensors.notes} >= {"nvml", "rapl", "ioreport", "util-tdp"}
