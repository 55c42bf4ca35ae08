"""Kills replicas, loses nodes and stops processes in the middle of answers, and checks that every client got its own.

`python tests/faults/failover_rounds.py --rounds 300` starts a mesh of three labelled nodes with the test engine, does
a hundred faults of each kind, prints a line for each and tables at the end. Exit code 1 when an answer was not whole
and right, or the books are not; the evidence is kept in a folder that the output names. The seed that it prints
repeats the same faults; how they meet the requests differs.
"""

import argparse
import os
import secrets
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))  # where pytest's settings have them found

from failing_over import EVERY_ACCOUNT, FAULTS, FailoverRounds
from failover_report import failover_report
from rich.console import Console
from running_echo import running_echo_mesh
from three_sites import write_three_sites

_WIDTH = 140


def main() -> None:
    arguments = _arguments()
    console = Console(highlight=False, width=_WIDTH)
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    evidence = arguments.keep or Path(tempfile.mkdtemp(prefix="joule-mesh-failover-"))
    evidence.mkdir(parents=True, exist_ok=True)
    console.print(f"{arguments.rounds} faults with seed {seed}; evidence in {evidence}")
    sites = write_three_sites(evidence)
    os.environ["JC_CONFIG"] = str(sites.config)
    with running_echo_mesh(evidence / "data", accounts=EVERY_ACCOUNT, nodes=sites.nodes) as mesh:
        rounds = FailoverRounds(mesh, sites, evidence, seed=seed, say=console.print)
        run = rounds.run(-(-arguments.rounds // len(FAULTS)))
        console.print(failover_report(run))
    with (evidence / "report.txt").open("w") as file:
        Console(file=file, width=_WIDTH).print(failover_report(run))
    if not run.verdict.is_clean:
        console.print(f"VIOLATIONS: see above; evidence in {evidence}", style="red")
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Break replicas and nodes in the middle of answers; check the answers."
    )
    parser.add_argument("--rounds", type=int, default=300, help="a third of each kind of fault")
    parser.add_argument("--seed", type=int, help="repeats the faults of an earlier run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the evidence goes; else a temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
