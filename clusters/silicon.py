"""Which silicon this is, and what its vendor publishes about its power.

The catalogue is data (`silicon_catalogue.toml`): every figure carries its source. It answers one question
for metering, "how many watts does one busy hardware thread of this part draw", and one for plausibility,
"what is this GPU's rated power". A part that is not listed and belongs to no listed family has no answer:
the caller must say so instead of guessing.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
_NOISE = re.compile(
    r"\((?:R|TM|C)\)|\b\d+th Gen\b|\bw/.*|@.*|\b(?:CPU|Processor)\b|\b\d+-Core\b|\bEight-Core\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPart:
    """A published part: power and threads are those of one whole socket."""

    name: str
    tdp_milliwatts: int
    threads: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFamily:
    """What a masked model name is taken for; ``None`` family numbers match any."""

    name: str
    vendor: str
    name_contains: str
    family: int | None
    first_model: int
    last_model: int
    stands_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPart:
    """A published GPU by the name that NVML reports."""

    name: str
    tdp_milliwatts: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedCpu:
    """The host's processor as ``/proc/cpuinfo`` shows it; a virtual machine sees a slice of a socket.

    ``vendor`` is "amd", "intel" or "unknown"; ``model`` is the unaltered model name, or "unknown".
    ``threads`` counts the hardware threads that are visible, over all of ``packages``.
    """

    vendor: str
    model: str
    family_number: int | None
    model_number: int | None
    threads: int
    packages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadPower:
    """Watts of one busy hardware thread as a ratio: ``tdp_milliwatts`` shared by ``threads``.

    ``matched`` says what the model name was taken for, for receipts and operators; ``source`` who published it.
    """

    tdp_milliwatts: int
    threads: int
    matched: str
    source: str


class Catalogue:
    """Published power figures, looked up by what a machine says of itself."""

    def __init__(
        self,
        *,
        cpus: Mapping[str, CpuPart],
        families: tuple[CpuFamily, ...],
        gpus: Mapping[str, GpuPart],
    ) -> None:
        self._cpus = {_plain(name): part for name, part in cpus.items()}
        self._families = families
        self._gpus = gpus

    @classmethod
    def load(cls, path: Path | None = None) -> "Catalogue":
        """Read a catalogue file; without a path, the one that comes with this package.

        Raises:
            ValueError: the file is not a catalogue; the message names the entry.
        """
        text = (
            path.read_text(encoding="utf-8")
            if path is not None
            else (files("clusters") / "silicon_catalogue.toml").read_text(encoding="utf-8")
        )
        document = tomllib.loads(text)
        try:
            cpus = {entry["name"]: _cpu_part(entry) for entry in document.get("cpu", [])}
            families = tuple(_cpu_family(entry) for entry in document.get("cpu_family", []))
            gpus = {entry["name"]: _gpu_part(entry) for entry in document.get("gpu", [])}
        except KeyError as missing:
            raise ValueError(f"an entry of the silicon catalogue lacks {missing}") from missing
        for family in families:
            if family.stands_for not in cpus:
                raise ValueError(f"family {family.name!r} stands for {family.stands_for!r}, which is not listed")
        return cls(cpus=cpus, families=families, gpus=gpus)

    def thread_power(self, cpu: DetectedCpu) -> ThreadPower | None:
        """Power per busy thread of this processor; by its exact name, else by its family; else ``None``."""
        part = self._cpus.get(_plain(cpu.model))
        if part is not None:
            return _thread_power(part, part.name)
        for family in self._families:
            if _belongs(cpu, family):
                stand_in = self._cpus[_plain(family.stands_for)]
                return _thread_power(stand_in, f"{family.name}, taken as {stand_in.name}")
        return None

    def gpu(self, model: str) -> GpuPart | None:
        """The GPU with exactly this NVML name."""
        return self._gpus.get(model)


def detect_cpu(proc_root: Path) -> DetectedCpu:
    """Read the processor from ``cpuinfo`` under ``proc_root``; what it doesn't say is "unknown".

    Raises:
        OSError: there is no readable ``cpuinfo`` (not a Linux machine).
    """
    fields: dict[str, str] = {}
    packages: set[int] = set()
    threads = 0
    for line in (proc_root / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        fields.setdefault(name, value)
        threads += name == "processor"
        if name == "physical id" and value.isdigit():
            packages.add(int(value))
    return DetectedCpu(
        vendor=_VENDORS.get(fields.get("vendor_id", ""), "unknown"),
        model=fields.get("model name") or "unknown",
        family_number=_number(fields.get("cpu family")),
        model_number=_number(fields.get("model")),
        threads=max(1, threads),
        packages=tuple(sorted(packages)) or (0,),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _plain(model: str) -> str:
    """Strip what vendors and kernels wrap around the part's own name, so that spellings meet."""
    return " ".join(_NOISE.sub(" ", model).split()).casefold()


def _belongs(cpu: DetectedCpu, family: CpuFamily) -> bool:
    if cpu.vendor != family.vendor or family.name_contains.casefold() not in cpu.model.casefold():
        return False
    if family.family is None:
        return True
    return (
        cpu.family_number == family.family
        and cpu.model_number is not None
        and family.first_model <= cpu.model_number <= family.last_model
    )


def _thread_power(part: CpuPart, matched: str) -> ThreadPower:
    return ThreadPower(tdp_milliwatts=part.tdp_milliwatts, threads=part.threads, matched=matched, source=part.source)


def _cpu_part(entry: Mapping[str, Any]) -> CpuPart:
    if entry["threads"] < 1:
        raise ValueError(f"{entry['name']!r} has no threads")
    return CpuPart(
        name=entry["name"],
        tdp_milliwatts=_milliwatts(entry),
        threads=entry["threads"],
        source=_source(entry),
    )


def _cpu_family(entry: Mapping[str, Any]) -> CpuFamily:
    first, last = entry.get("models", (0, 0))
    return CpuFamily(
        name=entry["name"],
        vendor=entry["vendor"],
        name_contains=entry["name_contains"],
        family=entry.get("family"),
        first_model=first,
        last_model=last,
        stands_for=entry["stands_for"],
    )


def _gpu_part(entry: Mapping[str, Any]) -> GpuPart:
    return GpuPart(name=entry["name"], tdp_milliwatts=_milliwatts(entry), source=_source(entry))


def _milliwatts(entry: Mapping[str, Any]) -> int:
    milliwatts = int(entry["tdp_watts"]) * 1000
    if milliwatts <= 0:
        raise ValueError(f"{entry['name']!r} has no power")
    return milliwatts


def _source(entry: Mapping[str, Any]) -> str:
    source: str = entry["source"]
    if not source:
        raise ValueError(f"{entry['name']!r} names no source")
    return source
