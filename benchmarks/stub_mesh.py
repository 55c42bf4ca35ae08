"""A mesh whose pools run the stub engine: `python -m benchmarks.stub_mesh CONFIG [SECONDS]`, until SIGTERM.

Prints an API key when it answers.
"""

import signal
import sys
import threading
from pathlib import Path

from rich.console import Console

from benchmarks.stub import StubSpec
from mesh.app import start_mesh
from mesh.progress import Progress
from mesh.settings import PoolSettings, Settings, load_settings


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    seconds = float(sys.argv[2]) if sys.argv[2:] else 0.0
    settings = load_settings(Path(sys.argv[1]), port=None, data_dir=None)

    def engine(pool: PoolSettings, _settings: Settings) -> StubSpec:
        return StubSpec(model_name=pool.model, seconds=seconds)

    with start_mesh(settings, Progress(Console(stderr=True)), stop, engine=engine) as running:
        print(running.first_key, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
