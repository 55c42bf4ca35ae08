"""Telling a person which long step runs and how long each took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class Step:
    """A step under way; `note` says where it has got to."""

    def __init__(self, title: str, status: Status) -> None:
        self._title = title
        self._status = status

    def note(self, text: str) -> None:
        """Show ``text`` beside the spinner; nothing is printed where there is no terminal."""
        self._status.update(f"{self._title}: {text}")


class Progress:
    """Steps of a start, a line each when done, with a spinner in between where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Print a line that belongs to the step under way."""
        self._console.print(f"          {text}", style="dim", highlight=False)

    def warn(self, text: str) -> None:
        """Print a line that nobody should miss."""
        self._console.print(f"        ! {text}", style="bold red", highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run one step; its time is printed when it ends well."""
        began = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"         {title} …", highlight=False)
        with self._console.status(title) as status:
            yield Step(title, status)
        self._console.print(f"[green]✓[/green] {time.monotonic() - began:5.1f} s {title}", highlight=False)
