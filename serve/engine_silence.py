"""Whether an engine has stopped giving anything while it has requests: what a process that is alive cannot say."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from serve.errors import EngineBroke


class EngineSilence:
    """Counts the time in which requests ran and none got anything. ``clock`` counts seconds and never goes back.

    Time without requests doesn't count, and requests that were given up in silence don't end it. One that computes is
    at work, though it gives nothing: a prompt may take longer to read than anyone waits for it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running = 0
        self._since_s = 0.0
        self._before_s = 0.0
        self._steps: int | None = None

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
        self._steps = None

    async def check(self, stalled_s: float, count_steps: Callable[[], Awaitable[int | None]]) -> None:
        """To be called every second or so; ``count_steps`` says what the engine has computed so far, None: not known.

        It is asked from half of ``stalled_s`` on, so that one long step is no stalling.

        Raises:
            EngineBroke: the engine has given nothing for longer than ``stalled_s``, nor computed anything of late.
        """
        if self.seconds > stalled_s / 2 and (steps := await count_steps()) is not None:
            if self._steps is not None and steps > self._steps:
                self.end()
            else:
                self._steps = steps
        if self.seconds > stalled_s:
            raise EngineBroke(f"its requests have got nothing for {self.seconds:.0f} s, and it computes nothing")

    def _count(self, more: int) -> None:
        self._before_s = self.seconds
        self._since_s = self._clock()
        self._running += more
