"""The ledger actor as the place of holds: which placings go together."""

import asyncio
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from receipts.holds import HoldAnswer, HoldWanted
from serve.ray_hold_ledger import RayHoldLedger

_PLACED = HoldAnswer(outcome="placed", book_began_ns=1, balance_usd_picos=100, held_usd_picos=0)


class Ledger:
    """As Ray's actor handles have it. What has an idempotency key waits for the writer, which is busy for ever."""

    def __init__(self) -> None:
        self.place_holds = SimpleNamespace(remote=self._place)

    async def _place(self, wanted: Sequence[HoldWanted]) -> Sequence[HoldAnswer]:
        if any(each.idempotency_sha256 is not None for each in wanted):
            await asyncio.Event().wait()
        return [dataclasses.replace(_PLACED, reason=each.request_id) for each in wanted]


def _wanted(request_id: str, idempotency_sha256: str | None = None) -> HoldWanted:
    return HoldWanted(
        account="acme",
        request_id=request_id,
        usd_picos=1,
        lease_s=30,
        key_sha256=bytes(32),
        api_key_id="key",
        workload=None,
        idempotency_sha256=idempotency_sha256,
    )


async def test_a_placing_that_waits_for_the_database_holds_up_none_that_does_not():
    ledger: Any = Ledger()
    holds = RayHoldLedger(ledger)
    waiting = [asyncio.create_task(holds.place(_wanted(f"k{n}", "ab"))) for n in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(holds.place(_wanted(f"r{n}")) for n in range(20)))
    assert [each.reason for each in answers] == [f"r{n}" for n in range(20)]
    assert not any(each.done() for each in waiting)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
