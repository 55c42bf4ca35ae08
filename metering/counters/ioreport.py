"""Apple silicon through IOReport, the SoC's own energy model: CPU, GPU, neural engine and DRAM. macOS only.

The optional package ``zeus-apple-silicon`` reads it. Its cumulative millijoules count since the Mac was booted, over
all processes and all dies, so every part is a counter of the host, the GPU too. The GPU's SRAM has a channel of its
own, of which Apple doesn't say whether the GPU's contains it: it isn't counted, so that nothing is counted twice.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from metering.counters.counter import Counter, CounterFacts, Reading
from metering.errors import CounterLost, CounterUnavailable

# Device, scope and the field of AppleEnergyMetrics, in millijoules.
_PARTS = (
    ("apple-cpu", "cpu", "cpu_total_mj"),
    ("apple-gpu", "soc-gpu", "gpu_mj"),
    ("apple-ane", "soc-ane", "ane_mj"),
    ("apple-dram", "dram", "dram_mj"),
)
# Apple publishes neither how often the model moves nor how accurate it is; powermetrics(1) calls it an estimate.
_ASSUMED_PERIOD_NS = 100_000_000
_ERROR_PERCENT = 20.0
# No part draws more than the hungriest Mac without expansion cards may take in all: Mac Studio (2025), Apple's
# technical specifications, "maximum continuous power".
_MAXIMUM_MILLIWATTS = 480_000
# The parts are read one after the other; this close together they share one sample.
_SAMPLE_NS = 1_000_000


def installed_module() -> ModuleType | None:
    """The package, on a Mac that has it."""
    if sys.platform != "darwin":
        return None
    try:
        return importlib.import_module("zeus_apple_silicon")
    except ImportError:
        return None


def ioreport_counters(zeus_apple_silicon: ModuleType, *, monotonic_ns: Callable[[], int]) -> tuple[Counter, ...]:
    """One counter for each part that this Mac reports.

    Raises:
        CounterUnavailable: IOReport can't be subscribed to, or reports no CPU energy.
    """
    try:
        energy_model = _EnergyModel(zeus_apple_silicon.AppleEnergyMonitor(), monotonic_ns)
        metrics, _ = energy_model.sample()
    except RuntimeError as wrong:
        raise CounterUnavailable(f"IOReport: {wrong}") from wrong
    if metrics.cpu_total_mj is None:
        raise CounterUnavailable("IOReport reports no CPU energy on this Mac")
    return tuple(
        IoReportCounter(energy_model, field, _facts(device_id, scope))
        for device_id, scope, field in _PARTS
        if getattr(metrics, field) is not None
    )


class IoReportCounter:
    """One part of the SoC."""

    def __init__(self, energy_model: "_EnergyModel", field: str, facts: CounterFacts) -> None:
        self._energy_model = energy_model
        self._field = field
        self._facts = facts

    @property
    def facts(self) -> CounterFacts:
        """What holds for this part."""
        return self._facts

    def read(self) -> Reading:
        """The part's energy since the Mac was booted.

        Raises:
            CounterLost: IOReport failed or doesn't report the part any more.
        """
        try:
            metrics, at_monotonic_ns = self._energy_model.sample()
        except RuntimeError as wrong:
            raise CounterLost(f"{self._facts.device_id}: IOReport: {wrong}") from wrong
        millijoules: int | None = getattr(metrics, self._field)
        if millijoules is None:
            raise CounterLost(f"{self._facts.device_id}: IOReport doesn't report it any more")
        return Reading(energy_microjoules=millijoules * 1000, at_monotonic_ns=at_monotonic_ns)


class _EnergyModel:
    """Samples all parts at once."""

    def __init__(self, monitor: Any, monotonic_ns: Callable[[], int]) -> None:  # noqa: ANN401 - an extension's class
        self._monitor = monitor
        self._monotonic_ns = monotonic_ns
        self._last: tuple[Any, int] | None = None

    def sample(self) -> tuple[Any, int]:
        """All parts, and when they were read.

        Raises:
            RuntimeError: IOReport failed.
        """
        now_ns = self._monotonic_ns()
        if self._last is None or now_ns - self._last[1] >= _SAMPLE_NS:
            self._last = (self._monitor.get_cumulative_energy(), self._monotonic_ns())
        return self._last


def _facts(device_id: str, scope: str) -> CounterFacts:
    return CounterFacts(
        device_id=device_id,
        method="ioreport",
        scope=scope,
        period_ns=_ASSUMED_PERIOD_NS,
        wrap_microjoules=None,
        maximum_power_milliwatts=_MAXIMUM_MILLIWATTS,
        error_percent=_ERROR_PERCENT,
        best_confidence="measured-apportioned",
        closes_at_will=False,
    )
