"""What changes between requests, in columns beside a `Fleet`'s: grid, energy rates, waits, who is there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from placement.fleet import Flags, Floats

MOST_GCO2_PER_KWH = 1e5
MOST_MICROJOULES_PER_TOKEN = 1e15
MOST_WAIT_S = 1e9
"""Limits far above anything real; below them no score overflows."""

_NAMES = ("gco2_per_kwh", "microjoules_per_input_token", "microjoules_per_output_token", "wait_s")
_MOST = np.array(
    [[MOST_GCO2_PER_KWH], [MOST_MICROJOULES_PER_TOKEN], [MOST_MICROJOULES_PER_TOKEN], [MOST_WAIT_S]], dtype=np.float64
)


class LiveFigures:
    """One moment's figures of every pool, in the fleet's order. Everything is copied: the caller may go on changing
    its own arrays.

    ``unavailable`` says why a pool can't serve at this moment, or None; ``set_aside`` marks those that failed lately
    and are tried after all others.
    """

    __slots__ = (
        "available",
        "gco2_per_kwh",
        "microjoules_per_input_token",
        "microjoules_per_output_token",
        "set_aside",
        "unavailable",
        "wait_s",
    )

    def __init__(
        self,
        *,
        gco2_per_kwh: ArrayLike,
        microjoules_per_input_token: ArrayLike,
        microjoules_per_output_token: ArrayLike,
        wait_s: ArrayLike,
        unavailable: Sequence[str | None],
        set_aside: ArrayLike,
    ) -> None:
        """Take in the columns.

        Raises:
            ValueError: columns of different lengths, or a figure that is negative, not finite or beyond its limit.
        """
        figures = np.array(
            (gco2_per_kwh, microjoules_per_input_token, microjoules_per_output_token, wait_s), dtype=np.float64
        )
        aside = np.array(set_aside, dtype=np.bool_)
        count = len(unavailable)
        if figures.shape != (len(_NAMES), count) or aside.shape != (count,):
            raise ValueError(f"{count} pools have figures of shape {figures.shape} and marks of shape {aside.shape}")
        if not ((figures >= 0) & (figures <= _MOST)).all():
            raise ValueError(_wrong(figures))
        self.gco2_per_kwh: Floats = figures[0]
        self.microjoules_per_input_token: Floats = figures[1]
        self.microjoules_per_output_token: Floats = figures[2]
        self.wait_s: Floats = figures[3]
        self.unavailable = tuple(unavailable)
        self.available: Flags | None = _available(self.unavailable)
        self.set_aside: Flags = aside

    def __len__(self) -> int:
        return len(self.unavailable)


def _available(unavailable: tuple[str | None, ...]) -> Flags | None:
    """One flag a pool, or None where all are available, which is most often and quick to see."""
    if unavailable.count(None) == len(unavailable):
        return None
    return np.fromiter((reason is None for reason in unavailable), dtype=np.bool_, count=len(unavailable))


def _wrong(figures: Floats) -> str:
    row, place = np.argwhere(~((figures >= 0) & (figures <= _MOST)))[0]
    most = _MOST[row, 0]
    return f"{_NAMES[row]} of pool {place} must be between 0 and {most:g}, not {figures[row, place].item()!r}"
