"""What the README tells a new user to type to get an answer, typed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_README = Path(__file__).parents[2] / "README.md"
_RUNS_WITHIN_S = 60


def _blocks(language: str) -> list[str]:
    """The code of the chapter on one's first program."""
    chapter = re.search(r"^### Migrate from OpenAI\n(.*?)^### ", _README.read_text(), re.MULTILINE | re.DOTALL)
    assert chapter
    return re.findall(rf"```{language}\n(.*?)```", chapter[1], re.DOTALL)


def _here(text: str, mesh) -> str:
    return text.replace("http://127.0.0.1:8000", mesh.url).replace("jc_LIVE_YOUR_KEY", mesh.key)


@pytest.mark.parametrize("program", _blocks("python"))
def test_each_program_prints_its_answer_and_its_joules(echo_mesh, program):
    command = [sys.executable, "-c", _here(program, echo_mesh)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_RUNS_WITHIN_S, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("Name three rivers.")
    assert re.search(r"0\.\d+", ran.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_shows_the_headers_and_the_answer(echo_mesh):
    (console,) = [block for block in _blocks("console") if "curl" in block]
    script = _here(console.replace("$ export", "export").replace("$ curl", "curl"), echo_mesh)
    command = ["bash", "-euc", script]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=_RUNS_WITHIN_S, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "200 OK" in ran.stdout.partition("\n")[0]
    said = ran.stdout.lower()
    for header in ("x-energy-joules", "x-energy-method", "x-carbon-mg", "x-routed-to", "x-tier", "x-receipt-id"):
        assert f"{header}: " in said
    assert "Name three rivers." in ran.stdout
