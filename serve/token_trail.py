"""The token ids of one answer, as they go from the engine to vLLM's serving layer."""

from collections.abc import Awaitable, Callable, Sequence


class TokenTrail:
    """Those that earlier attempts delivered, and those made known here since.

    ``seen`` is how many the serving layer was handed, of all generations that there are for the answer. ``replay``
    brings the next delivered token before it; None where there is nothing to replay. ``is_at_length`` says that the
    answer is to end as soon as it can.
    """

    def __init__(self, delivered: Sequence[int]) -> None:
        self.delivered = tuple(delivered)
        self.seen = 0
        self.replay: Callable[[], Awaitable[None]] | None = None
        self.is_at_length = False
        self._new: list[int] = []

    def add(self, token_ids: Sequence[int]) -> None:
        """The serving layer is handed the answer's next tokens; the first ones are those delivered before."""
        replayed = max(0, len(self.delivered) - self.seen)
        self.seen += len(token_ids)
        self._new.extend(token_ids[replayed:])

    def take(self) -> tuple[int, ...]:
        """The tokens beyond the delivered ones that were handed over since this was last asked."""
        taken = tuple(self._new)
        self._new.clear()
        return taken
