"""Rounds of faults in the middle of answers, and the evidence that every client got a whole and right one.

A round asks for a paced answer, and while it is given kills its replica, its node, or stops its replica, while other
clients ask beside it. All answers are checked word by word as they come; at the end the books are (`soundness`), and
that what each receipt says of failed attempts is what the ledger booked as the mesh's overhead.
"""

import json
import signal
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil
from chat_load import ChatLoad, Customer, Exchange
from pool_processes import PoolProcesses, send
from running_echo import EchoMesh
from soundness import LedgerAccess, Soundness, Verdict
from three_sites import ThreeSites
from word_client import WordClient

from mesh.app import OPERATOR_ACCOUNT

FAULTS: Final = ("replica killed", "node lost", "replica hung")
REQUESTS: Final = ("unary", "stream")
ACCOUNTS: Final = ("anna", "bela")
PROBER: Final = "prober"
EVERY_ACCOUNT: Final = (*ACCOUNTS, PROBER, OPERATOR_ACCOUNT)
"""Whose keys the mesh under test has to make."""

_CLIENTS: Final = 2
_PACE_S: Final = 0.05
_WORDS: Final = (14, 22)
_STRIKES_AFTER: Final = (0.1, 0.8)
_UNFAULTED: Final = 3
_READY_WITHIN_S: Final = 60.0
_LEAST_POOLS: Final = 2
_QUIET_WITHIN_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One fault, a share of its answer's time after that began; a stopped replica goes on later, or is killed."""

    number: int
    fault: str
    request: str
    words: int
    after_share: float
    goes_on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """What became of a round; ``retries`` are those on its receipt, ``lost_s`` beyond an answer without a fault."""

    round: Round
    pool: str
    exchange: Exchange
    retries: int
    lost_s: float


@dataclass(slots=True, kw_only=True)
class Run:
    """What happened, and the verdict."""

    seed: int
    wall_s: float = 0.0
    unfaulted_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    struck: list[Struck] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)


def rounds(seed: int, of_each: int) -> Iterator[Round]:
    """Each fault so many times, half of them in unary answers and half in streams, in any order."""
    random = Random(f"{seed}/failover")
    kinds = [
        (fault, REQUESTS[(index + turn) % len(REQUESTS)])
        for turn, fault in enumerate(FAULTS, start=1)
        for index in range(of_each)
    ]
    for number, (fault, request) in enumerate(random.sample(kinds, len(kinds)), start=1):
        yield Round(
            number=number,
            fault=fault,
            request=request,
            words=random.randint(*_WORDS),
            after_share=random.uniform(*_STRIKES_AFTER),
            goes_on=random.random() < 0.5,
        )


