"""Watching an export: a bar in a terminal, a line now and then elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mesh.export import ExportView

_LINES: Final = 10


@contextmanager
def export_view(console: Console) -> Iterator[ExportView]:
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
