"""Three sites with real engines: requests go where they should, keep their pins, and outlive what breaks.

`python tests/faults/engine_failover.py` starts `clusters/three-sites.yaml` with vLLM in float32 on this machine
(about 8 GiB), and checks on the receipts: that `auto` goes where `/v1/explain` says and follows the grids; that a
thousand mixed requests keep every pin; and that a greedy answer is the same, to the character, when the replica, its
engine or its node is killed or stopped in its middle. Exit code 1 when anything was not so, or a process is left.
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))  # where pytest's settings have them found
sys.path.insert(0, str(Path(__file__).parents[2]))

from breaking_engines import FAULTS, BreakingEngines, engine_questions
from chat_load import Customer
from engine_sites import ALLOW_LISTED, RESIDENT, EngineSites, write_engine_sites
from failing_over import take_attempts
from failover_report import engines_report
from placed_requests import PlacedRequests
from pool_processes import Descendants, PoolProcesses, title
from rich.console import Console
from running_echo import RunningMesh, free_port
from soundness import LedgerAccess, Soundness, Verdict

from benchmarks.running_mesh import running_mesh
from mesh.app import OPERATOR_ACCOUNT
from mesh.run_state import DataFolder

_WIDTH = 150
_FREE = "default"
_LEAVE_WITHIN_S = 15.0


def main() -> None:
    arguments = _arguments()
    console = Console(highlight=False, width=_WIDTH)
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    evidence = arguments.keep or Path(tempfile.mkdtemp(prefix="joule-mesh-engines-"))
    evidence.mkdir(parents=True, exist_ok=True)
    console.print(f"seed {seed}; evidence in {evidence}")
    sites = write_engine_sites(evidence)
    data_dir, verdict = evidence / "data", Verdict()
    began = time.monotonic()
    with ExitStack() as after:
        with running_mesh(data_dir, free_port(), config=sites.config, nodes=sites.nodes) as started:
            console.print(f"three pools answer after {time.monotonic() - began:.0f} s")
            descendants = after.enter_context(Descendants(DataFolder(data_dir).running().pid))
            keys = {each: _new_key(each, sites.config, data_dir) for each in (ALLOW_LISTED, RESIDENT)}
            keys |= {_FREE: started.key, OPERATOR_ACCOUNT: started.operator_key}
            mesh = RunningMesh(url=started.url, key=started.key, data_dir=data_dir, account_keys=keys)
            run = EngineRun(mesh, sites, verdict, console, seed=seed)
            run.show()
            run.place(arguments.requests)
            run.break_engines(arguments.of_each)
            run.judge()
        _take_left(verdict, descendants)
    _take_ledger_check(verdict, data_dir, sites.config)
    for out in (console, Console(file=(evidence / "report.txt").open("w"), width=_WIDTH)):
        out.print(engines_report(run.engines.broken, verdict, wall_s=time.monotonic() - began, seed=seed))
    if not verdict.is_clean:
        console.print(f"VIOLATIONS: see above; evidence in {evidence}", style="red")
        sys.exit(1)


class EngineRun:
    """The parts of one run, in order; what they find goes into the verdict."""

    def __init__(self, mesh: RunningMesh, sites: EngineSites, verdict: Verdict, console: Console, *, seed: int) -> None:
        self._mesh = mesh
        self._verdict = verdict
        self._console = console
        self._seed = seed
        self._ledger = LedgerAccess.of_folder(mesh.data_dir)
        self._soundness = Soundness(mesh, self._ledger, records_nonces=False)
        self._processes = PoolProcesses(
            mesh.data_dir,
            {pool: place.node for pool, place in sites.places.items()},
        )
        self._sites = sites
        customers = {name: Customer(account=name, key=key) for name, key in mesh.account_keys.items()}
        self._placed = PlacedRequests(mesh.url, sites, self._ledger, customers, _FREE)
        self.engines = BreakingEngines(mesh.url, sites, customers[_FREE], self._processes, seed=seed, say=console.print)

    def show(self) -> None:
        """What an operator sees of it."""
        asks = ("--url", self._mesh.url, "--api-key", self._mesh.key)
        runs = ("--config", str(self._sites.config), "--data-dir", str(self._mesh.data_dir))
        for arguments in (("nodes", *runs), ("pools", *asks), ("explain", "Name three rivers.", *asks)):
            shown = _jc(*arguments)
            self._console.print(f"$ jc {arguments[0]}\n{shown.stdout}{shown.stderr}", markup=False, soft_wrap=True)
            if shown.returncode:
                self._verdict.findings["jc"].append(f"jc {arguments[0]} exits with {shown.returncode}: {shown.stderr}")
        self._verdict.figures["jc"] = "nodes, pools, explain"

    def place(self, count: int) -> None:
        """Grids, explanations and pins."""
        self._placed.follow_the_grid(self._verdict, self._console.print)
        self._placed.mixed(count, seed=self._seed, verdict=self._verdict, say=self._console.print)

    def break_engines(self, of_each: int) -> None:
        """Faults in the middle of answers."""
        self.engines.run(engine_questions(), FAULTS, of_each, self._verdict)
        wrong = [each for each in self.engines.pinned if each]
        self._verdict.figures["pinned to a lost node"] = f"{len(self.engines.pinned)} requests, {len(wrong)} wrong"
        self._verdict.findings["pinned to a lost node"] += wrong
        engines = self._processes.all_engines()
        self._verdict.figures["engines"] = f"{len(engines)} engine processes for {len(self._sites.places)} replicas"
        if len(engines) > len(self._sites.places):
            self._verdict.findings["engines"].append(f"engines without a replica: {[each.pid for each in engines]}")

    def judge(self) -> None:
        """The books, as every run that breaks something has them judged."""
        judged = self._soundness.judge([*self._placed.exchanges, *self.engines.exchanges])
        take_attempts(judged, self._ledger)
        self._verdict.figures |= judged.figures
        for check, findings in judged.findings.items():
            self._verdict.findings[check] += findings


def _new_key(account: str, config: Path, data_dir: Path) -> str:
    made = _jc("keys", "new", "--account", account, "--config", str(config), "--data-dir", str(data_dir))
    if made.returncode:
        sys.exit(f"no key for {account}: {made.stderr}")
    return made.stdout.strip()


def _take_left(verdict: Verdict, descendants: Descendants) -> None:
    """Nothing that the mesh ever started may outlive it."""
    give_up = time.monotonic() + _LEAVE_WITHIN_S
    while (left := descendants.alive()) and time.monotonic() < give_up:
        time.sleep(1)
    verdict.figures["processes"] = f"{len(left)} left after the stop"
    verdict.findings["processes"] += [f"process {each.pid} is left: {title(each)[:200]}" for each in left]


def _take_ledger_check(verdict: Verdict, data_dir: Path, config: Path) -> None:
    checked = _jc("ledger", "check", "--config", str(config), "--data-dir", str(data_dir))
    verdict.figures["jc ledger check, stopped"] = f"exit code {checked.returncode}"
    if checked.returncode:
        verdict.findings["jc ledger check, stopped"].append(checked.stdout + checked.stderr)


def _jc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mesh.command", *arguments],
        env={**os.environ, "COLUMNS": str(_WIDTH)},
        capture_output=True,
        text=True,
        check=False,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Place requests on three real pools, break these, check the answers.")
    parser.add_argument("--requests", type=int, default=1000, help="mixed requests with pins")
    parser.add_argument("--of-each", type=int, default=3, help="faults of each kind")
    parser.add_argument("--seed", type=int, help="repeats the draws of an earlier run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the evidence goes; else a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
