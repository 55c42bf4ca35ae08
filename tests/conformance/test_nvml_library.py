"""NVIDIA's own Python module and our counters on a library compiled from ``fake_nvml.c``.

The library is found by name as the real one is, so it lives in a process of its own: this file, run as a program.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metering.counters.counter import CounterFacts, Reading, difference

FIRST, SECOND = "GPU-0-5ca1ab1e", "GPU-1-5ca1ab1e"
MILLIWATTS = 100_000
HOST = "pid:[4026531836]"
CONTAINER = "pid:[4026532201]"


class Driver:
    """A meter's process with the stand-in as its driver, and the switches of its GPUs."""

    def __init__(self, folder, settings):
        self._settings_file = folder / "settings"
        self._settings = {"gpus": 1}
        self.set(settings)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(self._settings_file)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = self._answer()
        self.notes = found["notes"]
        self.models = found["models"]
        self.facts = {each["device_id"]: CounterFacts(**each) for each in found["facts"]}

    def set(self, settings):
        """Change settings of ``fake_nvml.c``."""
        self._settings |= settings
        new = self._settings_file.with_suffix(".new")
        new.write_text("".join(f"{key}={value}\n" for key, value in self._settings.items()))
        new.rename(self._settings_file)

    def read(self, device_id):
        """A reading, or the reason why there is none."""
        answer = self._ask("read", device_id)
        return answer if isinstance(answer, str) else Reading(**answer)

    def others(self, device_id, *own_pids):
        return self._ask("others", device_id, *own_pids)

    def wait_for_move(self, device_id):
        """The first reading after the counter's next step."""
        before = self.read(device_id)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            after = self.read(device_id)
            if after.energy_microjoules != before.energy_microjoules:
                return after
        raise AssertionError(f"{device_id} stands still")

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=10) == 0

    def _ask(self, *question):
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the meter's process died"
        return json.loads(line)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    options = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, "-o", built, source], check=True)
    return built


@pytest.fixture
def driver(library, tmp_path):
    """Starts the stand-in's process; by default in the host's pid namespace."""
    started = []

    def start(settings, *, namespace=HOST):
        shutil.copy(library, tmp_path)
        (tmp_path / "self/ns").mkdir(parents=True)
        (tmp_path / "self/ns/pid").symlink_to(namespace)
        started.append(Driver(tmp_path, settings))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize("period_ms", [20, 60])
def test_energy_rises_with_time_in_steps_of_the_measured_period(driver, period_ms):
    gpu = driver({"period_ms": period_ms})
    facts = gpu.facts[FIRST]
    assert facts.method == "nvml-total-energy"
    assert facts.period_ns == pytest.approx(period_ms * 1_000_000, rel=0.4)
    assert facts.maximum_power_milliwatts == 700_000
    assert f"moves every {facts.period_ns / 1e6:.1f} ms (measured)" in " ".join(gpu.notes)
    before, after = gpu.wait_for_move(FIRST), gpu.wait_for_move(FIRST)
    steps, rest = divmod(difference(before, after, facts).energy_microjoules, period_ms * MILLIWATTS)
    assert steps >= 1
    assert rest == 0


def test_a_counter_too_slow_to_be_measured_keeps_the_assumed_period_and_says_so(driver):
    gpu = driver({"period_ms": 2000})
    assert gpu.facts[FIRST].period_ns == 100_000_000
    assert any("assumed to move every 100 ms: it hardly moved" in note for note in gpu.notes)


def test_a_driver_reset_is_a_loss_with_a_reason_and_a_new_epoch(driver):
    gpu = driver({})
    facts, before = gpu.facts[FIRST], gpu.read(FIRST)
    gpu.set({"0.resets": 1})
    after = gpu.read(FIRST)
    assert after.energy_microjoules < before.energy_microjoules
    lost = difference(before, after, facts)
    assert lost.energy_microjoules is None
    assert "driver was reset" in lost.lost
    later = gpu.wait_for_move(FIRST)
    assert difference(after, later, facts).energy_microjoules == later.energy_microjoules - after.energy_microjoules


def test_a_gpu_is_lost_and_comes_back_with_what_it_counted_meanwhile(driver):
    gpu = driver({})
    before = gpu.read(FIRST)
    gpu.set({"0.lost": 1})
    assert gpu.read(FIRST) == f"{FIRST}: GPU is lost"
    assert gpu.read(FIRST) == f"{FIRST}: GPU is lost"
    gpu.set({"0.lost": 0})
    assert gpu.read(FIRST).energy_microjoules >= before.energy_microjoules
    gpu.wait_for_move(FIRST)


