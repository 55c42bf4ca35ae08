"""NVIDIA GPUs through NVML: each GPU's total energy by UUID, or its power draw integrated.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules since the driver was loaded (Volta and newer), so a
decrease is a driver reset. The ``pynvml`` module is passed in, so that a machine without it needs no import.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

from clusters.silicon import Catalogue
from metering.counters.counter import Counter, CounterFacts, Reading, timely
from metering.counters.counter_period import LONGEST_WATCH_NS, measured_periods
from metering.errors import CounterLost, CounterUnavailable

_ERROR_PERCENT = 10.0
# The reading moves on every 20 to 100 ms, by model; the slowest is assumed where it can't be measured.
_ASSUMED_PERIOD_NS = 100_000_000
# Power samples further apart than this say nothing about the time between them.
_LONGEST_SAMPLE_GAP_NS = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlGpus:
    """The GPUs of this machine: a counter each, as far as they have one, and the model names of all by UUID.

    ``notes`` say what was taken and why the rest wasn't.
    """

    counters: tuple[Counter, ...]
    models: dict[str, str]
    notes: tuple[str, ...]


def nvml_gpus(
    pynvml: ModuleType,
    *,
    catalogue: Catalogue,
    monotonic_ns: Callable[[], int],
    sleep: Callable[[float], None],
) -> NvmlGpus:
    """Initialise NVML, take every GPU that can be counted, and measure how often their counters move.

    Raises:
        CounterUnavailable: there is no driver, or no GPU.
    """
    notes: list[str] = []
    gpus = _gpus(pynvml, notes)
    models = {gpu.uuid: gpu.model for gpu in gpus}
    counters = [counter for gpu in gpus if (counter := _counter(gpu, catalogue, monotonic_ns, notes)) is not None]
    counting = [counter for counter in counters if isinstance(counter, NvmlEnergyCounter)]
    periods = measured_periods(counting, monotonic_ns=monotonic_ns, sleep=sleep)
    for counter in counters:
        facts = counter.facts
        said = _period_note(facts, periods.get(facts.device_id))
        notes.append(f"{facts.method}: taken for {models[facts.device_id]} {facts.device_id}, {said}")
    return NvmlGpus(
        counters=tuple(_with_period(counter, periods.get(counter.facts.device_id)) for counter in counters),
        models=models,
        notes=tuple(notes),
    )


class NvmlGpu:
    """One GPU by its UUID. Its handle is looked up anew after a failure: a GPU that was lost may get another."""

    def __init__(self, pynvml: ModuleType, handle: object) -> None:
        """Ask for the GPU's names.

        Raises:
            pynvml.NVMLError: it doesn't answer.
        """
        self._pynvml = pynvml
        self._handle: object | None = handle
        self.uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
        self.model = _text(pynvml.nvmlDeviceGetName(handle))

    def total_energy_millijoules(self) -> int:
        """Energy since the driver was loaded.

        Raises:
            CounterLost: the GPU doesn't say.
        """
        return self._ask(self._pynvml.nvmlDeviceGetTotalEnergyConsumption)

    def power_milliwatts(self) -> int:
        """Power draw now.

        Raises:
            CounterLost: the GPU doesn't say.
        """
        return self._ask(self._pynvml.nvmlDeviceGetPowerUsage)

    def maximum_milliwatts(self, catalogue: Catalogue) -> int | None:
        """The highest power limit that the GPU accepts, else its published TDP, else unknown."""
        try:
            return int(self._pynvml.nvmlDeviceGetPowerManagementLimitConstraints(self._handle)[1])
        except self._pynvml.NVMLError:
            part = catalogue.gpu(self.model)
            return None if part is None else part.tdp_milliwatts

    def _ask(self, function: Callable[[object], int]) -> int:
        try:
            if self._handle is None:
                self._handle = self._pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
            return function(self._handle)
        except self._pynvml.NVMLError as wrong:
            self._handle = None
            raise CounterLost(f"{self.uuid}: {wrong}") from wrong


class NvmlEnergyCounter:
    """A GPU's total energy, millijoules since its driver was loaded."""

    def __init__(self, gpu: NvmlGpu, facts: CounterFacts, *, monotonic_ns: Callable[[], int]) -> None:
        self._gpu = gpu
        self._facts = facts
        self._monotonic_ns = monotonic_ns

    @property
    def facts(self) -> CounterFacts:
        """What holds for this GPU."""
        return self._facts

    def with_period(self, period_ns: int) -> "NvmlEnergyCounter":
        """The same counter, known to move this often."""
        facts = replace(self._facts, period_ns=period_ns)
        return NvmlEnergyCounter(self._gpu, facts, monotonic_ns=self._monotonic_ns)

    def read(self) -> Reading:
        """The GPU's energy; a decrease between two readings is a driver reset.

        Raises:
            CounterLost: the GPU fell off the bus or its driver is gone.
        """
        return timely(lambda: self._gpu.total_energy_millijoules() * 1000, self._monotonic_ns)


