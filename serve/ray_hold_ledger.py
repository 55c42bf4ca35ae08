"""The ledger actor as the place of holds."""

from collections.abc import Sequence
from typing import Any, cast

from ray.actor import ActorHandle

from receipts.holds import HoldAnswer


class RayHoldLedger:
    """The ledger actor as a `HoldLedger`."""

    def __init__(self, ledger: ActorHandle[Any]) -> None:
        self._ledger = ledger

    async def place(self, account: str, request_id: str, usd_picos: int, lease_s: float) -> HoldAnswer:
        """As `HoldLedger.place`."""
        return cast("HoldAnswer", await self._ledger.place_hold.remote(account, request_id, usd_picos, lease_s))

    async def renew(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> None:
        """As `HoldLedger.renew`."""
        await self._ledger.renew_holds.remote(holds, lease_s)

    def release(self, account: str, request_id: str) -> None:
        """As `HoldLedger.release`."""
        self._ledger.release_hold.remote(account, request_id)