def test_two_gpus_are_told_apart_by_uuid_and_one_lost_leaves_the_other(driver):
    gpu = driver({"gpus": 2})
    assert list(gpu.facts) == [FIRST, SECOND]
    assert gpu.models == {FIRST: "NVIDIA H100 80GB HBM3", SECOND: "NVIDIA H100 80GB HBM3"}
    gpu.set({"1.lost": 1})
    assert "lost" in gpu.read(SECOND)
    gpu.wait_for_move(FIRST)


def test_a_gpu_that_is_lost_from_the_beginning_is_named_and_the_other_is_taken(driver):
    gpu = driver({"gpus": 2, "0.lost": 1})
    assert list(gpu.facts) == [SECOND]
    assert "nvml: not taken for GPU 0: GPU is lost" in gpu.notes


def test_without_total_energy_power_is_integrated(driver):
    gpu = driver({"0.energy": 0})
    facts = gpu.facts[FIRST]
    assert facts.method == "nvml-power-integrated"
    before = gpu.read(FIRST)
    time.sleep(0.05)
    after = gpu.read(FIRST)
    expected = MILLIWATTS * (after.at_monotonic_ns - before.at_monotonic_ns) // 1_000_000
    assert after.energy_microjoules - before.energy_microjoules == pytest.approx(expected, abs=1)
    assert f"nvml-total-energy: not taken for NVIDIA H100 80GB HBM3 {FIRST}: Not Supported" in gpu.notes


def test_a_gpu_with_no_counter_at_all_keeps_its_model_and_the_reasons(driver):
    gpu = driver({"0.energy": 0, "0.power": 0})
    assert gpu.facts == {}
    assert list(gpu.models) == [FIRST]
    assert f"nvml-power-integrated: not taken for NVIDIA H100 80GB HBM3 {FIRST}: Not Supported" in gpu.notes


def test_who_shares_a_gpu_is_told_and_why(driver):
    gpu = driver({"gpus": 2})
    assert gpu.others(FIRST, 7) is None
    gpu.set({"0.pids": "8"})
    assert gpu.others(FIRST, 7) == f"{FIRST}: others compute on the GPU: process 8"
    gpu.set({"0.pids": "7 8"})
    assert gpu.others(FIRST, 7, 8) is None
    gpu.set({"name.8": "python3"})
    assert gpu.others(FIRST, 7) == f"{FIRST}: others compute on the GPU: process 8 (python3)"
    assert gpu.others(SECOND, 7) is None
    gpu.set({"name.8": "/usr/bin/nvidia-cuda-mps-server"})
    assert gpu.others(FIRST, 7) == f"{FIRST}: MPS shares the GPU between processes"
    gpu.set({"0.pids": "7", "0.mps": "7"})
    assert "MPS" in gpu.others(FIRST, 7)
    gpu.set({"0.mps": "", "0.mig": 0})
    assert gpu.others(FIRST, 7) is None
    gpu.set({"0.mig": 1})
    assert "MIG divides the GPU" in gpu.others(FIRST, 7)
    gpu.set({"0.lost": 1})
    assert gpu.others(FIRST, 7) == f"{FIRST}: NVML doesn't say who computes on the GPU: GPU is lost"


def test_in_a_container_processes_are_counted_because_their_ids_are_not_ours(driver):
    gpu = driver({"0.pids": "70007"}, namespace=CONTAINER)
    assert gpu.others(FIRST, 7) is None
    gpu.set({"0.pids": "70007 70008"})
    assert "2 processes compute on the GPU, and from inside this container it can't be told" in gpu.others(FIRST, 7)
    gpu.set({"0.pids": "7 8"})
    assert gpu.others(FIRST, 7) == f"{FIRST}: others compute on the GPU: process 8"
    assert any("in a container" in note for note in gpu.notes)


def _serve(folder):
    """Detect, print what was found, and answer questions until there are no more."""
    import pynvml

    from clusters.silicon import Catalogue
    from metering.counters.detect import Machine, detect
    from metering.errors import CounterLost

    def show(value):
        print(json.dumps(value), flush=True)

    def reading(device_id):
        try:
            now = counters[device_id].read()
        except CounterLost as why:
            return str(why)
        return {"energy_microjoules": now.energy_microjoules, "at_monotonic_ns": now.at_monotonic_ns}

    sensors = detect(
        Machine(
            proc_root=folder,
            powercap_root=folder / "no-powercap",
            nvml=pynvml,
            catalogue=Catalogue.load(),
            monotonic_ns=time.monotonic_ns,
        )
    )
    counters = {counter.facts.device_id: counter for counter in sensors.devices}
    facts = [
        {name: getattr(counter.facts, name) for name in counter.facts.__dataclass_fields__}
        for counter in sensors.devices
    ]
    show({"notes": sensors.notes, "models": dict(sensors.gpu_models), "facts": facts})
    for line in sys.stdin:
        verb, device_id, *pids = json.loads(line)
        show(reading(device_id) if verb == "read" else sensors.sharing[device_id].others(frozenset(pids)))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
