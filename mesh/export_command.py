"""`jc export`: what it shows, and that it leaves nothing half when it is ended."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from mesh.client import MeshClient
from mesh.export_view import export_view


def run_export(
    client: MeshClient,
    output: Path,
    *,
    since: str | None,
    customer_tag: str | None,
    overwrite: bool,
    console: Console,
) -> None:
    """Export, and say what is in the file and how it is checked; raises what `MeshClient.export` does."""
    with _ended_as_by_hand(), export_view(console) as view:
        summary = client.export(output, since=since, customer_tag=customer_tag, overwrite=overwrite, view=view)
    which = "" if customer_tag is None else f" with the tag {customer_tag!r}, among those"
    console.print(
        f"wrote {output}: {_receipts(summary.receipts)} of {summary.account}{which} "
        f"from {summary.first_seq} to {summary.last_seq} of its chain, signed under key {summary.key_id}",
        markup=False,
    )
    if summary.unsigned:
        console.print(
            f"{_receipts(summary.unsigned)} left out: not signed yet. Export again once enough signers are back.",
            markup=False,
        )
    console.print(f"check it with: jc verify --key signer_pubkey.hex {output}", markup=False)


def _receipts(count: int) -> str:
    return "1 receipt" if count == 1 else f"{count} receipts"


@contextmanager
def _ended_as_by_hand() -> Iterator[None]:
    """A hang-up or SIGTERM ends the block as Ctrl-C does, so that what it has begun is cleared away."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(each, _interrupt) for each in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt
