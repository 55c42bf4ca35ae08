"""What an account has used over a time, summed up by group; values only."""

from dataclasses import dataclass
from typing import Final, Literal

UsageBy = Literal["day", "model", "key", "tag", "workload", "region"]
MOST_GROUPS: Final = 1000
"""Groups of one answer; what is beyond them is in its total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """Sums over one group's receipts, exact.

    ``group`` is a day as ``2026-11-21`` (UTC, by when the request ended), or the model, key id, tag, workload or
    region; None for receipts that name none. ``unmetered_requests`` are those whose energy isn't known: they cost
    nothing, and are in no sum but ``requests`` and the tokens.
    """

    group: str | None
    requests: int
    unmetered_requests: int
    input_tokens: int
    output_tokens: int
    microjoules: int
    carbon_picograms: int
    usd_picos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Groups, days in their order and others by what they drew, and the total of all, whose group is None.

    ``is_cut``: there are more than `MOST_GROUPS`.
    """

    rows: tuple[UsageRow, ...]
    total: UsageRow
    is_cut: bool
