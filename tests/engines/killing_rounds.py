"""Rounds of killing under load, and the evidence that nothing was lost, doubled or wrong afterwards.

A round kills one or two parts of a mesh (`kill_plan`) while clients keep asking (`chat_load`), then waits until the
mesh answers, signs and is whole again; the load goes on meanwhile. Every so many rounds, and at the end, the load is
paused and everything is checked (`soundness`).
"""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import psutil
import requests
from chat_load import ChatClient, ChatLoad, Customer, Exchange
from kill_plan import Blow, Round, rounds
from running_echo import EchoMesh
from soundness import LedgerAccess, Soundness, Verdict
from victims import TITLES, Victims

from mesh.app import OPERATOR_ACCOUNT
from mesh.run_state import DataFolder

ACCOUNTS: Final = ("anna", "bela", "cleo", "dora")
PROBER: Final = "prober"
EVERY_ACCOUNT: Final = (*ACCOUNTS, PROBER, OPERATOR_ACCOUNT)
"""Whose keys the mesh under test has to make."""

_CLIENTS: Final = 8
_RECOVERS_WITHIN_S: Final = 90.0
_QUIET_WITHIN_S: Final = 120.0
_SUCCESSOR_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Seconds from a round's last blow until an answer to a question asked after it, until that answer's receipt was
    signed, and until every process that died had its successor."""

    answered_s: float
    signed_s: float
    whole_s: float


@dataclass(slots=True, kw_only=True)
class Run:
    """What happened, and the verdict of the last check; not recovering is a finding too."""

    seed: int
    rounds_done: int = 0
    wall_s: float = 0.0
    round_s: list[float] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    recoveries: dict[str, list[Recovery]] = field(default_factory=lambda: defaultdict(list))
    exchanges: list[Exchange] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)


class KillingRounds:
    """One run on a mesh that was started with a key for `EVERY_ACCOUNT` and with recording signers."""

    def __init__(
        self,
        mesh: EchoMesh,
        evidence: Path,
        *,
        seed: int,
        ledger: LedgerAccess,
        say: Callable[[str], None] = print,
    ) -> None:
        self._mesh = mesh
        self._evidence = evidence
        self._seed = seed
        self._say = say
        self._random = Random(f"{seed}/victims")
        self._victims = Victims(mesh.process.pid)
        self._prober = Customer(account=PROBER, key=mesh.account_keys[PROBER])
        self._soundness = Soundness(mesh, ledger, records_nonces=True)
        self._run = Run(seed=seed)

    def run(self, count: int, *, check_every: int) -> Run:
        """Do the rounds, checking after every ``check_every`` of them and at the end; stop at the first violation."""
        began = time.monotonic()
        customers = [Customer(account=name, key=self._mesh.account_keys[name]) for name in ACCOUNTS]
        client = ChatClient(self._mesh.url)
        log = self._evidence / "exchanges.ndjson"
        with ChatLoad(client, customers, clients=_CLIENTS, seed=self._seed, log=log) as load:
            for each in rounds(self._seed, count):
                self._round(each, load)
                if not self._run.verdict.is_clean or each.number % check_every == 0 or each.number == count:
                    self._check(load)
                if not self._run.verdict.is_clean:
                    break
            self._run.exchanges = load.seen
        self._run.wall_s = time.monotonic() - began
        if not self._run.verdict.is_clean:
            self._keep_logs()
        return self._run

    def _round(self, each: Round, load: ChatLoad) -> None:
        began = time.monotonic()
        for blow in each.blows:
            self._run.kills[blow.target] += self._strike(blow)
        struck = time.monotonic()
        recovery = self._recover(struck, load)
        blows = ", ".join(f"{blow.count} {blow.target}{' again' if blow.successor else ''}" for blow in each.blows)
        if recovery is not None:
            for target in each.targets:
                self._run.recoveries[target].append(recovery)
            self._say(
                f"round {each.number}: killed {blows}; answered after {recovery.answered_s:.1f} s, "
                f"signed after {recovery.signed_s:.1f} s, whole after {recovery.whole_s:.1f} s"
            )
        else:
            self._say(f"round {each.number}: killed {blows}; NOT RECOVERED")
        self._run.rounds_done = each.number
        self._run.round_s.append(time.monotonic() - began)
        with (self._evidence / "rounds.ndjson").open("a") as file:
            recovered = None if recovery is None else asdict(recovery)
            file.write(json.dumps({**asdict(each), "struck_s": struck, "recovery": recovered}) + "\n")

    def _strike(self, blow: Blow) -> int:
        if blow.successor:
            _wait(lambda: bool(self._victims.living(blow.target)), _SUCCESSOR_WITHIN_S)
        time.sleep(blow.after_s)
        return self._victims.kill(blow.target, blow.count, self._random)

    def _recover(self, struck: float, load: ChatLoad) -> Recovery | None:
        """Ask until one question that was asked after the blow is answered, and its receipt signed."""
        answers: list[Exchange] = []

        def is_answered() -> bool:
            exchange = load.ask(self._prober)
            if exchange.outcome == "answered":
                answers.append(exchange)
            return bool(answers)

        if not _wait(is_answered, _RECOVERS_WITHIN_S):
            return self._never("answered no question")
        answered_s = time.monotonic() - struck
        if not _wait(lambda: self._is_signed(answers[0]), _RECOVERS_WITHIN_S):
            return self._never(f"did not sign {answers[0].receipt_id}")
        signed_s = time.monotonic() - struck
        if not _wait(self._victims.is_whole, _RECOVERS_WITHIN_S):
            there = {target: len(self._victims.living(target)) for target in TITLES}
            return self._never(f"was not whole: {there}")
        return Recovery(answered_s=answered_s, signed_s=signed_s, whole_s=time.monotonic() - struck)

    def _never(self, what: str) -> None:
        self._run.verdict.findings["recovery"].append(f"the mesh {what} within {_RECOVERS_WITHIN_S:g} s")

    def _is_signed(self, exchange: Exchange) -> bool:
        with suppress(requests.RequestException):
            response = requests.get(
                f"{self._mesh.url}/v1/receipts/{exchange.receipt_id}",
                headers={"Authorization": f"Bearer {self._prober.key}"},
                timeout=30,
            )
            return response.ok and response.json()["verification"]["signature"] is not None
        return False

    def _check(self, load: ChatLoad) -> None:
        self._say("checking …")
        quiet = load.pause(_QUIET_WITHIN_S)
        verdict = self._soundness.judge(load.seen)
        if not quiet:
            verdict.findings["quiet"].append(f"a request was still under way after {_QUIET_WITHIN_S:g} s")
        verdict.findings["recovery"] += self._run.verdict.findings["recovery"]
        self._run.verdict = verdict
        load.resume()

    def _keep_logs(self) -> None:
        logs = Path(DataFolder(self._mesh.data_dir).running().logs)
        shutil.copytree(logs, self._evidence / "ray-logs", dirs_exist_ok=True, ignore_dangling_symlinks=True)
        there = [f"{each.pid} {' '.join(each.cmdline())}" for each in _family(self._mesh.process.pid)]
        (self._evidence / "processes.txt").write_text("\n".join(there))


def _family(pid: int) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]


def _wait(holds: Callable[[], bool], deadline_s: float) -> bool:
    give_up = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(_POLL_S)
    return True
