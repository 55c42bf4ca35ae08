"""Looks into a running mesh's ledger for as long as it is asked: `python ledger_probe.py DATA_DIR`.

Each line on its input is an account's name, or empty. It answers with a line of JSON: how many holds there are, their
sum and the account's balance in pico-USD (null for an empty line); or null while the ledger is away.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LedgerView:
    count: int
    held_usd_picos: int
    balance_usd_picos: int | None


class LedgerProbe:
    """A probe in a process of its own: only one that has not imported Ray yet can join a mesh."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def look(self, account: str = "") -> LedgerView | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{account}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return None if answer is None else LedgerView(*answer)


@contextmanager
def ledger_probe(data_dir: Path) -> Iterator[LedgerProbe]:
    command = [sys.executable, __file__, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield LedgerProbe(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    from mesh.ray_session import join_ray
    from mesh.run_state import DataFolder

    data_dir = Path(sys.argv[1])
    state = DataFolder(data_dir).running()
    join_ray(state, data_dir)
    import ray
    from ray.exceptions import RayActorError

    from receipts.ledger_actor import ledger_of

    ledger = ledger_of(state.namespace)
    for line in sys.stdin:
        account = line.strip()
        try:
            report = ray.get(ledger.holds_report.remote(), timeout=30)
            balance = ray.get(ledger.balance_usd_picos.remote(account), timeout=30) if account else None
        except RayActorError:
            print("null", flush=True)
        else:
            print(json.dumps([report.count, report.held_usd_picos, balance]), flush=True)


if __name__ == "__main__":
    main()
