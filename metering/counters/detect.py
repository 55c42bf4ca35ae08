"""What this machine can be metered with: NVML for GPUs; RAPL for CPUs, else IOReport, else utilisation times TDP."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from clusters.silicon import Catalogue, DetectedCpu, ThreadPower, detect_cpu
from metering.counters.counter import Counter, Sharing
from metering.counters.ioreport import ioreport_counters
from metering.counters.nvml import nvml_gpus
from metering.counters.nvml_sharing import NvmlSharing, sees_host_pids
from metering.counters.rapl import rapl_counters
from metering.counters.replay import replay
from metering.counters.util_tdp import UtilTdpCounter
from metering.errors import CounterLost, CounterUnavailable
from metering.host_cpu import HostCpu

_UNKNOWN_CPU = DetectedCpu(
    vendor="unknown", model="unknown", family_number=None, model_number=None, threads=1, packages=(0,)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """The machine's counters and silicon.

    ``host`` counters cover what all processes share; ``devices`` are GPUs, one counter each. ``notes`` say in plain
    words what was taken and, for everything that wasn't, why. ``host_unavailable`` is the reason when no host counter
    was found. ``gpu_models`` maps UUIDs to model names, and ``sharing`` to who else uses a GPU, uncountable GPUs
    included.
    """

    host: tuple[Counter, ...]
    devices: tuple[Counter, ...]
    cpu: DetectedCpu
    gpu_models: Mapping[str, str]
    notes: tuple[str, ...]
    host_unavailable: str | None
    sharing: Mapping[str, Sharing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where detection looks: injected roots, so that a test is a folder.

    ``nvml`` is the ``pynvml`` module and ``apple`` is ``zeus_apple_silicon``, or ``None`` where they aren't installed.
    ``milliwatts_per_thread`` is the operator's own figure, used instead of the catalogue's. ``replay_file`` is a
    recording to be played instead of reading any counter.
    """

    proc_root: Path
    powercap_root: Path
    nvml: ModuleType | None
    catalogue: Catalogue
    monotonic_ns: Callable[[], int]
    apple: ModuleType | None = None
    sleep: Callable[[float], None] = time.sleep
    milliwatts_per_thread: int | None = None
    replay_file: Path | None = None


def detect(machine: Machine) -> Sensors:
    """Find the counters that this machine has, best first.

    A machine with none is not an error: the reasons are in ``notes``, and energy will be unavailable.

    Raises:
        ReplayUnusable: a recording was asked for and can't be played.
    """
    notes: list[str] = []
    cpu = _cpu(machine, notes)
    if machine.replay_file is not None:
        return _replayed(machine.replay_file, machine, cpu, notes)
    devices, gpu_models = _devices(machine, notes)
    sharing = _sharing(machine, gpu_models, notes)
    host, unavailable = _host(machine, cpu, notes)
    return Sensors(
        host=host,
        devices=devices,
        cpu=cpu,
        gpu_models=gpu_models,
        notes=tuple(notes),
        host_unavailable=unavailable,
        sharing=sharing,
    )


def _cpu(machine: Machine, notes: list[str]) -> DetectedCpu:
    try:
        return detect_cpu(machine.proc_root)
    except OSError as wrong:
        notes.append(
            f"cpu: not recognised: {wrong}; without Linux's {machine.proc_root} it isn't known which process used "
            "the CPUs either, so energy of the host can be counted but not attributed"
        )
        return _UNKNOWN_CPU


def _replayed(path: Path, machine: Machine, cpu: DetectedCpu, notes: list[str]) -> Sensors:
    recording = replay(path, monotonic_ns=machine.monotonic_ns)
    devices = tuple(counter for counter in recording.counters if counter.facts.scope == "gpu")
    host = tuple(counter for counter in recording.counters if counter.facts.scope != "gpu")
    methods = ", ".join(recording.methods)
    notes.append(f"replay: taken from {path}: all energy is a RECORDING by {methods}, not what this machine draws")
    notes.append("nvml, rapl, ioreport, util-tdp: not taken: a recording is replayed instead")
    return Sensors(
        host=host,
        devices=devices,
        cpu=cpu,
        gpu_models={counter.facts.device_id: "recorded GPU" for counter in devices},
        notes=tuple(notes),
        host_unavailable=None if host else f"the recording {path} holds no counter of a host",
        sharing={},
    )


