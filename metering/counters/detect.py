"""What this machine can be metered with: NVML for its GPUs, RAPL for its CPUs, else utilisation times TDP."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from clusters.silicon import Catalogue, DetectedCpu, ThreadPower, detect_cpu
from metering.counters.counter import Counter
from metering.counters.nvml import nvml_gpus
from metering.counters.rapl import rapl_counters
from metering.counters.util_tdp import UtilTdpCounter
from metering.errors import CounterLost, CounterUnavailable
from metering.host_cpu import HostCpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """The machine's counters and silicon.

    ``host`` counters cover the CPUs that all processes share; ``devices`` are GPUs, one counter each. ``notes`` say
    in plain words what was taken and, for everything that wasn't, why. ``host_unavailable`` is the reason when no
    host counter was found. ``gpu_models`` maps UUIDs to model names, uncountable GPUs included.
    """

    host: tuple[Counter, ...]
    devices: tuple[Counter, ...]
    cpu: DetectedCpu
    gpu_models: Mapping[str, str]
    notes: tuple[str, ...]
    host_unavailable: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where detection looks: injected roots, so that a test is a folder.

    ``nvml`` is the ``pynvml`` module, or ``None`` when it isn't installed.
    ``milliwatts_per_thread`` is the operator's own figure, used instead of the catalogue's.
    """

    proc_root: Path
    powercap_root: Path
    nvml: ModuleType | None
    catalogue: Catalogue
    monotonic_ns: Callable[[], int]
    milliwatts_per_thread: int | None = None


def detect(machine: Machine) -> Sensors:
    """Find the counters that this machine has, best first.

    A machine with none is not an error: the reasons are in ``notes``, and energy will be unavailable.
    """
    notes: list[str] = []
    cpu = _cpu(machine, notes)
    devices, gpu_models = _devices(machine, notes)
    host, unavailable = _host(machine, cpu, notes)
    return Sensors(
        host=host,
        devices=devices,
        cpu=cpu,
        gpu_models=gpu_models,
        notes=tuple(notes),
        host_unavailable=unavailable,
    )


def _cpu(machine: Machine, notes: list[str]) -> DetectedCpu:
    try:
        return detect_cpu(machine.proc_root)
    except OSError as wrong:
        notes.append(f"cpu: not recognised: {wrong}")
        return DetectedCpu(
            vendor="unknown", model="unknown", family_number=None, model_number=None, threads=1, packages=(0,)
        )


def _devices(machine: Machine, notes: list[str]) -> tuple[tuple[Counter, ...], Mapping[str, str]]:
    if machine.nvml is None:
        notes.append("nvml: not taken: the nvidia-ml-py package is not installed")
        return (), {}
    try:
        gpus = nvml_gpus(machine.nvml, catalogue=machine.catalogue, monotonic_ns=machine.monotonic_ns)
    except CounterUnavailable as why:
        notes.append(f"nvml: not taken: {why}")
        return (), {}
    notes.extend(
        f"{counter.facts.method}: taken for {gpus.models[counter.facts.device_id]} {counter.facts.device_id}"
        for counter in gpus.counters
    )
    notes.extend(f"nvml: not taken: {reason}" for reason in gpus.skipped)
    return gpus.counters, gpus.models


def _host(machine: Machine, cpu: DetectedCpu, notes: list[str]) -> tuple[tuple[Counter, ...], str | None]:
    try:
        counters = rapl_counters(machine.powercap_root, monotonic_ns=machine.monotonic_ns)
    except CounterUnavailable as why:
        notes.append(f"rapl: not taken: {why}")
        return _util_tdp(machine, cpu, notes)
    notes.append(f"rapl: taken for {', '.join(counter.facts.device_id for counter in counters)}")
    notes.append("util-tdp: not taken: RAPL is better")
    return counters, None


def _util_tdp(machine: Machine, cpu: DetectedCpu, notes: list[str]) -> tuple[tuple[Counter, ...], str | None]:
    power = _thread_power(machine, cpu)
    if power is None:
        reason = f"no published TDP is known for {cpu.model!r} ({cpu.vendor}); set its watts per thread"
        notes.append(f"util-tdp: not taken: {reason}")
        return (), reason
    host_cpu = HostCpu(machine.proc_root)
    try:
        host_cpu.busy_ns()
    except CounterLost as wrong:
        notes.append(f"util-tdp: not taken: {wrong}")
        return (), str(wrong)
    counter = UtilTdpCounter(
        host_cpu,
        tdp_milliwatts=power.tdp_milliwatts,
        tdp_threads=power.threads,
        visible_threads=cpu.threads,
        monotonic_ns=machine.monotonic_ns,
    )
    watts = power.tdp_milliwatts / power.threads / 1000
    notes.append(f"util-tdp: taken at {watts:.3f} W per busy thread: {power.matched} ({power.source})")
    return (counter,), None


def _thread_power(machine: Machine, cpu: DetectedCpu) -> ThreadPower | None:
    if machine.milliwatts_per_thread is not None:
        return ThreadPower(
            tdp_milliwatts=machine.milliwatts_per_thread, threads=1, matched=cpu.model, source="set by the operator"
        )
    return machine.catalogue.thread_power(cpu)
