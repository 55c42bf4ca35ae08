"""The mesh against vLLM's own server: the same engine settings, in turn, in one run.

Streams at 1, 8, 16 and 32 at a time, the mesh on the fast path. Prompts differ, so that no prefix cache helps. Printed
are the medians over the rounds: tokens per second over all streams, milliseconds to the first token and between two.
"""

import asyncio
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.http_load import Load, Target, run_load
from benchmarks.running_mesh import fast_settings, running_mesh
from benchmarks.server_process import running_server
from mesh.pool_setup import vllm_engine
from mesh.settings import load_settings
from serve.weights import prepare

_ROUNDS = 3
_STREAMS_EACH = {1: 4, 8: 16, 16: 32, 32: 64}
_OUTPUT_TOKENS = 64
_MESH_PORT, _VLLM_PORT = 18471, 18472


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = fast_settings(Path(folder), port=_MESH_PORT)
        with _vllm_server() as vllm, running_mesh(Path(folder) / "mesh", _MESH_PORT, config=config) as running:
            # Named, not `auto`: both serve the same model, and the mesh may have others.
            mesh = Target(name="mesh", url=running.url, key=running.key, model=vllm.model)
            results = asyncio.run(_measure((vllm, mesh)))
    print(f"{'streams':>7}  {'':12}{'tokens/s':>10}{'first token ms':>16}{'token ms':>10}")
    for streams in _STREAMS_EACH:
        rows = {target.name: _Row.of(results[target.name, streams]) for target in (vllm, mesh)}
        for name, row in rows.items():
            print(f"{streams:>7}  {name:12}{row.tokens_per_s:>10.1f}{row.first_token_ms:>16.1f}{row.token_ms:>10.2f}")
        speed = rows["mesh"].tokens_per_s / rows["vllm"].tokens_per_s
        first = rows["mesh"].first_token_ms - rows["vllm"].first_token_ms
        each = rows["mesh"].token_ms - rows["vllm"].token_ms
        print(f"{streams:>7}  {'mesh/vllm':12}{speed:>10.3f}{first:>+16.1f}{each:>+10.2f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """The medians over the rounds."""

    tokens_per_s: float
    first_token_ms: float
    token_ms: float

    @classmethod
    def of(cls, loads: Sequence[Load]) -> "_Row":
        """Of one target's rounds."""
        return cls(
            tokens_per_s=statistics.median(load.tokens_per_s for load in loads),
            first_token_ms=statistics.median(load.first_content_ms for load in loads),
            token_ms=statistics.median(load.per_event_ms for load in loads),
        )


async def _measure(targets: tuple[Target, ...]) -> dict[tuple[str, int], list[Load]]:
    results: dict[tuple[str, int], list[Load]] = defaultdict(list)
    for target in targets:
        await _run(target, 2, 4, salt=f"warm-up {target.name}")
    for turn in range(_ROUNDS):
        for streams, count in _STREAMS_EACH.items():
            # The order alternates, so that neither always runs on the warmer machine.
            for target in targets if turn % 2 else reversed(targets):
                load = await _run(target, streams, count, salt=f"{turn} {streams} {target.name}")
                results[target.name, streams].append(load)
    return results


async def _run(target: Target, streams: int, count: int, *, salt: str) -> Load:
    prompts = [f"Tell a long story about the number {index} ({salt})." for index in range(count)]
    return await run_load(target, [target.chat(_body(prompt)) for prompt in prompts], streams)


def _body(prompt: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": _OUTPUT_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


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
    environment = {**settings.model(pool.model).environment, "OMP_NUM_THREADS": threads}
    with running_server(command, environment) as server:
        url = f"http://127.0.0.1:{_VLLM_PORT}"
        server.wait_for(f"{url}/health")
        yield Target(name="vllm", url=url, key="none", model=pool.model)
