"""A mesh with the real engine in processes of its own, started and stopped as an operator does it."""

import importlib.resources
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from mesh.app import OPERATOR_ACCOUNT


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshUnderTest:
    """Where it answers, and two keys: a customer's and the operator's."""

    url: str
    key: str
    operator_key: str
    data_dir: Path


def fast_settings(folder: Path, *, port: int) -> Path:
    """The built-in settings on the fast path, with everything that the mesh keeps in ``folder``; a file there."""
    settings = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    settings["mesh"] |= {"fast_path": True, "port": port, "data_dir": str(folder / "mesh")}
    file = folder / "mesh.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@contextmanager
def running_mesh(
    folder: Path, port: int, *, config: Path | None = None, nodes: Path | None = None
) -> Iterator[MeshUnderTest]:
    """Start a mesh on ``folder``, with the built-in settings unless ``config`` names others, and stop it.

    ``nodes`` as `jc up --nodes`.
    """
    where = ["--port", str(port), "--data-dir", str(folder)]
    if config is not None:
        where += ["--config", str(config)]
    started = _jc("up", "--detach", *where, *(["--nodes", str(nodes)] if nodes else []))
    if started.returncode:
        sys.exit(f"the mesh did not start:\n{started.stdout}{started.stderr}")
    try:
        yield MeshUnderTest(
            url=f"http://127.0.0.1:{port}",
            key=next(word for word in started.stdout.split() if word.startswith("jc_LIVE_")),
            operator_key=_jc("keys", "new", "--account", OPERATOR_ACCOUNT, *where).stdout.strip(),
            data_dir=folder,
        )
    finally:
        stopped = _jc("down", *where)
        if stopped.returncode:
            sys.exit(f"the mesh did not stop:\n{stopped.stdout}{stopped.stderr}")


def _jc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mesh.command", *arguments], capture_output=True, text=True, check=False
    )
