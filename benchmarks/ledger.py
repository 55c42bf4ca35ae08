"""How fast the ledger stores settlements durably: SQLite and PostgreSQL in turn, 1, 8 and 64 at a time.

    .venv/bin/python -m benchmarks ledger

Each settlement is its own call of `LedgerWriter.settle`, as the mesh makes it, and returns when its receipt is on the
disk; what comes while a commit is on its way shares the next one. PostgreSQL is a server of the benchmark's own, on a
unix socket, with its settings as they come: it syncs each commit.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks.settlements import settlements
from metering.settlement import Settlement
from receipts.ledger import Ledger
from receipts.ledger_writer import LedgerWriter
from receipts.stored_receipt import StoredReceipt

AT_ONCE = {1: 300, 8: 1_600, 64: 6_400}
"""Settlements in a round, by how many are under way at once."""
ROUNDS = 5
ACCOUNTS = [f"account-{number}" for number in range(8)]


class CountedLedger(Ledger):
    """A ledger that counts its commits."""

    commits = 0

    def settle(self, settlements: Sequence[Settlement]) -> list[StoredReceipt | None]:
        """As a ledger's."""
        self.commits += 1
        return super().settle(settlements)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round's figures; the settle times in ms."""

    commits_per_s: float
    receipts_per_s: float
    p50_ms: float
    p99_ms: float


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """The ledgers' URLs by what is measured."""
    # The tests' own server: its programs come with the development environment.
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "engines"))
    from postgres import running_postgres

    with running_postgres(fsync=True) as server:
        yield {"SQLite": f"sqlite:///{folder / 'ledger.sqlite3'}", "PostgreSQL": server.url(server.new_database())}


async def measure(url: str, source: Iterator[Settlement], at_once: int, count: int) -> Round:
    """Settle so many, ``at_once`` under way; open and close are not in the figures."""
    ledgers: list[CountedLedger] = []

    def open_ledger() -> Ledger:
        ledgers.append(
            CountedLedger.open(url, wall_clock_ns=time.time_ns, random_bytes=os.urandom, key_id="0123456789abcdef")
        )
        return ledgers[0]

    writer = await LedgerWriter.open(open_ledger)
    waiting = list(islice(source, count))[::-1]
    took_ms: list[float] = []

    async def client() -> None:
        while waiting:
            settlement = waiting.pop()
            began = time.perf_counter()
            assert await writer.settle(settlement) is not None
            took_ms.append((time.perf_counter() - began) * 1e3)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    elapsed_s = time.perf_counter() - began
    await writer.close()
    took_ms.sort()
    return Round(
        commits_per_s=ledgers[0].commits / elapsed_s,
        receipts_per_s=count / elapsed_s,
        p50_ms=took_ms[len(took_ms) // 2],
        p99_ms=took_ms[len(took_ms) * 99 // 100],
    )


def create_accounts(url: str) -> None:
    ledger = Ledger.open(url, wall_clock_ns=time.time_ns, random_bytes=os.urandom, key_id="0123456789abcdef")
    for account in ACCOUNTS:
        ledger.create_key(account, "benchmark")
    ledger.close()


def main() -> None:
    rounds: dict[tuple[str, int], list[Round]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        sources = {name: settlements(ACCOUNTS) for name in urls}
        for url in urls.values():
            create_accounts(url)
        for _ in range(ROUNDS):
            for at_once, count in AT_ONCE.items():
                for name, url in urls.items():
                    rounds[name, at_once].append(asyncio.run(measure(url, sources[name], at_once, count)))
    print(f"median of {ROUNDS} rounds, the databases in turn; {len(ACCOUNTS)} accounts\n")
    print("| | at once | commits/s | receipts/s | settle p50, ms | p99, ms |\n|---|---:|---:|---:|---:|---:|")
    middles = {place: _median(each) for place, each in rounds.items()}
    for (name, at_once), middle in sorted(middles.items(), key=lambda item: item[0][1]):
        print(
            f"| {name} | {at_once} | {middle.commits_per_s:,.0f} | {middle.receipts_per_s:,.0f} "
            f"| {middle.p50_ms:.1f} | {middle.p99_ms:.1f} |"
        )
    for at_once in AT_ONCE:
        ratio = middles["PostgreSQL", at_once].receipts_per_s / middles["SQLite", at_once].receipts_per_s
        print(f"| PostgreSQL over SQLite | {at_once} | | {ratio:.2f} | | |")


def _median(rounds: list[Round]) -> Round:
    return Round(
        commits_per_s=statistics.median(each.commits_per_s for each in rounds),
        receipts_per_s=statistics.median(each.receipts_per_s for each in rounds),
        p50_ms=statistics.median(each.p50_ms for each in rounds),
        p99_ms=statistics.median(each.p99_ms for each in rounds),
    )


if __name__ == "__main__":
    main()
