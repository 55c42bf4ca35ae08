"""One real mesh for the whole session: Ray Serve, vLLM, a real model. Its engine starts once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running_echo import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    url: str
    key: str
    data_dir: Path
    printed: str

    def jc(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        ours = {"JC_URL": self.url, "JC_API_KEY": self.key, "JC_DATA_DIR": str(self.data_dir)}
        return run_jc(*arguments, **{**ours, **environment})

    @property
    def state(self) -> dict:
        return json.loads((self.data_dir / "run.json").read_text())


def run_jc(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mesh.command", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    data_dir = tmp_path_factory.mktemp("mesh")
    port = free_port()
    where = {"JC_DATA_DIR": str(data_dir), "JC_PORT": str(port)}
    started = run_jc("up", "--detach", **where)
    assert started.returncode == 0, f"{started.stdout}\n{started.stderr}"
    key = next(word for word in started.stdout.split() if word.startswith("jc_LIVE_"))
    try:
        yield Mesh(url=f"http://127.0.0.1:{port}", key=key, data_dir=data_dir, printed=started.stdout)
    finally:
        stopped = run_jc("down", **where)
        assert stopped.returncode == 0, stopped.stderr
