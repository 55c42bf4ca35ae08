"""Other people's clients, in an environment of their own, against a mesh with the test engine.

`make test` makes that environment (`.venv/clients`): they ask for another `openai` than the engine does.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

_CLIENTS = Path(sys.prefix) / "clients" / "bin" / "python"
_FOLDER = Path(__file__).parents[1] / "clients"
_SUITES = ("langchain", "llama_index")
_WITHIN_S = 300
_MODEL = "smollm2-135m-instruct"

pytestmark = pytest.mark.skipif(not _CLIENTS.exists(), reason="no environment of clients here; `make test` makes it")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRun:
    """What came of a suite; ``skipped`` are its tests' names, without what is in brackets."""

    passed: int
    skipped: frozenset[str]
    wrong: tuple[str, ...]
    said: str


@pytest.fixture(scope="module")
def runs(echo_mesh, tmp_path_factory) -> Iterator[Mapping[str, Future[SuiteRun]]]:
    """Of both suites at once: each is a process that often waits."""
    folder = tmp_path_factory.mktemp("clients")
    with ThreadPoolExecutor(len(_SUITES)) as threads:
        yield {each: threads.submit(_run, f"{each}_suite.py", echo_mesh, folder / f"{each}.xml") for each in _SUITES}


def _run(suite: str, mesh, report: Path) -> SuiteRun:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(report.parent),
        "TMPDIR": str(report.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENAI_BASE_URL": f"{mesh.url}/v1",
        "OPENAI_API_KEY": mesh.key,
        "MESH_MODEL": _MODEL,
        "LANGSMITH_TRACING": "false",
    }
    command = [str(_CLIENTS), "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}", suite]
    ran = subprocess.run(
        command, cwd=_FOLDER, env=environment, capture_output=True, text=True, timeout=_WITHIN_S, check=False
    )
    said = f"{ran.stdout[-20_000:]}\n{ran.stderr[-5_000:]}"
    assert report.exists(), said
    cases = [(case.attrib["name"], _outcome(case)) for case in ElementTree.parse(report).iter("testcase")]  # noqa: S314 - written by ourselves
    return SuiteRun(
        passed=Counter(outcome for _, outcome in cases)["passed"],
        skipped=frozenset(name.partition("[")[0] for name, outcome in cases if outcome == "skipped"),
        wrong=tuple(name for name, outcome in cases if outcome not in ("passed", "skipped")),
        said=said,
    )


def _outcome(case: ElementTree.Element) -> str:
    """Its first mark; what passed has none."""
    return next((child.tag for child in case if child.tag in ("skipped", "failure", "error")), "passed")


@pytest.mark.usefixtures("echo_mesh")
def test_langchains_own_suite_passes_with_chat_openai(runs):
    ran = runs["langchain"].result()
    assert not ran.wrong, ran.said
    assert ran.passed >= 46, ran.said
    # No model here hears or reads PDF; the last is a benchmark on recorded answers.
    assert ran.skipped <= {"test_audio_inputs", "test_pdf_inputs", "test_pdf_tool_message", "test_stream_time"}, (
        ran.said
    )


@pytest.mark.usefixtures("echo_mesh")
def test_llama_indexs_openai_like_client_works(runs):
    ran = runs["llama_index"].result()
    assert not ran.wrong, ran.said
    assert ran.passed >= 11, ran.said
    assert not ran.skipped
