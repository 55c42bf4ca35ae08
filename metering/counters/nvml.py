"""NVIDIA GPUs through NVML: each GPU's total energy by UUID, or its power draw integrated.

``nvmlDeviceGetTotalEnergyConsumption`` counts millijoules since the driver was loaded (Volta and newer), so a
decrease is a driver reset. The ``pynvml`` module is passed in, so that a machine without it needs no import.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from clusters.silicon import Catalogue
from metering.counters.counter import Counter, CounterFacts, Reading
from metering.errors import CounterLost, CounterUnavailable

_ERROR_PERCENT = 10.0
# The reading moves on every 20 to 100 ms, by model; the slowest is assumed until it is measured at start.
_PERIOD_NS = 100_000_000
# Power samples further apart than this say nothing about the time between them.
_LONGEST_SAMPLE_GAP_NS = 5_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlGpus:
    """The GPUs of this machine: a counter each, their model names by UUID, and why some have no counter."""

    counters: tuple[Counter, ...]
    models: dict[str, str]
    skipped: tuple[str, ...]


def nvml_gpus(pynvml: ModuleType, *, catalogue: Catalogue, monotonic_ns: Callable[[], int]) -> NvmlGpus:
    """Initialise NVML and take every GPU that can be counted.

    Raises:
        CounterUnavailable: there is no driver, or no GPU that can be counted.
    """
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        named = [(handle, _text(pynvml.nvmlDeviceGetUUID(handle))) for handle in handles]
        models = {uuid: _text(pynvml.nvmlDeviceGetName(handle)) for handle, uuid in named}
    except pynvml.NVMLError as wrong:
        raise CounterUnavailable(f"NVML: {wrong}") from wrong
    if not named:
        raise CounterUnavailable("NVML sees no GPU")
    counters: list[Counter] = []
    skipped: list[str] = []
    for handle, uuid in named:
        maximum_milliwatts = _maximum_milliwatts(pynvml, handle, catalogue, models[uuid])
        counter = _counter(pynvml, handle, uuid, maximum_milliwatts, monotonic_ns)
        if counter is None:
            skipped.append(f"{models[uuid]} {uuid} reports neither total energy nor power draw")
        else:
            counters.append(counter)
    if not counters:
        raise CounterUnavailable(f"NVML: {'; '.join(skipped)}")
    return NvmlGpus(counters=tuple(counters), models=models, skipped=tuple(skipped))


class NvmlEnergyCounter:
    """A GPU's total energy, millijoules since its driver was loaded."""

    def __init__(
        self,
        pynvml: ModuleType,
        handle: object,
        facts: CounterFacts,
        *,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self._pynvml = pynvml
        self._handle = handle
        self._facts = facts
        self._monotonic_ns = monotonic_ns

    @property
    def facts(self) -> CounterFacts:
        """What holds for this GPU."""
        return self._facts

    def read(self) -> Reading:
        """The GPU's energy; a decrease between two readings is a driver reset.

        Raises:
            CounterLost: the GPU fell off the bus or its driver is gone.
        """
        try:
            millijoules: int = self._pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._pynvml.NVMLError as wrong:
            raise CounterLost(f"{self._facts.device_id}: {wrong}") from wrong
        return Reading(energy_microjoules=millijoules * 1000, at_monotonic_ns=self._monotonic_ns())


class NvmlPowerCounter:
    """A GPU's power draw, integrated by trapezoids between readings: for GPUs that count no energy.

    Halves of picojoules are kept, so that short steps add up without loss. Readings more than 5 s apart (a suspend)
    are not bridged: the counter reports a loss once and goes on from there.
    """

    def __init__(
        self,
        pynvml: ModuleType,
        handle: object,
        facts: CounterFacts,
        *,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self._pynvml = pynvml
        self._handle = handle
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
        try:
            milliwatts: int = self._pynvml.nvmlDeviceGetPowerUsage(self._handle)
        except self._pynvml.NVMLError as wrong:
            self._last = None
            raise CounterLost(f"{self._facts.device_id}: {wrong}") from wrong
        now_ns = self._monotonic_ns()
        last, self._last = self._last, (now_ns, milliwatts)
        if last is not None:
            elapsed_ns = now_ns - last[0]
            if elapsed_ns > _LONGEST_SAMPLE_GAP_NS:
                raise CounterLost(f"{self._facts.device_id}: power was not sampled for {elapsed_ns / 1e9:.0f} s")
            self._energy_half_picojoules += (last[1] + milliwatts) * elapsed_ns
        return Reading(energy_microjoules=self._energy_half_picojoules // 2_000_000, at_monotonic_ns=now_ns)


def _counter(
    pynvml: ModuleType,
    handle: object,
    uuid: str,
    maximum_milliwatts: int | None,
    monotonic_ns: Callable[[], int],
) -> Counter | None:
    """The GPU's best counter, or ``None`` when it has none."""
    if _answers(pynvml, pynvml.nvmlDeviceGetTotalEnergyConsumption, handle):
        facts = _facts(uuid, "nvml-total-energy", maximum_milliwatts)
        return NvmlEnergyCounter(pynvml, handle, facts, monotonic_ns=monotonic_ns)
    if _answers(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle):
        facts = _facts(uuid, "nvml-power-integrated", maximum_milliwatts)
        return NvmlPowerCounter(pynvml, handle, facts, monotonic_ns=monotonic_ns)
    return None


def _facts(uuid: str, method: str, maximum_milliwatts: int | None) -> CounterFacts:
    return CounterFacts(
        device_id=uuid,
        method=method,
        scope="gpu",
        period_ns=_PERIOD_NS,
        wrap_microjoules=None,
        maximum_power_milliwatts=maximum_milliwatts,
        error_percent=_ERROR_PERCENT,
        best_confidence="measured-direct" if method == "nvml-total-energy" else "measured-apportioned",
        closes_at_will=False,
    )


def _answers(pynvml: ModuleType, function: Callable[[object], int], handle: object) -> bool:
    try:
        function(handle)
    except pynvml.NVMLError:
        return False
    return True


def _maximum_milliwatts(
    pynvml: ModuleType,
    handle: object,
    catalogue: Catalogue,
    model: str,
) -> int | None:
    """The highest power limit that the GPU accepts, else its published TDP, else unknown."""
    try:
        return int(pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)[1])
    except pynvml.NVMLError:
        part = catalogue.gpu(model)
        return None if part is None else part.tdp_milliwatts


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
