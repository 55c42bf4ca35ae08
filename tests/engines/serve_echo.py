"""A mesh whose pools run the echo engine: `python serve_echo.py DATA_DIR PORT`, until SIGTERM.

Prints the API key of the first start, a key for each account it was asked for, then ``ready``. ``JC_CONFIG`` names
other settings than the built-in ones.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import echo
import echo_script
import echo_shapes
from recording_signer import RecordingSigner
from rich.console import Console

from mesh.app import start_mesh
from mesh.errors import MeshError
from mesh.nodes_file import load_nodes
from mesh.placement_setup import node_catalogue
from mesh.progress import Progress
from mesh.settings import PoolSettings, Settings, load_settings
from receipts.signer import Signer


def main() -> None:
    arguments = _arguments()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def engine(pool: PoolSettings, _settings: Settings) -> echo.EchoSpec:
        import ray

        # The workers can't import this folder: the engine's code travels to them.
        for module in (echo, echo_script, echo_shapes):
            ray.cloudpickle.register_pickle_by_value(module)
        return echo.EchoSpec(model_name=pool.model, fail_with=arguments.fail_with)

    config = os.environ.get("JC_CONFIG")
    settings = _able(load_settings(Path(config) if config else None, port=arguments.port, data_dir=arguments.data_dir))
    try:
        progress = Progress(Console(stderr=True))
        signer_type = RecordingSigner if arguments.record_nonces else Signer
        nodes = load_nodes(arguments.nodes, node_catalogue(settings)) if arguments.nodes else None
        with start_mesh(settings, progress, stop, engine=engine, signer_type=signer_type, nodes_file=nodes) as running:
            running.announce_ready()
            print(running.first_key or running.operator_key, flush=True)
            for account in arguments.account:
                print(_new_key(running.state.namespace, account), flush=True)
            print("ready", flush=True)
            stop.wait()
    except MeshError as error:
        sys.exit(str(error))


def _able(settings: Settings) -> Settings:
    """The test engine calls tools and takes images, whatever the model in whose place it stands can do."""
    able = tuple(
        model.model_copy(update={"features": model.features | {"tools", "images"}})
        if model.task == "generate"
        else model
        for model in settings.models
    )
    return settings.model_copy(update={"models": able})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--fail-with", help="the engine does not start, for this reason")
    parser.add_argument("--account", action="append", default=[], help="print a key for it; may be repeated")
    parser.add_argument("--record-nonces", action="store_true", help="the signers write down what they release")
    parser.add_argument("--nodes", type=Path, help="the file of the Ray nodes to start on this machine")
    return parser.parse_args()


def _new_key(namespace: str, account: str) -> str:
    import ray

    from receipts.ledger_actor import ledger_of

    return str(ray.get(ledger_of(namespace).create_key.remote(account, "test")).secret)


if __name__ == "__main__":
    main()
