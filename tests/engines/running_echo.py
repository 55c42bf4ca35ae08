"""A real local Ray with the whole mesh on it, and an engine that needs no model."""

import importlib.resources
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

METERED = " ".join(f"word{number}" for number in range(25))
"""What takes the test engine a tenth of a second of processor time: the counters of a machine without any of its own
move by ticks of 10 ms, and of a shorter answer a busy machine may see none.
"""

_SERVE_ECHO = Path(__file__).with_name("serve_echo.py")
# As `jc down` has it: Serve may take a minute to say that it has deleted what is gone.
_STOP_DEADLINE_S = 90
_FAILS_WITHIN_S = 180  # with nodes of its own, on a machine that runs other tests beside


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningMesh:
    """A mesh that answers, and keys of its accounts; ``key`` is its first one."""

    url: str
    key: str
    data_dir: Path
    account_keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def chat(self, text: str, **body: object) -> requests.Response:
        messages = [{"role": "user", "content": text}]
        return requests.post(
            f"{self.url}/v1/chat/completions",
            json={"model": "auto", "messages": messages, **body},
            headers=self.headers,
            stream=bool(body.get("stream")),
            timeout=60,
        )

    def receipt(self, receipt_id: str) -> dict:
        response = requests.get(f"{self.url}/v1/receipts/{receipt_id}", headers=self.headers, timeout=60)
        response.raise_for_status()
        return response.json()

    def wait_until(self, holds: Callable[[], bool], deadline_s: float = 30) -> bool:
        give_up = time.monotonic() + deadline_s
        while time.monotonic() < give_up:
            if holds():
                return True
            time.sleep(0.1)
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoMesh(RunningMesh):
    """One with the test engine, and the process that runs it."""

    process: "subprocess.Popen[str]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def built_in_settings() -> dict[str, Any]:
    """The settings of a mesh that is given none, to change for a test."""
    settings: dict[str, Any] = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
    return settings


def start_echo(
    data_dir: Path,
    port: int,
    fail_with: str | None = None,
    *,
    accounts: Sequence[str] = (),
    record_nonces: bool = False,
    nodes: Path | None = None,
    config: Path | None = None,
) -> "subprocess.Popen[str]":
    """A mesh in a process of its own; stderr is captured only when it is to fail."""
    command = [sys.executable, str(_SERVE_ECHO), str(data_dir), str(port)]
    command += [f"--account={account}" for account in accounts]
    command += ["--record-nonces"] if record_nonces else []
    command += [f"--nodes={nodes}"] if nodes else []
    # Ray's workers look here for the recording signer, and get what they start from by this process's environment.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_SERVE_ECHO.parent), *_python_path()])}
    if config is not None:
        environment["JC_CONFIG"] = str(config)
    if fail_with is not None:
        command += ["--fail-with", fail_with]
    stderr = None if fail_with is None else subprocess.PIPE
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)


def failed_start(data_dir: Path) -> str:
    """What a mesh says that cannot start on this folder."""
    return told_at_the_end(start_echo(data_dir, free_port(), fail_with="it was not to come so far"))


def told_at_the_end(process: "subprocess.Popen[str]") -> str:
    """What a mesh says that cannot start; it was started with ``fail_with``."""
    try:
        said, told = process.communicate(timeout=_FAILS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate(timeout=_STOP_DEADLINE_S)
        raise
    assert process.returncode == 1, f"it started: {said}"
    return told


def _python_path() -> list[str]:
    return [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


@contextmanager
def running_echo_mesh(
    data_dir: Path,
    *,
    accounts: Sequence[str] = (),
    record_nonces: bool = False,
    nodes: Path | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[EchoMesh]:
    """Start a mesh on the folder and stop it; it makes a key for each of ``accounts``. ``nodes`` as `jc up --nodes`.

    Without ``settings`` it has those that JC_CONFIG names, or the built-in ones. It may be killed before it is stopped.
    """
    port, config = free_port(), None
    if settings is not None:
        data_dir.mkdir(mode=0o700, exist_ok=True)
        config = data_dir / "mesh.yaml"
        config.write_text(yaml.safe_dump(settings))
    process = start_echo(data_dir, port, accounts=accounts, record_nonces=record_nonces, nodes=nodes, config=config)
    assert process.stdout is not None
    try:
        key = process.stdout.readline().strip()
        account_keys = {account: process.stdout.readline().strip() for account in accounts}
        assert process.stdout.readline() == "ready\n", "the mesh did not start; its reason is above"
        yield EchoMesh(
            url=f"http://127.0.0.1:{port}", key=key, data_dir=data_dir, process=process, account_keys=account_keys
        )
    finally:
        was_killed = process.poll() == -signal.SIGKILL
        process.terminate()
        process.wait(_STOP_DEADLINE_S)
        process.stdout.close()
    assert was_killed or process.returncode == 0


def metered(response: requests.Response) -> Iterator[str]:
    """The lines of a stream after the first so many that it took time that is seen."""
    lines = (line for line in response.iter_lines(decode_unicode=True) if line)
    for _ in METERED.split():
        next(lines)
    return lines


def events(response: requests.Response) -> list[object]:
    """The parsed events of a stream; the last is the string ``[DONE]``."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines(decode_unicode=True) if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
