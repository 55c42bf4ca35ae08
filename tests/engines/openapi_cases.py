"""Cases that schemathesis makes from a mesh's own OpenAPI document: `python openapi_cases.py --cases 10000`.

Without a mesh to go to (``--url`` and ``--key``) it starts one with the test engine, and asks as a customer and as the
operator, half of the cases each.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import requests
from running_echo import running_echo_mesh

from mesh.app import OPERATOR_ACCOUNT

_HOOKS = Path(__file__).with_name("openapi_checks.py")
_CHECKS = (
    "no_fault",
    "error_envelope",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
_PHASES = "coverage,fuzzing"
_CUSTOMER = "fuzzed"
_REQUEST_WITHIN_S = 60
# Of an operation without a body there aren't that many cases.
_FOR_THE_SIMPLE_ONES = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CasesRun:
    """How many cases were made, whether all answers passed every check, and what schemathesis said."""

    cases: int
    passed: bool
    said: str


def run_cases(url: str, key: str, *, cases: int, phases: str, seed: int, folder: Path) -> CasesRun:
    """About so many random cases over all operations of the document, and those of the other ``phases`` beside them;
    ``folder`` is for what schemathesis writes.
    """
    report = folder / "report.ndjson"
    document = requests.get(f"{url}/openapi.json", timeout=_REQUEST_WITHIN_S)
    document.raise_for_status()
    operations = sum(len(each) for each in document.json()["paths"].values())
    most_each = math.ceil(cases / operations * _FOR_THE_SIMPLE_ONES)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}"),
        *("--checks", ",".join(_CHECKS), "--phases", phases, "--mode", "all"),
        *("--max-examples", str(most_each), "--seed", str(seed), "--continue-on-failure"),
        *("--request-timeout", str(_REQUEST_WITHIN_S), "--suppress-health-check", "all", "--warnings", "off"),
        # Its own keys are all unknown ones; that they are refused is what `ignored_auth` looks at.
        *("--generation-with-security-parameters", "false"),
        *("--generation-database", "none", "--report", "ndjson", "--report-ndjson-path", str(report), "--no-color"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(_HOOKS)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return CasesRun(cases=_count(report), passed=ran.returncode == 0, said=ran.stdout + ran.stderr)


def _count(report: Path) -> int:
    """Requests that schemathesis sent, by its own record of them."""
    count = 0
    for line in report.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        count += len(scenario["recorder"]["interactions"]) if scenario else 0
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many, over all operations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a mesh that runs; then --key too")
    parser.add_argument("--key")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jm-") as name:
        runs = (
            _on_a_running_mesh(arguments, Path(name)) if arguments.url else _on_a_mesh_of_its_own(arguments, Path(name))
        )
    sys.exit(_report(runs, arguments.cases))


def _on_a_running_mesh(arguments: argparse.Namespace, folder: Path) -> list[CasesRun]:
    return [
        run_cases(
            arguments.url, arguments.key, cases=arguments.cases, phases=_PHASES, seed=arguments.seed, folder=folder
        )
    ]


def _on_a_mesh_of_its_own(arguments: argparse.Namespace, folder: Path) -> list[CasesRun]:
    accounts = (_CUSTOMER, OPERATOR_ACCOUNT)
    cases = arguments.cases // len(accounts)
    with running_echo_mesh(folder / "mesh", accounts=accounts) as mesh:
        keys = [mesh.account_keys[account] for account in accounts]
        return [
            run_cases(mesh.url, key, cases=cases, phases=_PHASES, seed=arguments.seed, folder=folder) for key in keys
        ]


def _report(runs: list[CasesRun], wanted: int) -> int:
    for run in runs:
        print(run.said)
    made = sum(run.cases for run in runs)
    print(f"{made} cases; {'every answer passed' if all(run.passed for run in runs) else 'some answers failed'}")
    return 0 if made >= wanted and all(run.passed for run in runs) else 1


if __name__ == "__main__":
    main()
