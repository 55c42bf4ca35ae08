"""The mesh against vLLM's own server: the same engine settings, in turn, in one run.

Streams at 1 and 8 at a time. Prompts differ, so that no prefix cache helps. Printed are the medians over the rounds:
tokens per second over all streams, and milliseconds to the first token.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.running_mesh import running_mesh
from mesh.pool_setup import vllm_engine
from mesh.settings import load_settings
from serve.weights import prepare

_ROUNDS = 3
_STREAMS_EACH = {1: 4, 8: 16}
_OUTPUT_TOKENS = 64
_MESH_PORT, _VLLM_PORT = 18471, 18472
_START_DEADLINE_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    name: str
    url: str
    key: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    tokens_per_s: float
    first_token_ms: float


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        _vllm_server() as vllm,
        running_mesh(Path(folder), _MESH_PORT) as running,
    ):
        mesh = Target(name="mesh", url=running.url, key=running.key, model="auto")
        results = asyncio.run(_measure((vllm, mesh)))
    print(f"{'streams':>7}  {'':12}{'tokens/s':>10}{'first token ms':>16}")
    for streams in _STREAMS_EACH:
        rows = {target.name: _median(results[target.name, streams]) for target in (vllm, mesh)}
        for name, row in rows.items():
            print(f"{streams:>7}  {name:12}{row.tokens_per_s:>10.1f}{row.first_token_ms:>16.1f}")
        speed = rows["mesh"].tokens_per_s / rows["vllm"].tokens_per_s
        added = rows["mesh"].first_token_ms - rows["vllm"].first_token_ms
        print(f"{streams:>7}  {'mesh/vllm':12}{speed:>10.3f}{added:>+16.1f}")


async def _measure(targets: tuple[Target, ...]) -> dict[tuple[str, int], list[Measured]]:
    results: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    async with httpx.AsyncClient(timeout=300) as client:
        for target in targets:
            await _run(client, target, 2, 4, salt=f"warm-up {target.name}")
        for turn in range(_ROUNDS):
            for streams, count in _STREAMS_EACH.items():
                # The order alternates, so that neither always runs on the warmer machine.
                for target in targets if turn % 2 else reversed(targets):
                    salt = f"{turn} {streams} {target.name}"
                    results[target.name, streams].append(await _run(client, target, streams, count, salt=salt))
    return results


async def _run(client: httpx.AsyncClient, target: Target, streams: int, count: int, *, salt: str) -> Measured:
    waiting = iter(range(count))
    firsts: list[float] = []
    tokens = 0

    async def worker() -> None:
        nonlocal tokens
        for index in waiting:
            first, produced = await _stream(client, target, f"Tell a long story about the number {index} ({salt}).")
            firsts.append(first)
            tokens += produced

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(streams)))
    elapsed = time.perf_counter() - began
    return Measured(tokens_per_s=tokens / elapsed, first_token_ms=statistics.median(firsts) * 1000)


async def _stream(client: httpx.AsyncClient, target: Target, prompt: str) -> tuple[float, int]:
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _OUTPUT_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    began = time.perf_counter()
    first, tokens = 0.0, 0
    headers = {"Authorization": f"Bearer {target.key}"}
    async with client.stream("POST", f"{target.url}/v1/chat/completions", json=body, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and not first:
                first = time.perf_counter() - began
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return first, tokens


def _median(rows: list[Measured]) -> Measured:
    return Measured(
        tokens_per_s=statistics.median(row.tokens_per_s for row in rows),
        first_token_ms=statistics.median(row.first_token_ms for row in rows),
    )


@contextmanager
def _vllm_server() -> Iterator[Target]:
    settings = load_settings(None, port=None, data_dir=None)
    pool = settings.pools[0]
    engine = vllm_engine(pool, settings)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1", f"--port={_VLLM_PORT}"),
        "--disable-uvicorn-access-log",
        *engine.command_line(prepare(engine.weights, settings.mesh.cache_dir)),
    ]
    # Both engines compute with as many threads.
    threads = str(engine.threads or os.cpu_count() or 1)
    environment = {**os.environ, **settings.model(pool.model).environment, "OMP_NUM_THREADS": threads}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{_VLLM_PORT}"
        _wait_for(f"{url}/health", server)
        yield Target(name="vllm", url=url, key="none", model=pool.model)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    sys.exit(f"{url} did not come up (exit code {process.returncode})")
