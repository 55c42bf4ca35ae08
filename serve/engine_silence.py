"""Whether an engine has stopped giving anything while it has requests: what a process that is alive cannot say."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class EngineSilence:
    """Counts the time in which requests ran and none got anything. ``clock`` counts seconds and never goes back.

    Time without requests doesn't count, and requests that were given up in silence don't end it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._since_s = 0.0
        self._before_s = 0.0

    @property
    def seconds(self) -> float:
        """How long it has been silent."""
        return self._before_s + (self._clock() - self._since_s if self._running else 0.0)

    @contextmanager
    def listened_to(self) -> Iterator[None]:
        """The engine has one request more, until the block ends."""
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    def end(self) -> None:
        """The engine gave something to one of its requests."""
        self._before_s = 0.0
        self._since_s = self._clock()

    def _count(self, more: int) -> None:
        self._before_s = self.seconds
        self._since_s = self._clock()
        self._running += more
