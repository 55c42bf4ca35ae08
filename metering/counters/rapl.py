"""RAPL through the kernel's powercap tree: energy of CPU packages and their DRAM.

Only zones named ``package-*`` and ``dram`` are counted, by reading each zone's ``name``: ``core`` and ``uncore``
lie inside the package, and ``psys`` (the whole platform) contains it. The memory-mapped interface
(``intel-rapl-mmio``) shows the same package a second time. Source: Linux, Documentation/power/powercap.
"""

import re
from collections.abc import Callable
from pathlib import Path

from metering.counters.counter import Counter, CounterFacts, Reading, timely
from metering.errors import CounterLost, CounterPermissionDenied, CounterUnavailable

_ZONE = re.compile(r"intel-rapl(?P<mmio>-mmio)?:\d+(?::\d+)?")
_PERIOD_NS = 1_000_000
_ERROR_PERCENT = 5.0
# No socket on sale and no socket's memory draws more. Zones publish the limits that are set, not what is possible.
_MAXIMUM_PACKAGE_MILLIWATTS = 1_000_000
_MAXIMUM_DRAM_MILLIWATTS = 300_000


def _read_text(path: Path) -> str:
    return path.read_text(encoding="ascii")


def rapl_counters(
    root: Path,
    *,
    monotonic_ns: Callable[[], int],
    read_text: Callable[[Path], str] = _read_text,
) -> tuple[Counter, ...]:
    """One counter per package and per DRAM zone under ``root`` (``/sys/class/powercap`` on a real machine).

    Raises:
        CounterPermissionDenied: the zones are there but this user may not read their energy.
        CounterUnavailable: there are no package zones.
    """
    zones = _zones(root, read_text)
    counters: dict[str, Counter] = {}
    for zone, name in zones:
        device_id, scope, maximum_milliwatts = _placed(zone, name, dict(zones))
        if device_id not in counters:
            counters[device_id] = _counter(zone, device_id, scope, maximum_milliwatts, monotonic_ns, read_text)
    if not any(counter.facts.scope == "cpu-package" for counter in counters.values()):
        raise CounterUnavailable(f"no RAPL package zone under {root}")
    return tuple(counters.values())


class RaplCounter:
    """One zone's ``energy_uj``, which wraps at ``max_energy_range_uj``."""

    def __init__(
        self,
        energy_file: Path,
        facts: CounterFacts,
        *,
        monotonic_ns: Callable[[], int],
        read_text: Callable[[Path], str] = _read_text,
    ) -> None:
        self._energy_file = energy_file
        self._facts = facts
        self._monotonic_ns = monotonic_ns
        self._read_text = read_text

    @property
    def facts(self) -> CounterFacts:
        """What holds for this zone."""
        return self._facts

    def read(self) -> Reading:
        """The zone's energy since some time past.

        Raises:
            CounterLost: the file is gone, denied or not a number.
        """
        try:
            return timely(lambda: int(self._read_text(self._energy_file)), self._monotonic_ns)
        except (OSError, ValueError) as wrong:
            raise CounterLost(f"{self._facts.device_id}: {wrong}") from wrong


def _zones(root: Path, read_text: Callable[[Path], str]) -> list[tuple[Path, str]]:
    """The countable zones and their names; memory-mapped ones last, because they only repeat others."""
    try:
        matches = [(match, path) for path in root.iterdir() if (match := _ZONE.fullmatch(path.name))]
        paths = [path for _, path in sorted(matches, key=lambda zone: (bool(zone[0]["mmio"]), zone[1].name))]
        named = [(path, read_text(path / "name").strip()) for path in paths]
    except FileNotFoundError as missing:
        raise CounterUnavailable(f"no powercap tree at {root}") from missing
    except PermissionError as denied:
        raise CounterPermissionDenied(_how_to_grant(root)) from denied
    except OSError as wrong:
        raise CounterUnavailable(f"powercap tree at {root}: {wrong}") from wrong
    return [(path, name) for path, name in named if name.startswith("package-") or name == "dram"]


def _placed(zone: Path, name: str, names: dict[Path, str]) -> tuple[str, str, int]:
    """Device id, scope and highest power. A DRAM zone is named after the package zone that it hangs under."""
    if name != "dram":
        return f"cpu-{name}", "cpu-package", _MAXIMUM_PACKAGE_MILLIWATTS
    package = names.get(zone.with_name(zone.name.rpartition(":")[0]), f"zone-{zone.name}")
    return f"dram-{package.removeprefix('package-')}", "dram", _MAXIMUM_DRAM_MILLIWATTS


def _counter(
    zone: Path,
    device_id: str,
    scope: str,
    maximum_milliwatts: int,
    monotonic_ns: Callable[[], int],
    read_text: Callable[[Path], str],
) -> RaplCounter:
    """The zone's counter, tried once.

    Raises:
        CounterPermissionDenied: its energy may not be read.
        CounterUnavailable: it has no energy or no range.
    """
    energy_file = zone / "energy_uj"
    try:
        int(read_text(energy_file))
        wrap = int(read_text(zone / "max_energy_range_uj"))
    except PermissionError as denied:
        raise CounterPermissionDenied(_how_to_grant(energy_file)) from denied
    except (OSError, ValueError) as wrong:
        raise CounterUnavailable(f"RAPL zone {zone}: {wrong}") from wrong
    if wrap <= 0:
        raise CounterUnavailable(f"RAPL zone {zone} states no energy range")
    facts = CounterFacts(
        device_id=device_id,
        method="rapl",
        scope=scope,
        period_ns=_PERIOD_NS,
        wrap_microjoules=wrap,
        maximum_power_milliwatts=maximum_milliwatts,
        error_percent=_ERROR_PERCENT,
        best_confidence="measured-apportioned",
        closes_at_will=True,
    )
    return RaplCounter(energy_file, facts, monotonic_ns=monotonic_ns, read_text=read_text)


def _how_to_grant(path: Path) -> str:
    return (
        f"{path} is readable by root only (Linux closed it against the PLATYPUS side channel). To meter with RAPL, run "
        "`chgrp GROUP /sys/class/powercap/*/energy_uj && chmod g+r /sys/class/powercap/*/energy_uj` as root at every "
        "boot, with a group of the meter's user, or run the meter with CAP_DAC_READ_SEARCH"
    )
