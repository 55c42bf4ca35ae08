"""The engine's own reason when it could not start, read from what its processes wrote."""

import re
from collections.abc import Iterable
from pathlib import Path

_TAIL_BYTES = 200_000
# The last line of a Python traceback, with or without vLLM's "(EngineCore pid=7) ERROR 11-21 09:40:07 [core.py:1] ".
_ERROR = re.compile(
    r"(?:^|\] |\) )((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Refused|Unavailable|Failed): .+)$"
)
# vLLM's parent process says no more than this; the reason is what its child said before.
_PYDANTIC_LINES = 2  # pydantic names the field and the fault on the lines after
_NOT_A_REASON = ("Engine core initialization failed", "WorkerProc initialization failed")


def last_reason(lines: Iterable[str]) -> str | None:
    """The last error that says something, or None."""
    found: str | None = None
    goes_on = 0
    for line in lines:
        match = _ERROR.search(line.rstrip())
        if match and not any(each in line for each in _NOT_A_REASON):
            found, goes_on = match.group(1), _PYDANTIC_LINES if "validation error" in line else 0
        elif found is not None and goes_on and line.startswith(" "):
            found, goes_on = f"{found} {line.strip()}", goes_on - 1
    return None if found is None else found.partition(" [type=")[0]


def last_reason_in(logs: Path) -> str | None:
    """The reason in the worker log of ``logs`` that was written last and has one."""
    for file in sorted(logs.glob("worker-*.err"), key=lambda path: path.stat().st_mtime, reverse=True):
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            reason = last_reason(stream.read().decode(errors="replace").splitlines())
        if reason is not None:
            return reason
    return None
