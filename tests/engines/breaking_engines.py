"""Faults of real engines in the middle of greedy answers, whose every character is known from before."""

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import psutil
import requests
from chat_load import Customer, Exchange
from engine_sites import EngineSites
from pool_processes import PoolProcesses, send
from soundness import Verdict
from word_client import KnownAnswer, WordClient

from mesh.client import MeshClient
from mesh.errors import MeshError

FAULTS: Final = ("replica killed", "engine killed", "node lost", "replica stopped", "engine stopped")
REQUESTS: Final = ("stream", "unary")

_TOKENS: Final = 48
_ENGINE_PROMPTS: Final = (
    "Write a list of five colours, one per line, with a blank line between them.",
    "Tell a short story about a lighthouse.",
    "Describe bees with many emoji \N{HONEYBEE} \N{SUNFLOWER}.",
)
_UNFAULTED: Final = 2
_STRIKES_AFTER: Final = (0.1, 0.4)
_TRIES: Final = 4
_READY_WITHIN_S: Final = 240.0
_POLL_S: Final = 1.0
_REFUSALS: Final = (502, 503, 504)
_REFUSED_WITHIN_S: Final = 15.0
_LEAVES_AFTER_S: Final = 2.0
_TIMEOUT_S: Final = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, greedily; the answer to it without a fault, and how long that takes."""

    body: Mapping[str, Any]
    known: KnownAnswer
    takes_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One fault and what its client got; ``lost_s`` beyond the same answer without it."""

    fault: str
    request: str
    pool: str
    exchange: Exchange
    outcomes: Sequence[str]
    first_failed: str | None
    resumed_after: int
    lost_s: float


def engine_questions() -> list[dict[str, Any]]:
    """Bodies of a length that doesn't depend on what the model says."""
    return [_body(prompt, {"max_tokens": _TOKENS, "ignore_eos": True}) for prompt in _ENGINE_PROMPTS]


