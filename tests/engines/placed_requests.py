"""Where requests run, by their receipts: where the plan said, where the grid is clean, and never against a pin."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import requests
from chat_load import ChatClient, Customer, Exchange
from engine_sites import ALLOW_LISTED, REFRESH_S, RESIDENT, EngineSites
from soundness import LedgerAccess, Verdict

from mesh.client import MeshClient

_PROMPTS: Final = (
    "Name three rivers.",
    "What is a joule?",
    "Write one line about bread.",
    "How many days has a week?",
    "Translate 'good morning' into French.",
)
_TAUGHT_EACH: Final = 12
_FOLLOWED_EACH: Final = 20
_LIGHT: Final = 3
_AT_ONCE: Final = 8
_MOST_TOKENS: Final = 4
_MOVES_WITHIN_S: Final = 15.0
_GRID_FRESH_FOR_S: Final = 1.0
_SLACK_S: Final = 0.5
"""The planner looks at the feed once a second; the feed's own thread may have to wait for a busy processor."""

_REGIONS: Final = (
    *(None,) * 4,
    *("eu-fi", "eu-de", "us-east", "EU-DE"),
    *("eu", "us", "EU"),
    *("FI", "DE", "US", "fi"),
    *("ap-south", "europe", "eu-f", "GB", "east"),
)
_NO_SUCH_MODEL: Final = "smollm2"
_BECAUSE: Final = ("the request is pinned to", "the account's data must stay in", "the account allows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One of the mixed requests; the pools that its pins leave."""

    customer: Customer
    kind: str
    region: str | None
    model: str
    prompt: str
    max_tokens: int
    allowed: frozenset[str]

    @property
    def status(self) -> int:
        """What it must be answered with while every pool is there."""
        if self.model == _NO_SUCH_MODEL:
            return 404
        return 200 if self.allowed else 422


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A grid that became the cleanest; ``moved_s`` until the first request that was accepted for its pool."""

    pool: str
    moved_s: float | None
    strays: int

    @property
    def told(self) -> str:
        """In words."""
        took = "it did not move" if self.moved_s is None else f"{self.moved_s:.2f} s until the first request there"
        return f"{took}, {self.strays} requests elsewhere past the refresh"


class PlacedRequests:
    """Asks a mesh of `write_engine_sites`; ``customers`` are by account."""

    def __init__(
        self, url: str, sites: EngineSites, ledger: LedgerAccess, customers: Mapping[str, Customer], free: str
    ) -> None:
        """``free`` is an account without pins."""
        self._client = ChatClient(url)
        self._explain = MeshClient(url, customers[free].key).explain
        self._sites = sites
        self._ledger = ledger
        self._customers = customers
        self._free = free
        self.exchanges: list[Exchange] = []

    def follow_the_grid(self, verdict: Verdict, say: Callable[[str], None]) -> None:
        """Make each pool's grid the cleanest in turn; time the move, then compare requests with their explanations."""
        pools = list(self._sites.places)
        self._teach()
        moves = [self._move_to(pool) for pool in (*pools[1:], pools[0])]
        for move in moves:
            say(f"the cleanest grid is now that of {move.pool}: {move.told}")
            if move.moved_s is None or move.strays:
                verdict.findings["carbon"].append(f"{move.pool}: {move.told}")
        seconds = ", ".join("never" if each.moved_s is None else f"{each.moved_s:.2f} s" for each in moves)
        verdict.figures["carbon"] = f"requests moved {seconds} after a file was written (refresh {REFRESH_S:g} s)"
        followed, total = self._follow(verdict, pools)
        verdict.figures["explain"] = f"{followed} of {total} auto requests went where /v1/explain said"
        say(verdict.figures["explain"])

    def _teach(self) -> None:
        """Until the energy of each pool's tokens is learned; a prior that is far off may outweigh a clean grid."""
        for place in self._sites.places.values():
            for index in range(_TAUGHT_EACH):
                self._ask(self._auto(index), region=place.region)

    def _move_to(self, pool: str) -> Move:
        self._sites.cleanest(pool)
        written_ns, times = time.time_ns(), []
        give_up = time.monotonic() + _MOVES_WITHIN_S
        late_after_s = REFRESH_S + _GRID_FRESH_FOR_S + _SLACK_S
        while time.monotonic() < give_up:
            receipt = self._receipt(self._ask(self._auto(0)))
            accepted_s = (receipt["placement"]["accepted_unix_ns"] - written_ns) / 1e9
            times.append((accepted_s, self._pool_of(receipt)))
            if times[-1][1] == pool and accepted_s > late_after_s:
                break
        there = [at for at, where in times if where == pool]
        strays = sum(where != pool and at > late_after_s for at, where in times)
        return Move(pool=pool, moved_s=min(there, default=None), strays=strays)

    def _follow(self, verdict: Verdict, pools: Sequence[str]) -> tuple[int, int]:
        followed = total = 0
        for pool in pools:
            self._move_to(pool)
            with ThreadPoolExecutor(_LIGHT) as threads:
                pairs = list(threads.map(self._explained, range(_FOLLOWED_EACH)))
            for said, exchange in pairs:
                receipt = self._receipt(exchange)
                where, first = self._pool_of(receipt), receipt["placement"]["candidates"][0]["pool"]
                total += 1
                followed += said == where == first
                if not said == where == first:
                    told = f"{exchange.receipt_id}: explained {said}, its own plan {first}, ran at {where}"
                    verdict.findings["explain"].append(told)
        return followed, total

    def _explained(self, index: int) -> tuple[str, Exchange]:
        body = self._auto(index)
        return self._explain(body)["candidates"][0]["pool"], self._ask(body)

    def _auto(self, index: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": _PROMPTS[index % len(_PROMPTS)]}]
        return {"model": "auto", "messages": messages, "max_tokens": _MOST_TOKENS}

    def _ask(self, body: Mapping[str, Any], *, region: str | None = None) -> Exchange:
        customer, headers = self._customers[self._free], {} if region is None else {"X-Region": region}
        exchange = self._client.send(customer, "unary", body, words=_MOST_TOKENS, headers=headers)
        if exchange.outcome != "answered":
            raise AssertionError(f"an unpinned request was not answered: {exchange}")
        self.exchanges.append(exchange)
        return exchange

    def _receipt(self, exchange: Exchange) -> Mapping[str, Any]:
        return self._receipts([exchange])[str(exchange.receipt_id)]

    def _receipts(self, exchanges: Sequence[Exchange]) -> Mapping[str, Mapping[str, Any]]:
        """From the ledger itself, by their ids; there is none of a request that was refused."""
        ids = [each.receipt_id for each in exchanges if each.receipt_id is not None]
        with closing(self._ledger.connect()) as connection:
            query = "SELECT signed_bytes FROM receipts WHERE receipt_id = ?"
            found = [connection.execute(query, (each,)).fetchone() for each in ids]
        return {each: json.loads(row[0]) for each, row in zip(ids, found, strict=True) if row is not None}

    def _pool_of(self, receipt: Mapping[str, Any]) -> str:
        return self._sites.pool_at(receipt["silicon"]["operator"], receipt["silicon"]["region"])

    def mixed(self, count: int, *, seed: int, verdict: Verdict, say: Callable[[str], None]) -> None:
        """So many pinned and free requests of every kind at once; each must have kept its pins."""
        began, random = time.monotonic(), Random(f"{seed}/mixed")
        asked = [self._draw(random) for _ in range(count)]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            exchanges = list(threads.map(self._send, asked))
        self.exchanges += [each for each in exchanges if each.receipt_id is not None]
        receipts, findings, ran = self._receipts(exchanges), verdict.findings["pins"], Counter[str]()
        for each, exchange in zip(asked, exchanges, strict=True):
            receipt = receipts.get(str(exchange.receipt_id))
            findings += [f"{_told(each)}: {wrong}" for wrong in self._wrongs(each, exchange, receipt)]
            ran[self._pool_of(receipt) if receipt else f"status {exchange.status}"] += 1
        spread = ", ".join(f"{times} {where}" for where, times in sorted(ran.items()))
        wall_s = time.monotonic() - began
        verdict.figures["pins"] = f"{count} mixed requests, {len(findings)} violations; {wall_s:.0f} s"
        verdict.figures["where"] = spread
        say(f"{verdict.figures['pins']}: {spread}")

    def _draw(self, random: Random) -> Asked:
        account = random.choices((self._free, ALLOW_LISTED, RESIDENT), (2, 1, 1))[0]
        region = random.choice(_REGIONS)
        return Asked(
            customer=self._customers[account],
            kind=random.choices(("unary", "stream"), (7, 3))[0],
            region=region,
            model=random.choices(("auto", self._sites.model, _NO_SUCH_MODEL), (70, 27, 3))[0],
            prompt=random.choice(_PROMPTS),
            max_tokens=random.randint(1, _MOST_TOKENS),
            allowed=frozenset(key for key, place in self._sites.places.items() if place.keeps(region, account)),
        )

    def _send(self, asked: Asked) -> Exchange:
        body = {
            "model": asked.model,
            "messages": [{"role": "user", "content": asked.prompt}],
            "max_tokens": asked.max_tokens,
        }
        headers = {} if asked.region is None else {"X-Region": asked.region}
        return self._client.send(asked.customer, asked.kind, body, words=asked.max_tokens, headers=headers)

    def _wrongs(self, asked: Asked, exchange: Exchange, receipt: Mapping[str, Any] | None) -> list[str]:
        """What is not as the pins say; most often nothing."""
        if exchange.status != asked.status:
            return [f"status {exchange.status} in place of {asked.status}: {exchange.detail}"]
        if asked.status != requests.codes.ok:
            return self._bad_refusal(asked, str(exchange.detail))
        if exchange.outcome != "answered" or receipt is None:
            return [f"{exchange.outcome}, receipt {exchange.receipt_id}: {exchange.detail}"]
        placement = receipt["placement"]
        where, model = self._pool_of(receipt), receipt["workload"]["model"]
        candidates = {each["pool"] for each in placement["candidates"]}
        refused = {each["pool"] for each in placement["rejected"]}
        checks = {
            f"it ran at {where}": where in asked.allowed,
            f"model {model}": model == self._sites.model,
            f"candidates {sorted(candidates)}": candidates == asked.allowed,
            f"refused {sorted(refused)}": refused == self._sites.places.keys() - asked.allowed,
            f"pins {placement['pins']}": placement["pins"]["region"] == asked.region
            and placement["pins"]["model"] == (None if asked.model == "auto" else asked.model)
            and bool(placement["pins"]["residency"]) == (asked.customer.account == RESIDENT)
            and (placement["pins"]["operators"] is not None) == (asked.customer.account == ALLOW_LISTED),
        }
        return [wrong for wrong, holds in checks.items() if not holds]

    def _bad_refusal(self, asked: Asked, said: str) -> list[str]:
        if asked.status == requests.codes.not_found:
            return [] if _NO_SUCH_MODEL in said else [f"it does not name the model: {said}"]
        untold = [pool for pool in self._sites.places if f"{pool}: " not in said]
        has_why = any(because in said for because in _BECAUSE)
        return [] if has_why and not untold else [f"it gives no reason for {untold}: {said}"]


def _told(asked: Asked) -> str:
    return f"{asked.customer.account} {asked.kind} X-Region {asked.region} model {asked.model}"
