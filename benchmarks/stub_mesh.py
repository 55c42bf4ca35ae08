"""A mesh whose pools run the stub engine: `python -m benchmarks.stub_mesh CONFIG SECONDS`, until SIGTERM.

Prints an API key when it answers.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.server_process import running_server
from benchmarks.stub import StubSpec
from mesh.app import start_mesh
from mesh.progress import Progress
from mesh.settings import PoolSettings, Settings, load_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class StubMesh:
    """One that answers: its process, the root of all others of it, and a key for it."""

    pid: int
    key: str


@contextmanager
def running_stub_mesh(config: Path, *, answer_s: float = 0.0) -> Iterator[StubMesh]:
    """Start a mesh with these settings, whose engines take ``answer_s`` for each answer, and stop it."""
    with running_server([sys.executable, "-m", "benchmarks.stub_mesh", str(config), str(answer_s)]) as server:
        yield StubMesh(pid=server.pid, key=server.hear("jc_LIVE_"))


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    config, seconds = Path(sys.argv[1]), float(sys.argv[2])
    settings = load_settings(config, port=None, data_dir=None)

    def engine(pool: PoolSettings, _settings: Settings) -> StubSpec:
        return StubSpec(model_name=pool.model, seconds=seconds)

    with start_mesh(settings, Progress(Console(stderr=True)), stop, engine=engine) as running:
        print(running.first_key, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
