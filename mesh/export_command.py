"""`jc export`: what it shows, and that it leaves nothing half when it is ended."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mesh.client import MeshClient
from mesh.export import ExportView

_LINES: Final = 10


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
    with _ended_as_by_hand(), _view(console) as view:
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
    console.print("check it with:", markup=False)
    console.print("  jc key -o signer_pubkey.hex", markup=False)
    console.print(f"  jc verify --key signer_pubkey.hex {shlex.quote(str(output))}", markup=False)


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


@contextmanager
def _view(console: Console) -> Iterator[ExportView]:
    """The view that fits the console; a bar is gone when the block ends."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress)


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("asking the mesh", total=None)

    def note(self, text: str) -> None:
        """Beside the bar."""
        self._progress.update(self._task, description=text)

    def advanced(self, done: int, total: int) -> None:
        """On the bar."""
        self._progress.update(self._task, description="receipts", completed=done, total=total)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._tenths = 0

    def note(self, text: str) -> None:
        """Once for each text."""
        if text != self._said:
            self._said = text
            self._console.print(f"{text} …", highlight=False)

    def advanced(self, done: int, total: int) -> None:
        """At each tenth of the way."""
        tenths = _LINES * done // total
        if tenths > self._tenths:
            self._tenths = tenths
            self._console.print(f"{done} of {total}", highlight=False)
