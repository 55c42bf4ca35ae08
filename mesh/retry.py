"""Asking again for what may only be read: a connection that broke, a ledger that restarts, signers that are away."""

from collections.abc import Callable
from typing import Final, TypeVar

from mesh.errors import MeshAway, NotRunning

RETRY_WAITS_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each further try; together longer than a ledger takes to restart."""

_Answer = TypeVar("_Answer")


def retried(ask: Callable[[], _Answer], sleep: Callable[[float], None], *, was_there: bool) -> _Answer:
    """What ``ask`` answers, at one of several tries.

    A mesh that never was there is not waited for: with ``was_there`` false, `NotRunning` is raised at once.

    Raises:
        MeshAway, NotRunning: it did not answer at the last try either.
    """
    for wait_s in RETRY_WAITS_S:
        try:
            return ask()
        except NotRunning:
            if not was_there:
                raise
        except MeshAway:
            pass
        sleep(wait_s)
    return ask()
