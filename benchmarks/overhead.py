"""The mesh's own cost: an engine with zero model time behind it, beside others in front of the same answers.

Measured in turn in one run, the median of the rounds: the stub straight; the mesh on the fast path, with its durable
commit for each answer; a plain Ray Serve application; a LiteLLM proxy (where `make bench` has installed it). What each
adds to the stub straight is its overhead.
"""

import asyncio
import secrets
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.http_load import Load, Target, run_load
from benchmarks.running_mesh import fast_settings
from benchmarks.server_process import running_server
from benchmarks.stub import TOKENS
from benchmarks.stub_mesh import running_stub_mesh

_ROUNDS = 3
_UNARY_EACH = {1: 100, 8: 400, 32: 800}
_STREAMS_EACH = {1: 20, 8: 64, 32: 128}
_STUB_PORT, _MESH_PORT, _SERVE_PORT, _LITELLM_PORT = 18481, 18482, 18483, 18484
_MODEL = "stub"
_UNARY = {"messages": [{"role": "user", "content": "Say a token."}], "max_tokens": TOKENS}
_STREAM = {**_UNARY, "stream": True, "stream_options": {"include_usage": True}}
_LITELLM = Path(sys.prefix) / "peers" / "bin" / "litellm"


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
        await run_load(target, [target.chat(_UNARY)] * 100, 8)
        await run_load(target, [target.chat(_STREAM)] * 20, 8)
    for turn in range(_ROUNDS):
        for at_once, count in _UNARY_EACH.items():
            for target in targets if turn % 2 else reversed(targets):
                unary[target.name, at_once].append(await run_load(target, [target.chat(_UNARY)] * count, at_once))
                asked = [target.chat(_STREAM)] * _STREAMS_EACH[at_once]
                streams[target.name, at_once].append(await run_load(target, asked, at_once))
    return unary, streams


@contextmanager
def _stub() -> Iterator[Target]:
    with running_server([sys.executable, "-m", "benchmarks.stub", str(_STUB_PORT)]) as server:
        target = Target(name="stub straight", url=f"http://127.0.0.1:{_STUB_PORT}", key="none", model=_MODEL)
        server.wait_for(target.url)
        yield target


@contextmanager
def _mesh(folder: Path) -> Iterator[Target]:
    with running_stub_mesh(fast_settings(folder, port=_MESH_PORT)) as mesh:
        yield Target(name="mesh", url=f"http://127.0.0.1:{_MESH_PORT}", key=mesh.key, model="auto")


@contextmanager
def _ray_serve() -> Iterator[Target]:
    # As the mesh has it: Ray would listen on every address of the machine.
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with running_server([sys.executable, "-m", "benchmarks.peer_ray_serve", str(_SERVE_PORT)], environment) as server:
        server.hear("ready")
        yield Target(name="plain Ray Serve", url=f"http://127.0.0.1:{_SERVE_PORT}", key="none", model=_MODEL)


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
    with running_server([*command, "--num_workers", "1"], environment) as server:
        target = Target(name="LiteLLM proxy", url=f"http://127.0.0.1:{_LITELLM_PORT}", key=key, model=_MODEL)
        server.wait_for(f"{target.url}/health/liveliness")
        yield target


if __name__ == "__main__":
    main()
