"""Wakes a sleeping pool ahead of its first request, by one that asks for nothing but the replica's health."""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_LOG = logging.getLogger(__name__)
_PATIENCE = 3.0
"""How many times the usual a waking may take: one that waited for good would ask for a replica for good."""


class Bookkeeping(Protocol):
    """Counts what is on its way to each pool."""

    def took(self, pool: str) -> None:
        """One more."""

    def gave_back(self, pool: str, service_s: float | None) -> None:
        """One less."""

    def wake_s(self, pool: str) -> float:
        """Seconds that a waking takes."""


class PoolWaker:
    """``handles`` are by pool. To the pool it counts as a request, so that Ray Serve and the plan see it coming."""

    def __init__(self, bookkeeping: Bookkeeping, handles: "Mapping[str, DeploymentHandle[Any]]") -> None:
        self._bookkeeping = bookkeeping
        self._handles = handles
        self._waking: dict[str, asyncio.Task[None]] = {}

    def wake(self, pool: str) -> None:
        """Begin it, unless it is under way; nobody waits for it."""
        if pool not in self._waking:
            self._waking[pool] = asyncio.create_task(self._ask(pool))

    async def _ask(self, pool: str) -> None:
        _LOG.info("waking %s: every pool that ranks before it is full", pool)
        self._bookkeeping.took(pool)
        answer = self._handles[pool].check_health.remote()
        try:
            async with asyncio.timeout(_PATIENCE * self._bookkeeping.wake_s(pool)):
                await answer
        except Exception as error:  # noqa: BLE001 - a pool that doesn't wake is the watch's to report
            _LOG.warning("%s did not wake: %s", pool, type(error).__name__)
        finally:
            answer.cancel()  # type: ignore[no-untyped-call]
            self._bookkeeping.gave_back(pool, None)
            del self._waking[pool]