class NvmlPowerCounter:
    """A GPU's power draw, integrated by trapezoids between readings: for GPUs that count no energy.

    Halves of picojoules are kept, so that short steps add up without loss. Readings more than 5 s apart (a suspend)
    are not bridged: the counter reports a loss once and goes on from there.
    """

    def __init__(self, gpu: NvmlGpu, facts: CounterFacts, *, monotonic_ns: Callable[[], int]) -> None:
        self._gpu = gpu
        self._facts = facts
        self._monotonic_ns = monotonic_ns
        self._energy_half_picojoules = 0
        self._last: tuple[int, int] | None = None

    @property
    def facts(self) -> CounterFacts:
        """What holds for this GPU."""
        return self._facts

    def read(self) -> Reading:
        """Sample the power now and add the trapezoid since the last sample.

        Raises:
            CounterLost: no power reading, or the last one is too long ago.
        """
        last, self._last = self._last, None
        milliwatts = self._gpu.power_milliwatts()
        now_ns = self._monotonic_ns()
        self._last = (now_ns, milliwatts)
        if last is not None:
            elapsed_ns = now_ns - last[0]
            if elapsed_ns > _LONGEST_SAMPLE_GAP_NS:
                raise CounterLost(f"{self._facts.device_id}: power was not sampled for {elapsed_ns / 1e9:.0f} s")
            self._energy_half_picojoules += (last[1] + milliwatts) * elapsed_ns
        return Reading(energy_microjoules=self._energy_half_picojoules // 2_000_000, at_monotonic_ns=now_ns)


def _gpus(pynvml: ModuleType, notes: list[str]) -> Sequence[NvmlGpu]:
    """Every GPU that answers; one that doesn't must not take the others with it.

    Raises:
        CounterUnavailable: there is no driver, or no GPU.
    """
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as wrong:
        raise CounterUnavailable(f"NVML: {wrong}") from wrong
    if count == 0:
        raise CounterUnavailable("NVML sees no GPU")
    gpus = []
    for index in range(count):
        try:
            gpus.append(NvmlGpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)))
        except pynvml.NVMLError as wrong:
            notes.append(f"nvml: not taken for GPU {index}: {wrong}")
    return gpus


def _counter(
    gpu: NvmlGpu, catalogue: Catalogue, monotonic_ns: Callable[[], int], notes: list[str]
) -> NvmlEnergyCounter | NvmlPowerCounter | None:
    """The GPU's best counter, or ``None`` when it has none; ``notes`` get the reason for what isn't taken."""
    maximum_milliwatts = gpu.maximum_milliwatts(catalogue)
    try:
        gpu.total_energy_millijoules()
    except CounterLost as why:
        notes.append(f"nvml-total-energy: not taken for {gpu.model} {why}")
    else:
        facts = _facts(gpu.uuid, "nvml-total-energy", maximum_milliwatts)
        return NvmlEnergyCounter(gpu, facts, monotonic_ns=monotonic_ns)
    try:
        gpu.power_milliwatts()
    except CounterLost as why:
        notes.append(f"nvml-power-integrated: not taken for {gpu.model} {why}")
        return None
    facts = replace(
        _facts(gpu.uuid, "nvml-power-integrated", maximum_milliwatts),
        begins_anew="its power is summed up by each meter anew",
    )
    return NvmlPowerCounter(gpu, facts, monotonic_ns=monotonic_ns)


def _facts(uuid: str, method: str, maximum_milliwatts: int | None) -> CounterFacts:
    return CounterFacts(
        device_id=uuid,
        method=method,
        scope="gpu",
        period_ns=_ASSUMED_PERIOD_NS,
        wrap_microjoules=None,
        maximum_power_milliwatts=maximum_milliwatts,
        error_percent=_ERROR_PERCENT,
        best_confidence="measured-direct" if method == "nvml-total-energy" else "measured-apportioned",
        closes_at_will=False,
    )


def _with_period(counter: NvmlEnergyCounter | NvmlPowerCounter, period_ns: int | None) -> Counter:
    if isinstance(counter, NvmlEnergyCounter) and period_ns is not None:
        return counter.with_period(period_ns)
    return counter


def _period_note(facts: CounterFacts, measured_ns: int | None) -> str:
    if measured_ns is not None:
        return f"which moves every {measured_ns / 1e6:.1f} ms (measured)"
    assumed = f"which is assumed to move every {facts.period_ns / 1e6:.0f} ms"
    if facts.method == "nvml-total-energy":
        return f"{assumed}: it hardly moved in {LONGEST_WATCH_NS / 1e9:.1f} s"
    return f"{assumed}: power readings show no steps"


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
