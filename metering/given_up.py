"""Attempts that nobody waits for any more, so that one whose beginning comes late doesn't begin."""

import hashlib

_MOST_REMEMBERED = 4096


class GivenUpAttempts:
    """The newest few thousand of them, each named by the context it would have begun with; a restart forgets them."""

    def __init__(self) -> None:
        self._digests: dict[bytes, None] = {}

    def add(self, request_id: str, context: bytes) -> None:
        """Remember this attempt."""
        self._digests[_digest(request_id, context)] = None
        if len(self._digests) > _MOST_REMEMBERED:
            del self._digests[next(iter(self._digests))]

    def has(self, request_id: str, context: bytes) -> bool:
        """Whether this attempt was given up, as far as is remembered."""
        return _digest(request_id, context) in self._digests


def _digest(request_id: str, context: bytes) -> bytes:
    return hashlib.sha256(request_id.encode() + b"\0" + context).digest()
