"""The one error of FROST: it says what was wrong and whose fault it was."""

from collections.abc import Iterable

from receipts.errors import ReceiptsError


class FrostError(ReceiptsError):
    """A value, package or share that the protocol must not accept.

    ``culprits`` holds the identifiers of the participants who sent it. It is empty when nobody else is at
    fault, such as for a scalar read from our own disk or a nonce used twice.
    """

    def __init__(self, message: str, *, culprits: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.culprits = frozenset(culprits)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle as cls(*args); without this the culprits would be lost between processes.
        return _rebuild, (str(self), tuple(sorted(self.culprits)))


def _rebuild(message: str, culprits: tuple[int, ...]) -> FrostError:
    return FrostError(message, culprits=culprits)
