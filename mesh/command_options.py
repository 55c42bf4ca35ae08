"""Options that several commands of `jc` have: which mesh is meant, on this machine or over HTTP, and as whom."""

import os
import shlex
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from mesh.client import MeshClient
from mesh.settings import load_settings

_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_settings(command: _Command) -> _Command:
    """Options that say which mesh is meant; the command gets ``settings``."""

    @click.option("--config", type=click.Path(path_type=Path), envvar="JC_CONFIG", help="Settings; else ./mesh.yaml.")
    @click.option("--port", type=click.IntRange(1, 65535), envvar="JC_PORT", help="The ingress's port.")
    @click.option("--data-dir", type=click.Path(path_type=Path), envvar="JC_DATA_DIR", help="Where it keeps its data.")
    @wraps(command)
    def wrapped(config: Path | None, port: int | None, data_dir: Path | None, **arguments: object) -> object:
        return command(settings=load_settings(config, port=port, data_dir=data_dir), **arguments)

    return wrapped  # type: ignore[return-value]


def for_this_mesh(command: str) -> str:
    """The command, with the options by which the one that runs was told which mesh is meant (`with_settings`)."""
    given = click.get_current_context().params
    options = (("--config", given["config"]), ("--data-dir", given["data_dir"]))
    return " ".join([command, *(f"{name} {shlex.quote(str(value))}" for name, value in options if value is not None)])


def with_client(command: _Command) -> _Command:
    """Options that say which mesh to ask and as whom; the command gets ``client``."""

    @click.option("--url", envvar="JC_URL", help="The mesh; else http://127.0.0.1 at JC_PORT or 8000.")
    @click.option("--api-key", envvar="JC_API_KEY", help="Your key; better given in JC_API_KEY than typed.")
    @wraps(command)
    def wrapped(url: str | None, api_key: str | None, **arguments: object) -> object:
        here = f"http://127.0.0.1:{os.environ.get('JC_PORT', '8000')}"
        return command(client=MeshClient(url or here, api_key), **arguments)

    return wrapped  # type: ignore[return-value]