class FailoverRounds:
    """One run on a mesh of `three_sites` that was started with a key for `EVERY_ACCOUNT`."""

    def __init__(
        self, mesh: EchoMesh, sites: ThreeSites, evidence: Path, *, seed: int, say: Callable[[str], None] = print
    ) -> None:
        self._mesh = mesh
        self._sites = sites
        self._evidence = evidence
        self._seed = seed
        self._say = say
        self._client = WordClient(mesh.url)
        self._prober = Customer(account=PROBER, key=mesh.account_keys[PROBER])
        nodes = {pool: node for node, pool in sites.pools.items()}
        self._processes = PoolProcesses(mesh.data_dir, nodes)
        self._ledger = LedgerAccess.of_folder(mesh.data_dir)
        self._soundness = Soundness(mesh, self._ledger, records_nonces=False)
        self._run = Run(seed=seed)

    def run(self, of_each: int) -> Run:
        """Do so many rounds of each fault, then check everything."""
        began = time.monotonic()
        customers = [Customer(account=name, key=self._mesh.account_keys[name]) for name in ACCOUNTS]
        log = self._evidence / "exchanges.ndjson"
        probes: list[Exchange] = []
        with ChatLoad(self._client, customers, clients=_CLIENTS, seed=self._seed, log=log) as load:
            self._measure_unfaulted(probes)
            for each in rounds(self._seed, of_each):
                self._round(each, probes)
            is_quiet = load.pause(_QUIET_WITHIN_S)
            self._run.exchanges = [*load.seen, *probes]
            self._judge()
            if not is_quiet:
                self._run.verdict.findings["quiet"].append(f"a request was under way after {_QUIET_WITHIN_S:g} s")
        self._run.wall_s = time.monotonic() - began
        return self._run

    def _measure_unfaulted(self, probes: list[Exchange]) -> None:
        for request in REQUESTS:
            for _ in range(_UNFAULTED):
                exchange, _ = self._paced(request, _WORDS[0], lambda _: None)
                probes.append(exchange)
                self._run.unfaulted_s[request].append((exchange.ended_s - exchange.begun_s) / _WORDS[0])

    def _expected_s(self, request: str, words: int) -> float:
        return statistics.median(self._run.unfaulted_s[request]) * words

    def _paced(
        self, request: str, words: int, has_begun: Callable[[Mapping[str, str]], None]
    ) -> tuple[Exchange, Mapping[str, str]]:
        """Ask for so many words, told in an even pace."""
        said: list[Mapping[str, str]] = [{}]

        def begun(headers: Mapping[str, str]) -> None:
            said[0] = headers
            has_begun(headers)

        message = ["!pace", str(_PACE_S), *(f"w{index}" for index in range(words - 2))]
        return self._client.ask_for(self._prober, request, message, has_begun=begun), said[0]

    def _round(self, each: Round, probes: list[Exchange]) -> None:
        self._processes.wait_until_alive(_LEAST_POOLS, _READY_WITHIN_S)
        expected_s = self._expected_s(each.request, each.words)
        favourite, headers = self._paced("unary", 2, lambda _: None)
        probes.append(favourite)
        pool = self._pool_of(headers)
        victims: list[psutil.Process] = []
        striking = threading.Thread(
            target=lambda: victims.extend(self._strike(each, pool, each.after_share * expected_s))
        )
        striking.start()
        exchange, _ = self._paced(each.request, each.words, lambda _: None)
        striking.join()
        self._relieve(each, victims)
        probes.append(exchange)
        retries = self._retries(exchange)
        lost_s = exchange.ended_s - exchange.begun_s - expected_s
        self._run.struck.append(Struck(round=each, pool=pool, exchange=exchange, retries=retries, lost_s=lost_s))
        self._say(
            f"round {each.number}: {each.fault} in a {each.request} answer on {pool}: {exchange.outcome}, "
            f"{retries} retries, {lost_s:.2f} s lost {exchange.detail or ''}"
        )

    def _pool_of(self, headers: Mapping[str, str]) -> str:
        """The pool that answered, by its site."""
        site = headers["X-Routed-To"].rpartition("/")[0]
        return next(pool for pool in self._sites.pools.values() if pool.endswith(f"@{site}"))

    def _strike(self, each: Round, pool: str, after_s: float) -> list[psutil.Process]:
        time.sleep(after_s)
        if each.fault == "node lost":
            for process in self._processes.node(pool):
                send(process, signal.SIGKILL)
            return []
        replicas = self._processes.replicas(pool)
        for replica in replicas:
            send(replica, signal.SIGSTOP if each.fault == "replica hung" else signal.SIGKILL)
        return replicas

    def _relieve(self, each: Round, victims: Sequence[psutil.Process]) -> None:
        if each.fault == "replica hung":
            for victim in victims:
                send(victim, signal.SIGCONT if each.goes_on else signal.SIGKILL)

    def _retries(self, exchange: Exchange) -> int:
        if exchange.receipt_id is None or exchange.outcome != "answered":
            return 0
        mesh = EchoMesh(
            url=self._mesh.url, key=self._prober.key, data_dir=self._mesh.data_dir, process=self._mesh.process
        )
        return int(mesh.receipt(exchange.receipt_id)["execution"]["retries"])

    def _judge(self) -> None:
        """Every client's answer, the attempts on the receipts, and the books."""
        verdict = self._run.verdict = self._soundness.judge(self._run.exchanges)
        wrong = [each for each in self._run.exchanges if each.outcome not in ("answered", "hung up")]
        verdict.figures["clients"] = f"{len(self._run.exchanges)} requests, {len(wrong)} without a whole right answer"
        verdict.findings["clients"] += [f"{each.kind} {each.outcome} {each.status}: {each.detail}" for each in wrong]
        take_attempts(verdict, self._ledger)


def take_attempts(verdict: Verdict, ledger: LedgerAccess) -> None:
    """What receipts say of failed attempts is what the ledger has of them, and none of it is on a bill."""
    with closing(ledger.connect()) as connection:
        signed = connection.execute("SELECT request_id, signed_bytes FROM receipts").fetchall()
        failed = connection.execute("SELECT request_id, energy_microjoules FROM failed_attempts").fetchall()
    booked: dict[str, list[int]] = defaultdict(list)
    for request_id, energy_microjoules in failed:
        booked[request_id].append(energy_microjoules or 0)
    outcomes: dict[str, int] = defaultdict(int)
    for request_id, signed_bytes in signed:
        execution: Mapping[str, Any] = json.loads(signed_bytes)["execution"]
        attempts = execution["attempts"]
        for attempt in attempts:
            outcomes[attempt["outcome"]] += 1
        said = sorted(round((each["joules"] or 0) * 1e6) for each in attempts if each["joules"])
        has = sorted(each for each in booked[request_id] if each)
        if len(attempts) != execution["retries"]:
            verdict.findings["attempts"].append(
                f"{request_id}: {execution['retries']} retries, {len(attempts)} attempts"
            )
        if said != has:
            verdict.findings["attempts"].append(f"{request_id}: its receipt says {said} µJ, the ledger has {has}")
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())) or "none"
    verdict.figures["attempts"] = f"failed attempts on receipts: {told}; {len(failed)} in the ledger"