def _body(prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": prompt}], "temperature": 0, **options}


class BreakingEngines:
    """Breaks the pools of a mesh of `write_engine_sites`, one at a time, under its ``customer``'s requests."""

    def __init__(
        self,
        url: str,
        sites: EngineSites,
        customer: Customer,
        processes: PoolProcesses,
        *,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._url = url
        self._sites = sites
        self._customer = customer
        self._processes = processes
        self._random = Random(f"{seed}/engines")
        self._say = say
        self._client = WordClient(url)
        self._mesh = MeshClient(url, customer.key)
        self.exchanges: list[Exchange] = []
        self.broken: list[Broken] = []
        self.pinned: list[str] = []

    def run(self, bodies: Sequence[Mapping[str, Any]], faults: Sequence[str], of_each: int, verdict: Verdict) -> None:
        """So many of each fault, in streams and unary answers by turns; a fault that met no answer is done again."""
        questions = [self._question(body) for body in bodies]
        takes = [f"{each.takes_s[kind]:.1f} s {kind}" for each in questions for kind in REQUESTS]
        self._say(f"answers without a fault: {', '.join(takes)}")
        for number, (fault, request) in enumerate(_plan(faults, of_each)):
            question = questions[number % len(questions)]
            for _ in range(_TRIES):
                broken = self._break(fault, request, question, goes_on=number % 2 == 0)
                self._judge(broken, verdict)
                if broken.outcomes:
                    self.broken.append(broken)
                    break
            else:
                verdict.findings["faults"].append(f"{fault} met no {request} answer in {_TRIES} tries")
        self.wait_until_ready()

    def _question(self, body: Mapping[str, Any]) -> Question:
        """Ask for it until its answer and its pace are known; it must be the same each time."""
        response = requests.post(
            f"{self._url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {self._customer.key}"},
            timeout=_TIMEOUT_S,
        )
        response.raise_for_status()
        answer = response.json()
        choice = answer["choices"][0]
        known = KnownAnswer(
            text=choice["message"]["content"],
            tokens=answer["usage"]["completion_tokens"],
            finish=choice["finish_reason"],
        )
        takes_s = {}
        for kind in REQUESTS:
            asked = [self._ask(kind, body, known) for _ in range(_UNFAULTED)]
            wrong = [each for each in asked if each.outcome != "answered"]
            assert not wrong, f"an answer without a fault was not as before: {wrong}"
            takes_s[kind] = statistics.median(each.ended_s - each.begun_s for each in asked)
        return Question(body=body, known=known, takes_s=takes_s)

    def _ask(
        self, kind: str, body: Mapping[str, Any], known: KnownAnswer, has_event: Callable[[int], None] = lambda _: None
    ) -> Exchange:
        options = {"stream_options": {"include_usage": True}} if kind == "stream" else {}
        exchange = self._client.ask_known(self._customer, kind, {**body, **options}, known, has_event=has_event)
        self.exchanges.append(exchange)
        return exchange

    def _break(self, fault: str, request: str, question: Question, *, goes_on: bool) -> Broken:
        self.wait_until_ready()
        pool = self._mesh.explain(question.body)["candidates"][0]["pool"]
        victims = self._victims(fault, pool)
        number = signal.SIGSTOP if fault.endswith("stopped") else signal.SIGKILL
        share = self._random.uniform(*_STRIKES_AFTER)
        struck: list[float] = []

        def strike() -> None:
            for victim in victims:
                send(victim, number)
            struck.append(time.monotonic())

        if request == "stream":
            strikes_at = max(2, round(share * question.known.tokens))
            exchange = self._ask(
                request, question.body, question.known, lambda events: strike() if events == strikes_at else None
            )
        else:
            timer = threading.Timer(share * question.takes_s[request], strike)
            timer.start()
            exchange = self._ask(request, question.body, question.known)
            timer.join()
        if number == signal.SIGSTOP:
            for victim in victims:
                send(victim, signal.SIGCONT if goes_on else signal.SIGKILL)
        elif fault == "node lost":
            self._ask_the_lost(pool)
        when = f"{struck[0] - exchange.begun_s:.2f}" if struck else "never"
        self._say(f"{fault} in a {request} answer on {pool}, at {when} of {exchange.ended_s - exchange.begun_s:.2f} s:")
        return self._told(fault, request, pool, question, exchange)

    def _victims(self, fault: str, pool: str) -> list[psutil.Process]:
        found = {
            "replica": self._processes.replicas,
            "engine": self._processes.engines,
            "node": self._processes.node,
        }[fault.partition(" ")[0]](pool)
        assert found, f"{pool} has no process to break: {fault}"
        return found

    def _told(self, fault: str, request: str, pool: str, question: Question, exchange: Exchange) -> Broken:
        attempts: list[dict[str, Any]] = []
        resumed_after = 0
        if exchange.receipt_id is not None and exchange.outcome == "answered":
            response = requests.get(
                f"{self._url}/v1/receipts/{exchange.receipt_id}",
                headers={"Authorization": f"Bearer {self._customer.key}"},
                timeout=_TIMEOUT_S,
            )
            response.raise_for_status()
            receipt = response.json()
            attempts, resumed_after = receipt["execution"]["attempts"], receipt["placement"]["resumed_after_tokens"]
        broken = Broken(
            fault=fault,
            request=request,
            pool=pool,
            exchange=exchange,
            outcomes=[each["outcome"] for each in attempts],
            first_failed=attempts[0]["pool"] if attempts else None,
            resumed_after=resumed_after,
            lost_s=exchange.ended_s - exchange.begun_s - question.takes_s[request],
        )
        self._say(
            f"  {exchange.outcome}, {broken.lost_s:.2f} s lost, attempts that failed: "
            f"{', '.join(broken.outcomes) or 'none'}; resumed after {resumed_after} tokens {exchange.detail or ''}"
        )
        return broken

    def _judge(self, broken: Broken, verdict: Verdict) -> None:
        if broken.exchange.outcome != "answered":
            told = f"{broken.fault}, {broken.request}: {broken.exchange.outcome} {broken.exchange.status}"
            verdict.findings["faults"].append(f"{told}: {broken.exchange.detail}")
        if broken.first_failed not in (None, broken.pool):
            told = f"its first failed attempt was on {broken.first_failed}"
            verdict.findings["faults"].append(f"{broken.fault} on {broken.pool}: {told}")

    def _ask_the_lost(self, pool: str) -> None:
        """Requests that are pinned to the lost place: refused with the reason, or kept waiting until it is back."""
        place = self._sites.places[pool]
        give_up = time.monotonic() + _REFUSED_WITHIN_S
        while time.monotonic() < give_up:
            try:
                response = self._pinned(place.region, timeout_s=_LEAVES_AFTER_S)
            except requests.Timeout:
                self.pinned.append("")
                continue
            if response.ok:
                where = response.headers["X-Routed-To"].rpartition("/")[0]
                self.pinned.append("" if where == f"{place.operator}/{place.region}" else f"it went to {where}")
                continue
            message = response.json()["error"]["message"]
            is_told = response.status_code in _REFUSALS
            self.pinned.append("" if is_told else f"status {response.status_code}: {message}")
            if response.status_code == requests.codes.unavailable and "Retry-After" in response.headers:
                self._say(f"  pinned to {place.region} meanwhile: 503, {message}")
                return
            time.sleep(_POLL_S)

    def _pinned(self, region: str, *, timeout_s: float = _TIMEOUT_S) -> requests.Response:
        return requests.post(
            f"{self._url}/v1/chat/completions",
            json=_body("Say yes.", {"max_tokens": 1}),
            headers={"Authorization": f"Bearer {self._customer.key}", "X-Region": region},
            timeout=timeout_s,
        )

    def wait_until_ready(self) -> None:
        """Until every pool answers what is pinned to it."""
        give_up = time.monotonic() + _READY_WITHIN_S
        while not self._is_ready():
            if time.monotonic() > give_up:
                raise TimeoutError(f"the pools were not all back within {_READY_WITHIN_S:g} s: {self._mesh.pools()}")
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        try:
            seen = self._mesh.pools()
        except MeshError:
            return False
        if any(each["replicas"]["running"] == 0 or each["unavailable"] for each in seen):
            return False
        return all(self._pinned(place.region).ok for place in self._sites.places.values())


def _plan(faults: Sequence[str], of_each: int) -> Iterator[tuple[str, str]]:
    """The stops first: what is stopped and goes on needs no new start."""
    for fault in sorted(faults, key=lambda each: not each.endswith("stopped")):
        for index in range(of_each):
            yield fault, REQUESTS[index % len(REQUESTS)]
