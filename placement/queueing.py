"""How long a request would wait at each pool before a replica begins with it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from placement.fleet import Floats
from placement.running_mean import RunningMean

_LEAST_OF_OVERDUE = 0.1


def expected_waits_s(
    *, ongoing: ArrayLike, replicas: ArrayLike, max_ongoing: ArrayLike, service_s: ArrayLike, wake_s: ArrayLike
) -> Floats:
    """Seconds of each pool, from columns of one length or single numbers.

    ``ongoing`` requests are there now, running or waiting; ``replicas`` run, each with up to ``max_ongoing`` at once;
    a request takes ``service_s`` on average, at the load it was learned at; ``wake_s`` is what is left until a replica
    runs, which only a pool without one waits for.

    With room it is 0. Without, every place becomes free once in ``service_s``, one after the other, and the requests
    ahead go first: so it grows in equal steps with the queue. A pool that sleeps has one replica when it has woken,
    and those that wait for the waking are ahead. Nothing here knows of replicas that are only about to start.

    Raises:
        ValueError: a figure is negative or not finite, or no request fits a replica.
    """
    # Multiplied out, so that single numbers and columns go together.
    here, running, each, seconds, waking = np.broadcast_arrays(
        *(np.asarray(figure, dtype=np.float64) for figure in (ongoing, replicas, max_ongoing, service_s, wake_s))
    )
    for name, column in (("ongoing", here), ("replicas", running), ("service_s", seconds), ("wake_s", waking)):
        _refuse_negative(name, column)
    if not ((each >= 1) & np.isfinite(each)).all():
        raise ValueError("max_ongoing must be at least 1")
    places = np.maximum(running, 1) * each
    ahead = np.maximum(here - places + 1, 0)
    waits: Floats = np.where(running > 0, 0.0, waking) + ahead * seconds / places
    return waits


def remaining_wake_s(wake_s: float, waking_for_s: float | None) -> float:
    """What is left of a wake-up that takes ``wake_s`` and began so long ago, or hasn't begun (None).

    One that takes longer than it should is expected to take as long again as it is late, and at least a tenth of the
    usual: one that comes to nothing must not look as if it were about to end, and draw ever more requests.
    """
    if waking_for_s is None:
        return wake_s
    return max(abs(wake_s - waking_for_s), _LEAST_OF_OVERDUE * wake_s)


class ServiceTimes:
    """The mean seconds from a request's start on a replica to its end, of each pool, in the order of the priors."""

    def __init__(self, priors_s: Mapping[str, float]) -> None:
        self._places = {pool: place for place, pool in enumerate(priors_s)}
        self._means = [RunningMean(prior) for prior in priors_s.values()]
        self._column = np.array([each.mean for each in self._means], dtype=np.float64)

    def observe(self, pool: str, service_s: float) -> None:
        """Take in one finished request of a known pool.

        Raises:
            ValueError: a time that is negative or not finite.
        """
        place = self._places[pool]
        self._means[place].observe(service_s)
        self._column[place] = self._means[place].mean

    def service_s(self, pool: str) -> float:
        """The present mean of a known pool."""
        return self._means[self._places[pool]].mean

    @property
    def column(self) -> Floats:
        """Every pool's present mean, which changes as more is observed."""
        seen = self._column.view()
        seen.setflags(write=False)
        return seen


def _refuse_negative(name: str, column: Floats) -> None:
    if not ((column >= 0) & np.isfinite(column)).all():
        raise ValueError(f"{name} must be finite and at least 0, not {column[~((column >= 0) & np.isfinite(column))]}")
