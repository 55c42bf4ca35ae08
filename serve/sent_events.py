"""The events of a stream that its client has, kept for as long as the stream may have to be resumed."""

import zlib
from collections.abc import Iterator

from serve.messages import EVENT_END

_BLOCK_BYTES = 64 * 1024
_LEVEL = 1


class SentEvents:
    """In the order in which they were sent, each ending with its blank line, and compressed by the block.

    The chunks of a stream are much alike: what is kept is a tenth or less of what was sent.
    """

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._newest = bytearray()
        self._kept_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """The memory that they take."""
        return self._kept_bytes + len(self._newest)

    def add(self, event: bytes) -> None:
        """One more has been sent."""
        self._newest += event
        if len(self._newest) >= _BLOCK_BYTES:
            self._blocks.append(zlib.compress(self._newest, _LEVEL))
            self._kept_bytes += len(self._blocks[-1])
            self._newest.clear()

    def __iter__(self) -> Iterator[bytes]:
        for block in (*map(zlib.decompress, self._blocks), bytes(self._newest)):
            yield from (event + EVENT_END for event in block.split(EVENT_END)[:-1])
