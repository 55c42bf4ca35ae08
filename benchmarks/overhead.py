"""The mesh's own cost: an engine with zero model time behind it, beside others in front of the same answers.

Measured in turn in one run, the median of the rounds: the stub straight; the mesh on the fast path, with its durable
commit for each answer; a plain Ray Serve application; a LiteLLM proxy (where `make bench` has installed it). What each
adds to the stub straight is its overhead.
"""

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from benchmarks.http_load import Load, post, run_load
from benchmarks.running_mesh import fast_settings

_ROUNDS = 3
_UNARY_EACH = {1: 100, 8: 400, 32: 800}
_STREAMS_EACH = {1: 20, 8: 64, 32: 128}
_STUB_PORT, _MESH_PORT, _SERVE_PORT, _LITELLM_PORT = 18481, 18482, 18483, 18484
_STARTS_WITHIN_S = 180
_STOPS_WITHIN_S = 90
_MODEL = "stub"
_LITELLM = Path(sys.prefix) / "peers" / "bin" / "litellm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is measured, and how it is asked."""

    name: str
    url: str
    key: str
    model: str = _MODEL


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        targets = [running.enter_context(_stub())]
        targets.append(running.enter_context(_mesh(Path(folder))))
        targets.append(running.enter_context(_ray_serve()))
        if _LITELLM.exists():
            targets.append(running.enter_context(_litellm(Path(folder))))
        else:
            print(f"(no LiteLLM proxy: {_LITELLM} is not there; `make bench` installs it)")
        unary, streams = asyncio.run(_measure(targets))
    print(f"{'at once':>7}  {'':18}{'unary ms':>10}{'per s':>9}{'first ms':>10}{'event ms':>10}")
    for at_once in _UNARY_EACH:
        straight = _Row.of(unary[targets[0].name, at_once], streams[targets[0].name, at_once])
        for target in targets:
            row = _Row.of(unary[target.name, at_once], streams[target.name, at_once])
            print(f"{at_once:>7}  {target.name:18}{row}")
            if target is not targets[0]:
                print(f"{at_once:>7}  {'  adds':18}{row.beyond(straight)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    unary_ms: float
    per_s: float
    first_ms: float
    event_ms: float

    @classmethod
    def of(cls, unary: Sequence[Load], streams: Sequence[Load]) -> "_Row":
        """The medians over the rounds."""
        return cls(
            unary_ms=statistics.median(each.whole_ms for each in unary),
            per_s=statistics.median(each.per_s for each in unary),
            first_ms=statistics.median(each.first_content_ms for each in streams),
            event_ms=statistics.median(each.per_event_ms for each in streams),
        )

    def __str__(self) -> str:
        return f"{self.unary_ms:>10.1f}{self.per_s:>9.0f}{self.first_ms:>10.1f}{self.event_ms:>10.3f}"

    def beyond(self, straight: "_Row") -> str:
        """What it adds to the other."""
        added = (self.unary_ms - straight.unary_ms, self.first_ms - straight.first_ms)
        return f"{added[0]:>+10.1f}{'':9}{added[1]:>+10.1f}{self.event_ms - straight.event_ms:>+10.3f}"


_Loads = dict[tuple[str, int], list[Load]]


async def _measure(targets: Sequence[Target]) -> tuple[_Loads, _Loads]:
    unary: _Loads = defaultdict(list)
    streams: _Loads = defaultdict(list)
    for target in targets:
        await run_load(target.url, _requests(target, 100, is_stream=False), 8)
        await run_load(target.url, _requests(target, 20, is_stream=True), 8)
    for turn in range(_ROUNDS):
        for at_once, count in _UNARY_EACH.items():
            for target in targets if turn % 2 else reversed(targets):
                asked = _requests(target, count, is_stream=False)
                unary[target.name, at_once].append(await run_load(target.url, asked, at_once))
                asked = _requests(target, _STREAMS_EACH[at_once], is_stream=True)
                streams[target.name, at_once].append(await run_load(target.url, asked, at_once))
    return unary, streams


def _requests(target: Target, count: int, *, is_stream: bool) -> list[bytes]:
    asked = {"model": target.model, "messages": [{"role": "user", "content": "Say a token."}], "max_tokens": 64}
    if is_stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return [post(target.url, "/v1/chat/completions", json.dumps(asked).encode(), target.key)] * count


@contextmanager
def _stub() -> Iterator[Target]:
    with _process([sys.executable, "-m", "benchmarks.stub", str(_STUB_PORT)]) as process:
        target = Target(name="stub straight", url=f"http://127.0.0.1:{_STUB_PORT}", key="none")
        _wait_for(target.url, process)
        yield target


@contextmanager
def _mesh(folder: Path) -> Iterator[Target]:
    with mesh_process(fast_settings(folder, port=_MESH_PORT)) as (_, key):
        yield Target(name="mesh", url=f"http://127.0.0.1:{_MESH_PORT}", key=key, model="auto")


@contextmanager
def mesh_process(config: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A mesh with stub engines (`benchmarks.stub_mesh`) that answers, and a key for it."""
    with _process([sys.executable, "-m", "benchmarks.stub_mesh", str(config), *arguments]) as process:
        assert process.stdout is not None, "its output is read"
        key = process.stdout.readline().strip()
        if not key:
            sys.exit("the mesh did not start")
        yield process, key


@contextmanager
def _ray_serve() -> Iterator[Target]:
    with _process([sys.executable, "-m", "benchmarks.peer_ray_serve", str(_SERVE_PORT)]) as process:
        assert process.stdout is not None, "its output is read"
        while (line := process.stdout.readline()) and line.strip() != "ready":
            pass
        yield Target(name="plain Ray Serve", url=f"http://127.0.0.1:{_SERVE_PORT}", key="none")


@contextmanager
def _litellm(folder: Path) -> Iterator[Target]:
    config = folder / "litellm.yaml"
    parameters = {"model": f"openai/{_MODEL}", "api_base": f"http://127.0.0.1:{_STUB_PORT}/v1", "api_key": "none"}
    config.write_text(yaml.safe_dump({"model_list": [{"model_name": _MODEL, "litellm_params": parameters}]}))
    command = [str(_LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(_LITELLM_PORT)]
    key = f"sk-{secrets.token_hex(32)}"  # without one it does not start
    environment = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
    }
    with _process([*command, "--num_workers", "1"], environment) as process:
        target = Target(name="LiteLLM proxy", url=f"http://127.0.0.1:{_LITELLM_PORT}", key=key)
        _wait_for(f"{target.url}/health/liveliness", process)
        yield target


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str] | None = None) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_STOPS_WITHIN_S)


def _wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    sys.exit(f"{url} did not come up (exit code {process.returncode})")


if __name__ == "__main__":
    main()
