"""What `jc` says where a package, a mesh or a key is missing, and which mesh its next command would mean."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mesh.command import main, up
from mesh.command_options import for_this_mesh

NOBODY = ("--url", "http://127.0.0.1:1")


@pytest.mark.parametrize("command", [("chat", "Hello", *NOBODY), ("meter", "--once"), ("up",)])
def test_the_base_install_is_told_in_a_line_which_extra_a_command_needs(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    missing = {"alembic", "fastapi", "numpy", "openai", "psycopg", "pynvml", "ray", "sqlalchemy", "stripe"}
    script = f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\nfrom mesh.command import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env={**os.environ, "JC_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    line = r"jc: this command needs (\w+), of the `serve` extra: `make install`, or pip install '\.\[serve\]'.*\n"
    told = re.fullmatch(line, done.stderr)
    assert told, done.stderr
    assert told[1] in missing


def test_a_module_that_no_extra_holds_is_a_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mesh.meter_watch", None)
    assert isinstance(CliRunner().invoke(main, ["meter"]).exception, ModuleNotFoundError)


def test_who_has_neither_mesh_nor_key_needs_the_mesh_first() -> None:
    done = CliRunner().invoke(main, ["chat", "Hello", *NOBODY], env={"JC_API_KEY": None})
    assert (done.exit_code, done.stderr) == (2, "jc: no mesh answers at http://127.0.0.1:1; start one with `jc up`\n")


def test_a_chat_with_nobody_names_where_it_asked() -> None:
    done = CliRunner().invoke(main, ["chat", "Hello", *NOBODY, "--api-key", "jc_LIVE_x"])
    assert done.exit_code == 2
    assert done.stderr.startswith("jc: no mesh answers at http://127.0.0.1:1/; start one with `jc up`")


def test_a_placeholder_in_place_of_a_key_is_a_line() -> None:
    done = CliRunner().invoke(main, ["models", *NOBODY], env={"JC_API_KEY": "jc_LIVE_…"})
    assert done.exit_code == 2
    assert done.stderr.startswith("jc: that is no API key")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "jc down"),
        (("--config", "my sites.yaml", "--port", "8001"), "jc down --config 'my sites.yaml'"),
        (("--config", "a.yaml", "--data-dir", "/tmp/second"), "jc down --config a.yaml --data-dir /tmp/second"),
    ],
)
def test_the_next_command_means_the_same_mesh(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], said: str
) -> None:
    for variable in ("JC_CONFIG", "JC_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    with up.make_context("up", list(given)):
        assert for_this_mesh("jc down") == said


def test_a_folder_that_the_environment_names_is_named_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JC_DATA_DIR", str(tmp_path))
    with up.make_context("up", []):
        assert for_this_mesh("jc keys new") == f"jc keys new --data-dir {tmp_path}"
