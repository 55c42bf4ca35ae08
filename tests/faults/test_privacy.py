"""Prompts, answers and secrets are in memory only: what clients tell a mesh is in none of its files and metrics."""

import contextlib
import json
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from canaries import Canaries
from running_echo import EchoMesh, built_in_settings, running_echo_mesh

_BETWEEN_TOKENS_S = 3
# A request that may fill the model's context costs more than a new account's five dollars; one of 32 tokens, cents.
_USD_PER_KWH = 20_000
_IN_MEMORY = ("/dev/shm/", "/memfd:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A mesh of which everything lies in ``folder``, its Ray's and all temporary files too, and what it was told."""

    mesh: EchoMesh
    folder: Path
    canaries: Canaries
    needles: tuple[bytes, ...]
    running: contextlib.ExitStack

    @property
    def logs(self) -> Path:
        return Path(json.loads((self.mesh.data_dir / "run.json").read_text())["logs"])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: sockets are in it."""
    made = Path(tempfile.mkdtemp(prefix="jm-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def told(folder) -> Iterator[Told]:
    settings = built_in_settings()
    settings["deadlines"]["between_tokens_s"] = _BETWEEN_TOKENS_S
    settings["placement"]["attempts"] = 2
    settings["price"]["usd_per_kwh"] = _USD_PER_KWH
    temporary = folder / "tmp"
    temporary.mkdir()
    stem = f"canary{secrets.token_hex(8)}"
    with contextlib.ExitStack() as running, pytest.MonkeyPatch.context() as environment:
        environment.setenv("TMPDIR", str(temporary))
        mesh = running.enter_context(running_echo_mesh(folder / "data", settings=settings))
        canaries = Canaries(mesh, stem)
        canaries.tell_everything()
        needles = (stem.encode(), *(secret.encode() for secret in canaries.secrets))
        yield Told(mesh=mesh, folder=folder, canaries=canaries, needles=needles, running=running)


def _holding(files: Iterable[Path], needles: tuple[bytes, ...]) -> dict[str, str]:
    """Which of the files have one of these in them, with what stands around it."""
    found = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
            data = file.read_bytes()
            at = next((place for needle in needles if (place := data.find(needle)) >= 0), None)
            if at is not None:
                found[str(file)] = data[max(0, at - 200) : at + 100].decode(errors="replace")
    return found


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


def _open_files(pid: int) -> Iterator[Path]:
    """Every file that a process of the mesh has open, those without a name in any folder too."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(entry.stat().st_mode) and not str(entry.readlink()).startswith(_IN_MEMORY):
                        yield entry


def test_each_word_was_told_as_it_should_be(told):
    """Else the other tests would look for what never was there."""
    assert not list(told.canaries.unexpected())
    answered = [each for each in told.canaries.sent if each.how.endswith(("answered", "streamed"))]
    assert len(answered) == 7
    for each in answered:
        assert "embedding" in each.text or each.word in each.text, each


def test_no_file_of_a_running_mesh_holds_a_word(told):
    files = _files(told.folder)
    names = {file.name for file in files}
    assert "ledger.sqlite3" in names
    assert any(file.is_relative_to(told.logs.resolve()) for file in files), "Ray's session is elsewhere"
    assert any(name.startswith("replica_") for name in names)
    assert not _holding(files, told.needles)


def test_no_open_file_of_its_processes_holds_a_word(told):
    opened = list(_open_files(told.mesh.process.pid))
    assert any("ledger" in each.readlink().name for each in opened)
    assert not _holding(opened, told.needles)


def test_no_metric_holds_a_word(told):
    discovery = json.loads((told.logs.parent / "prom_metrics_service_discovery.json").read_text())
    texts = []
    for target in discovery[0]["targets"]:
        with contextlib.suppress(requests.ConnectionError):  # Ray names its autoscaler's port too, which is not there
            texts.append(requests.get(f"http://{target}/metrics", timeout=10).text)
    exported = "\n".join(texts)
    assert "ray_serve" in exported
    assert not [needle for needle in told.needles if needle.decode() in exported]


def test_no_file_that_a_stopped_mesh_leaves_behind_holds_a_word(told):
    """What is written at the end too; then, that this would have found one."""
    told.running.close()
    assert not _holding(_files(told.folder), told.needles)
    (told.folder / "tmp" / "found").write_text(f"he said {told.canaries.word()} to me")
    assert len(_holding(_files(told.folder), told.needles)) == 1
