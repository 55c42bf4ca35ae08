"""The backlog goes on being shown."""

import asyncio
from types import SimpleNamespace

from receipts.ledger_actor import _show
from receipts.ledger_writer import Backlog


class Metrics:
    """Takes nothing, at first."""

    def __init__(self) -> None:
        self.asked = 0

    def show(self, backlog: Backlog, now_unix_ns: int) -> None:
        self.asked += 1
        raise RuntimeError("no metrics agent")


async def test_an_error_does_not_end_it(caplog) -> None:
    metrics = Metrics()
    writer = SimpleNamespace(backlog=Backlog(count=0, oldest_unix_ns=None))
    showing = asyncio.create_task(_show(writer, metrics))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    assert (metrics.asked, showing.done()) == (1, False)
    assert "the backlog could not be shown as a metric" in caplog.text
    showing.cancel()