def _devices(machine: Machine, notes: list[str]) -> tuple[tuple[Counter, ...], Mapping[str, str]]:
    if machine.nvml is None:
        notes.append("nvml: not taken: the nvidia-ml-py package is not installed")
        return (), {}
    try:
        gpus = nvml_gpus(
            machine.nvml, catalogue=machine.catalogue, monotonic_ns=machine.monotonic_ns, sleep=machine.sleep
        )
    except CounterUnavailable as why:
        notes.append(f"nvml: not taken: {why}")
        return (), {}
    notes.extend(gpus.notes)
    return gpus.counters, gpus.models


def _sharing(machine: Machine, gpu_models: Mapping[str, str], notes: list[str]) -> Mapping[str, Sharing]:
    if machine.nvml is None or not gpu_models:
        return {}
    has_host_pids = sees_host_pids(machine.proc_root)
    if not has_host_pids:
        notes.append("nvml: in a container, others on a GPU are told by the number of processes, not by their ids")
    return {uuid: NvmlSharing(machine.nvml, uuid, has_host_pids=has_host_pids) for uuid in gpu_models}


def _host(machine: Machine, cpu: DetectedCpu, notes: list[str]) -> tuple[tuple[Counter, ...], str | None]:
    """The best method's counters, else the last one's reason."""
    taken: tuple[Counter, ...] = ()
    reason = None
    for method, find in (("rapl", _rapl), ("ioreport", _ioreport), ("util-tdp", _util_tdp)):
        if taken:
            notes.append(f"{method}: not taken: {taken[0].facts.method} is better")
            continue
        try:
            taken, how = find(machine, cpu)
        except CounterUnavailable as why:
            reason = str(why)
            notes.append(f"{method}: not taken: {reason}")
        else:
            notes.append(f"{method}: taken {how}")
    return taken, None if taken else reason


def _rapl(machine: Machine, _: DetectedCpu) -> tuple[tuple[Counter, ...], str]:
    counters = rapl_counters(machine.powercap_root, monotonic_ns=machine.monotonic_ns)
    return counters, f"for {_named(counters)}"


def _ioreport(machine: Machine, _: DetectedCpu) -> tuple[tuple[Counter, ...], str]:
    if machine.apple is None:
        raise CounterUnavailable("it is for Macs with Apple silicon and the zeus-apple-silicon package")
    counters = ioreport_counters(machine.apple, monotonic_ns=machine.monotonic_ns)
    period_ns = counters[0].facts.period_ns
    return counters, (
        f"for {_named(counters)}, which are assumed to move every {period_ns / 1e6:.0f} ms; the counters are there, "
        "but the host meter needs Linux's /proc and doesn't run on macOS yet"
    )


def _util_tdp(machine: Machine, cpu: DetectedCpu) -> tuple[tuple[Counter, ...], str]:
    power = _thread_power(machine, cpu)
    if power is None:
        raise CounterUnavailable(
            f"no published TDP is known for {cpu.model!r} ({cpu.vendor}); set its watts per thread"
        )
    host_cpu = HostCpu(machine.proc_root)
    try:
        host_cpu.busy_ns()
    except CounterLost as wrong:
        raise CounterUnavailable(str(wrong)) from wrong
    counter = UtilTdpCounter(
        host_cpu,
        tdp_milliwatts=power.tdp_milliwatts,
        tdp_threads=power.threads,
        visible_threads=cpu.threads,
        monotonic_ns=machine.monotonic_ns,
    )
    watts = power.tdp_milliwatts / power.threads / 1000
    return (counter,), f"at {watts:.3f} W per busy thread: {power.matched} ({power.source})"


def _thread_power(machine: Machine, cpu: DetectedCpu) -> ThreadPower | None:
    if machine.milliwatts_per_thread is not None:
        return ThreadPower(
            tdp_milliwatts=machine.milliwatts_per_thread, threads=1, matched=cpu.model, source="set by the operator"
        )
    return machine.catalogue.thread_power(cpu)


def _named(counters: tuple[Counter, ...]) -> str:
    return ", ".join(counter.facts.device_id for counter in counters)
