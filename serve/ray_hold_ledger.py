"""The ledger actor as the place of holds."""

from collections.abc import Sequence
from typing import Any, cast

from ray.actor import ActorHandle

from receipts.holds import HoldAnswer, HoldWanted, Renewal
from serve.calls_together import CallsTogether


class RayHoldLedger:
    """The ledger actor as a `HoldLedger`, and as a `HoldExtender`."""

    def __init__(self, ledger: ActorHandle[Any]) -> None:
        self._ledger = ledger
        self._place: CallsTogether[HoldWanted, HoldAnswer] = CallsTogether(ledger.place_holds.remote)
        # These wait for the ledger's writer, and must not hold up the others.
        self._place_keyed: CallsTogether[HoldWanted, HoldAnswer] = CallsTogether(ledger.place_holds.remote)

    async def place(self, wanted: HoldWanted) -> HoldAnswer:
        """As `HoldLedger.place`."""
        place = self._place if wanted.idempotency_sha256 is None else self._place_keyed
        return await place(wanted)

    async def renew(self, holds: Sequence[Renewal], lease_s: float) -> None:
        """As `HoldLedger.renew`."""
        await self._ledger.renew_holds.remote(holds, lease_s)

    async def extend(self, holds: Sequence[tuple[str, str, int]], lease_s: float) -> Sequence[int]:
        """As `serve.running_charge.HoldExtender.extend`."""
        return cast("Sequence[int]", await self._ledger.extend_holds.remote(holds, lease_s))

    def release(self, account: str, request_id: str) -> None:
        """As `HoldLedger.release`."""
        self._ledger.release_hold.remote(account, request_id)
