"""Kills parts of a running mesh at random, round after round, under load, and checks what must hold all the same.

`python tests/faults/kill_rounds.py --rounds 200` starts a mesh with the test engine, prints a line for each round and
tables at the end. Exit code 1 when anything was lost, doubled, unsigned or wrong; the evidence is kept in a folder
that the output names. The seed that it prints repeats the same blows; how they meet the requests differs.
"""

import argparse
import importlib.resources
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))  # where pytest's settings have them found

from chat_load import count_by
from kill_report import report
from killing_rounds import EVERY_ACCOUNT, KillingRounds, Run
from rich.console import Console
from running_echo import running_echo_mesh
from soundness import LedgerAccess

_CHECK_EVERY = 25
_WIDTH = 140


def main() -> None:
    arguments = _arguments()
    console = Console(highlight=False, width=_WIDTH)
    seed = secrets.randbelow(10**9) if arguments.seed is None else arguments.seed
    evidence = arguments.keep or Path(tempfile.mkdtemp(prefix="joule-mesh-faults-"))
    evidence.mkdir(parents=True, exist_ok=True)
    console.print(f"{arguments.rounds} rounds with seed {seed} on {arguments.ledger}; evidence in {evidence}")
    is_clean = _run(arguments, evidence, seed, console)
    console.print(f"\nevidence in {evidence}: ledger, signers' records, every request, every round")
    if not is_clean:
        console.print("VIOLATIONS: see above; Ray's logs are beside the evidence", style="red")
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill parts of a mesh at random under load; check what must hold.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, help="repeats the blows of an earlier run")
    parser.add_argument("--ledger", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--check-every", type=int, default=_CHECK_EVERY, metavar="ROUNDS")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the evidence goes; else a temporary folder")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, evidence: Path, seed: int, console: Console) -> bool:
    """Whether all that must hold did; what was found is told before the mesh stops, which may take its time."""
    data_dir = evidence / "data"
    with (
        _ledger(arguments.ledger, evidence, data_dir) as ledger,
        running_echo_mesh(data_dir, accounts=EVERY_ACCOUNT, record_nonces=True) as mesh,
    ):
        rounds = KillingRounds(mesh, evidence, seed=seed, ledger=ledger, say=console.print)
        run = rounds.run(arguments.rounds, check_every=arguments.check_every)
        _tell(run, evidence, console)
    return run.verdict.is_clean


def _tell(run: Run, evidence: Path, console: Console) -> None:
    console.print(report(run))
    failures = count_by([each for each in run.exchanges if each.detail], lambda each: (each.detail or "")[:100])
    with (evidence / "report.txt").open("w") as file:
        Console(file=file, width=_WIDTH).print(report(run))
        for detail, count in sorted(failures.items(), key=lambda each: -each[1]):
            file.write(f"{count:6} {detail}\n")


@contextmanager
def _ledger(kind: str, evidence: Path, data_dir: Path) -> Iterator[LedgerAccess]:
    """Where the mesh that starts in the block keeps its ledger; a server's tables are added to the evidence."""
    if kind == "sqlite":
        yield LedgerAccess.of_folder(data_dir)
        return
    from postgres import running_postgres

    with running_postgres(fsync=True) as server:
        database = server.new_database()
        settings = yaml.safe_load(importlib.resources.files("clusters").joinpath("local.yaml").read_text())
        settings["ledger"]["url"] = server.url(database)
        config = evidence / "mesh.yaml"
        config.write_text(yaml.safe_dump(settings))
        os.environ["JC_CONFIG"] = str(config)
        try:
            yield LedgerAccess(url=server.url(database), connect=partial(server.connect, database))
        finally:
            with server.connect(database) as connection, connection.cursor() as cursor:
                for table in ("receipts", "entries", "failed_attempts"):
                    with cursor.copy(f"COPY {table} TO STDOUT (FORMAT csv, HEADER)") as rows:
                        (evidence / f"{table}.csv").write_bytes(b"".join(bytes(row) for row in rows))


if __name__ == "__main__":
    main()
