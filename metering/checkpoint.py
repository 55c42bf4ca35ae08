"""Where a meter stands: what the next one needs to go on without losing a microjoule or a statement."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metering.book import BookTotals
from metering.counters.counter import Reading
from metering.statements import ChainHead


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterMark:
    """A counter's last reading, and what it has counted since the book began.

    ``suspended_ns`` is how long the machine had been suspended by then, since it was booted.
    """

    method: str
    counted_microjoules: int
    quarantine_microjoules: int
    reading: Reading | None
    suspended_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The book, its counters by device id and the statement chain at one moment, always recorded together.

    Readings mean something as long as the machine runs on: ``boot_id`` names the boot, ``None`` when it has no name.
    ``opening_microjoules`` were counted before the book knew its counters apart: with what these have counted since,
    they are all that was counted.
    """

    totals: BookTotals = field(default_factory=BookTotals)
    trueup_magnitude_microjoules: int = 0
    settled_requests: int = 0
    boot_id: str | None = None
    at_monotonic_ns: int = 0
    counters: Mapping[str, CounterMark] = field(default_factory=dict)
    opening_microjoules: int = 0
    chain: ChainHead | None = None

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values. Not `asdict`, and lists for counters: this is written ten times a second."""
        return {
            "totals": {name: getattr(self.totals, name) for name in BookTotals.__slots__},
            "trueup_magnitude_microjoules": self.trueup_magnitude_microjoules,
            "settled_requests": self.settled_requests,
            "boot_id": self.boot_id,
            "at_monotonic_ns": self.at_monotonic_ns,
            "counters": {device_id: _mark_entry(mark) for device_id, mark in self.counters.items()},
            "opening_microjoules": self.opening_microjoules,
            "chain": self.chain and [self.chain.sequence, self.chain.sha256, self.chain.charged_microjoules],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Checkpoint":
        """What `to_document` gave; journals of the first version have totals only, which are their opening balance.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        chain = document.get("chain")
        totals = BookTotals(**document["totals"])
        counters = {device_id: _mark(*entry) for device_id, entry in document.get("counters", {}).items()}
        known = sum(mark.counted_microjoules for mark in counters.values())
        return cls(
            totals=totals,
            trueup_magnitude_microjoules=document.get("trueup_magnitude_microjoules", 0),
            settled_requests=document.get("settled_requests", 0),
            boot_id=document.get("boot_id"),
            at_monotonic_ns=document.get("at_monotonic_ns", 0),
            counters=counters,
            opening_microjoules=document.get("opening_microjoules", totals.counted_microjoules - known),
            chain=chain and ChainHead(sequence=chain[0], sha256=chain[1], charged_microjoules=chain[2]),
        )


def _mark_entry(mark: CounterMark) -> list[Any]:
    reading = mark.reading and [mark.reading.energy_microjoules, mark.reading.at_monotonic_ns]
    return [mark.method, mark.counted_microjoules, mark.quarantine_microjoules, mark.suspended_ns, reading]


def _mark(method: str, counted: int, quarantine: int, suspended_ns: int, reading: list[int] | None) -> CounterMark:
    return CounterMark(
        method=method,
        counted_microjoules=counted,
        quarantine_microjoules=quarantine,
        suspended_ns=suspended_ns,
        reading=None if reading is None else Reading(energy_microjoules=reading[0], at_monotonic_ns=reading[1]),
    )
