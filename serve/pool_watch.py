"""Looks at the pools each second, off every request's way: which replicas run, and which nodes could carry them."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from clusters.nodes import Inventory
from serve.pools import Pool, deployment_name

_LOG = logging.getLogger(__name__)
_EVERY_S = 1.0
# In Ray Serve's words.
_BROKEN = ("UNHEALTHY", "DEPLOY_FAILED")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentState:
    """What Ray Serve says of one deployment: its status, how many replicas run and how many are on their way."""

    status: str
    running: int
    coming: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolsSeen:
    """One look: replicas that run, and that are wanted (running or coming), by pool; why others cannot serve now.

    ``unavailable`` is for clients and their receipts; ``details`` may name nodes, files and addresses, for operators.
    """

    running: Mapping[str, int]
    wanted: Mapping[str, int]
    unavailable: Mapping[str, str]
    details: Mapping[str, str]


class PoolsView(Protocol):
    """What takes in each look."""

    def see(self, replicas: Mapping[str, int], unavailable: Mapping[str, str], wanted: Mapping[str, int]) -> None:
        """The state of every pool, as of now."""


class PoolWatch:
    """Takes a look each second and passes it on; a look that fails changes nothing, and the next one is taken.

    ``look`` may block: it runs in a thread. ``wake`` is told a pool that should start a replica ahead of its first
    request, when ``next_to_wake`` names one.
    """

    def __init__(
        self,
        view: PoolsView,
        look: Callable[[], PoolsSeen],
        *,
        next_to_wake: Callable[[], str | None],
        wake: Callable[[str], None],
    ) -> None:
        self._view = view
        self._look = look
        self._next_to_wake = next_to_wake
        self._wake = wake
        self._is_blind = False
        self._told: Mapping[str, str] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look_once()
            await asyncio.sleep(_EVERY_S)

    async def look_once(self) -> None:
        """One look. The controller may be away while it restarts: what was seen last stays."""
        try:
            seen = await asyncio.to_thread(self._look)
            self._tell(seen.details)
            self._view.see(seen.running, seen.unavailable, seen.wanted)
            if (pool := self._next_to_wake()) is not None:
                self._wake(pool)
            self._is_blind = False
        except Exception as error:  # noqa: BLE001 - whatever it is, the watch must go on
            if not self._is_blind:
                _LOG.warning("the pools can't be seen now: %s", type(error).__name__, exc_info=True)
            self._is_blind = True

    def _tell(self, details: Mapping[str, str]) -> None:
        for pool, detail in details.items():
            if self._told.get(pool) != detail:
                _LOG.warning("%s can't serve: %s", pool, detail)
        self._told = details


def pools_seen(
    pools: Mapping[str, Pool],
    deployments: Mapping[str, DeploymentState],
    selectors: Mapping[str, Mapping[str, str]],
    nodes: Inventory,
) -> PoolsSeen:
    """Each pool's replicas, and the reason where it has no node to run on, or nothing that runs or is on its way."""
    running: dict[str, int] = {}
    wanted: dict[str, int] = {}
    unavailable: dict[str, str] = {}
    details: dict[str, str] = {}
    for key, pool in pools.items():
        state = deployments.get(deployment_name(key))
        running[key] = 0 if state is None else state.running
        wanted[key] = 0 if state is None else state.running + state.coming
        if (without_node := nodes.why_unavailable(selectors[key])) is not None:
            unavailable[key], details[key] = "no node that may carry it is there and accepted", without_node
        elif (trouble := _trouble(pool, state)) is not None:
            unavailable[key] = trouble
            if state is not None and state.message:
                details[key] = f"{trouble}: {_last_line(state.message)}"
    return PoolsSeen(running=running, wanted=wanted, unavailable=unavailable, details=details)


def _trouble(pool: Pool, state: DeploymentState | None) -> str | None:
    if state is None:
        return "it is not deployed"
    if state.running or state.coming:
        return None
    if state.status in _BROKEN:
        return "its replicas do not start"
    return None if pool.least_replicas == 0 else "none of its replicas runs"


def _last_line(message: str) -> str:
    return message.strip().rpartition("\n")[2]
