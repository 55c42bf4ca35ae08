"""Ten minutes at twice what the mesh can do: what is refused and how, how long the others wait, and the memory.

A stub engine takes half a second for each answer and gives eight at once, so that 16 a second is the capacity; 32 come.
Memory is what all of the mesh's processes have resident, after the first quarter and at the end: the queues are
bounded, so it must not grow with the time. `python -m benchmarks.overload SECONDS` takes another time.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.running_mesh import fast_settings
from benchmarks.stub_mesh import running_stub_mesh

_SECONDS = 600
_PORT = 18485
_AT_ONCE = 8
_ANSWER_S = 0.5
_PER_S = 2 * _AT_ONCE / _ANSWER_S
_LOOK_EVERY_S = 1.0
_ANSWERS_WITHIN_S = 120
_BODY = {"model": "auto", "messages": [{"role": "user", "content": "Say a token."}], "max_tokens": 64}


@dataclass(slots=True)
class Seen:
    """What came of the requests, by status or by what was raised in place of an answer, and the memory over time."""

    outcomes: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    waited_s: list[float] = field(default_factory=list)
    resident_mib: list[float] = field(default_factory=list)

    def resident_mib_at(self, share: float) -> float:
        """The memory after this share of the time, above 0 to 1."""
        return self.resident_mib[round(share * len(self.resident_mib)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overloaded:
    """A mesh, the root of its processes, and a key."""

    url: str
    pid: int
    key: str


def main() -> None:
    seconds = float(sys.argv[1]) if __name__ == "__main__" and sys.argv[1:] else _SECONDS
    with tempfile.TemporaryDirectory() as folder:
        config = fast_settings(Path(folder), port=_PORT)
        settings = yaml.safe_load(config.read_text())
        for pool in settings["pools"]:
            pool["max_ongoing_requests"] = _AT_ONCE
        config.write_text(yaml.safe_dump(settings))
        with running_stub_mesh(config, answer_s=_ANSWER_S) as stub:
            mesh = Overloaded(url=f"http://127.0.0.1:{_PORT}", pid=stub.pid, key=stub.key)
            seen = asyncio.run(overload(mesh, _BODY, per_s=_PER_S, seconds=seconds))
    print(f"{_PER_S:.0f} requests/s offered for {seconds:.0f} s")
    for outcome, count in sorted(seen.outcomes.items()):
        print(f"  {outcome}: {count}, {count / seconds:.1f}/s")
    print(f"  refused without Retry-After: {seen.without_retry_after}")
    if waited := sorted(seen.waited_s):
        print(f"  answered after: p50 {waited[len(waited) // 2]:.1f} s, p99 {waited[len(waited) * 99 // 100]:.1f} s")
    quarter, end = seen.resident_mib_at(0.25), seen.resident_mib_at(1)
    print(f"  memory: {quarter:.0f} MiB after a quarter of the time, {end:.0f} MiB at the end")


async def overload(mesh: Overloaded, body: Mapping[str, Any], *, per_s: float, seconds: float) -> Seen:
    """Send so many requests a second, however many are under way, and wait for the answers."""
    seen = Seen()
    # Kept for less than the server keeps them: one that it closes at that moment would be a lost answer.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=1)
    headers = {"Authorization": f"Bearer {mesh.key}"}
    async with (
        httpx.AsyncClient(base_url=mesh.url, timeout=_ANSWERS_WITHIN_S, limits=limits, headers=headers) as client,
        asyncio.TaskGroup() as under_way,
    ):
        began, looked = time.monotonic(), 0.0
        for index in range(round(seconds * per_s)):
            await asyncio.sleep(max(0.0, began + index / per_s - time.monotonic()))
            under_way.create_task(_ask(client, body, seen))
            if time.monotonic() - looked > _LOOK_EVERY_S:
                looked = time.monotonic()
                seen.resident_mib.append(await asyncio.to_thread(_resident_mib, mesh.pid))
    return seen


async def _ask(client: httpx.AsyncClient, body: Mapping[str, Any], seen: Seen) -> None:
    began = time.monotonic()
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.TransportError as lost:
        seen.outcomes[type(lost).__name__] += 1
        return
    seen.outcomes[str(answer.status_code)] += 1
    if answer.is_success:
        seen.waited_s.append(time.monotonic() - began)
    elif "Retry-After" not in answer.headers:
        seen.without_retry_after += 1


def _resident_mib(pid: int) -> float:
    """Of a process and all of its descendants."""
    root = psutil.Process(pid)
    found = 0
    for process in (root, *root.children(recursive=True)):
        try:
            found += process.memory_info().rss
        except psutil.NoSuchProcess:  # it has ended meanwhile
            continue
    return found / 2**20


if __name__ == "__main__":
    main()
