"""A mesh whose pools run the echo engine: `python serve_echo.py DATA_DIR PORT [FAIL_WITH]`, until SIGTERM.

Prints the API key of the first start, then ``ready``. ``JC_CONFIG`` names other settings than the built-in ones.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import echo
from rich.console import Console

from mesh.app import start_mesh
from mesh.errors import MeshError
from mesh.progress import Progress
from mesh.settings import PoolSettings, Settings, load_settings


def main() -> None:
    data_dir, port, *fail_with = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def engine(pool: PoolSettings, _settings: Settings) -> echo.EchoSpec:
        import ray

        # The workers can't import this folder: the engine's code travels to them.
        ray.cloudpickle.register_pickle_by_value(echo)
        return echo.EchoSpec(model_name=pool.model, fail_with=fail_with[0] if fail_with else None)

    config = os.environ.get("JC_CONFIG")
    settings = load_settings(Path(config) if config else None, port=int(port), data_dir=Path(data_dir))
    try:
        with start_mesh(settings, Progress(Console(stderr=True)), stop, engine=engine) as running:
            running.announce_ready()
            print(running.first_key or running.operator_key, flush=True)
            print("ready", flush=True)
            stop.wait()
    except MeshError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
