"""Ten minutes at twice what the mesh can do: what is refused and how, how long the others wait, and the memory.

A stub engine takes half a second for each answer and gives eight at once, so that 16 a second is the capacity; 32 come.
Memory is what all of the mesh's processes have resident, after the first quarter and at the end: the queues are
bounded, so it must not grow with the time.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml

from benchmarks.overhead import mesh_process
from benchmarks.running_mesh import fast_settings
from metering.process_tree import ProcessTrees

_SECONDS = 600
_PORT = 18485
_AT_ONCE = 8
_ANSWER_S = 0.5
_OFFERED_PER_S = 2 * _AT_ONCE / _ANSWER_S
_LOOK_EVERY_S = 5.0
_PAGE_MIB = 4096 / 2**20
_BODY = {"model": "auto", "messages": [{"role": "user", "content": "Say a token."}], "max_tokens": 64}


@dataclass(slots=True)
class Seen:
    """What came of the requests, and the memory over time."""

    statuses: Counter[int] = field(default_factory=Counter)
    without_retry_after: int = 0
    waited_s: list[float] = field(default_factory=list)
    resident_mib: list[float] = field(default_factory=list)


def main() -> None:
    seconds = float(sys.argv[1]) if __name__ == "__main__" and sys.argv[1:] else _SECONDS
    with tempfile.TemporaryDirectory() as folder:
        config = fast_settings(Path(folder), port=_PORT)
        settings = yaml.safe_load(config.read_text())
        for pool in settings["pools"]:
            pool["max_ongoing_requests"] = _AT_ONCE
        config.write_text(yaml.safe_dump(settings))
        with mesh_process(config, str(_ANSWER_S)) as (process, key):
            trees = ProcessTrees(Path("/proc"), monotonic_ns=time.monotonic_ns)
            trees.add("mesh", process.pid)
            seen = asyncio.run(_overload(f"http://127.0.0.1:{_PORT}", key, trees, seconds))
    _show(seen, seconds)


def _show(seen: Seen, seconds: float) -> None:
    waited = sorted(seen.waited_s)
    quarter, end = seen.resident_mib[len(seen.resident_mib) // 4], seen.resident_mib[-1]
    print(f"{_OFFERED_PER_S:.0f} requests/s offered for {seconds:.0f} s")
    for status, count in sorted(seen.statuses.items()):
        print(f"  {status}: {count}, {count / seconds:.1f}/s")
    print(f"  refused without Retry-After: {seen.without_retry_after}")
    print(f"  answered after: p50 {waited[len(waited) // 2]:.1f} s, p99 {waited[len(waited) * 99 // 100]:.1f} s")
    print(f"  memory: {quarter:.0f} MiB after a quarter of the time, {end:.0f} MiB at the end")


async def _overload(url: str, key: str, trees: ProcessTrees, seconds: float) -> Seen:
    seen = Seen()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=120, limits=limits, headers={"Authorization": f"Bearer {key}"}) as client:
        under_way: set[asyncio.Task[None]] = set()
        began, looked = time.monotonic(), 0.0
        for index in range(int(seconds * _OFFERED_PER_S)):
            await asyncio.sleep(max(0.0, began + index / _OFFERED_PER_S - time.monotonic()))
            task = asyncio.create_task(_ask(client, f"{url}/v1/chat/completions", seen))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if time.monotonic() - looked > _LOOK_EVERY_S:
                looked = time.monotonic()
                seen.resident_mib.append(_resident_mib(trees))
        await asyncio.gather(*under_way)
    return seen


async def _ask(client: httpx.AsyncClient, url: str, seen: Seen) -> None:
    began = time.monotonic()
    answer = await client.post(url, json=_BODY)
    seen.statuses[answer.status_code] += 1
    if answer.is_success:
        seen.waited_s.append(time.monotonic() - began)
    elif "Retry-After" not in answer.headers:
        seen.without_retry_after += 1


def _resident_mib(trees: ProcessTrees) -> float:
    trees.sample()
    return sum(_resident_pages(pid) for pid in trees.pids("mesh")) * _PAGE_MIB


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has ended meanwhile
        return 0


if __name__ == "__main__":
    main()
