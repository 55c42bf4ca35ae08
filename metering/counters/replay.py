"""A recording of counters, played back against the clock: for trying the meter on silicon that isn't there.

A recording is text. Its first line is a JSON object, ``{"counters": [...]}``, with the `CounterFacts` of each counter;
the second is the header of the rest, which is CSV::

    {"counters": [{"device_id": "cpu-package-0", "method": "rapl", ...}]}
    device_id,at_ns,energy_microjoules
    cpu-package-0,1000000,31250
    cpu-package-0,101000000,

``at_ns`` is monotonic time and never falls; an empty energy says that the counter couldn't be read.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, TextIO, get_args

from metering.counters.counter import Counter, CounterFacts, Reading
from metering.errors import CounterLost, ReplayUnusable
from metering.settlement import Confidence

_METHOD = "replay"
_COLUMNS = "device_id,at_ns,energy_microjoules"
_NUMBER = re.compile(r"[0-9]{1,18}")
# A recording says nothing of meters: it begins anew with each.
_FACT_NAMES = tuple(field.name for field in fields(CounterFacts) if field.name != "begins_anew")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a file holds. ``methods`` are those of the counters that were recorded."""

    counters: tuple["ReplayCounter", ...]
    methods: tuple[str, ...]


class ReplayCounter:
    """Plays one counter's recorded readings back: always the last one that is due, as a real counter steps.

    A reading carries the time at which it is due, so that two of them are as far apart as they were when recorded.
    """

    def __init__(
        self,
        facts: CounterFacts,
        readings: Sequence[tuple[int, int | None]],
        *,
        start_monotonic_ns: int,
        end_ns: int,
        monotonic_ns: Callable[[], int],
    ) -> None:
        """Take readings as times since the recording began, with their energies.

        The recording begins at ``start_monotonic_ns`` of the clock and is over ``end_ns`` later.
        """
        self._facts = facts
        self._times_ns = [at_ns for at_ns, _ in readings]
        self._energies = [energy for _, energy in readings]
        self._start_monotonic_ns = start_monotonic_ns
        self._end_ns = end_ns
        self._monotonic_ns = monotonic_ns

    @property
    def facts(self) -> CounterFacts:
        """What held for the recorded counter, by method ``replay`` and never better than derived."""
        return self._facts

    def read(self) -> Reading:
        """The last reading that is due.

        Raises:
            CounterLost: the recording is over, has not begun for this counter, or tells of a lost counter here.
        """
        elapsed_ns = self._monotonic_ns() - self._start_monotonic_ns
        if elapsed_ns > self._end_ns:
            raise CounterLost(f"{self._facts.device_id}: the recording ended after {self._end_ns / 1e9:.1f} s")
        due = bisect_right(self._times_ns, elapsed_ns) - 1
        energy = self._energies[due] if due >= 0 else None
        if energy is None:
            raise CounterLost(
                f"{self._facts.device_id}: there is no reading at {elapsed_ns / 1e9:.1f} s of the recording"
            )
        return Reading(energy_microjoules=energy, at_monotonic_ns=self._start_monotonic_ns + self._times_ns[due])


def replay(path: Path, *, monotonic_ns: Callable[[], int]) -> Recording:
    """Open a recording; it begins to play now.

    Raises:
        ReplayUnusable: the file can't be read or is malformed; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ReplayUnusable(f"{path}: {unreadable}") from unreadable
    with _at_line(path, 1):
        facts = _facts_of(lines[0] if lines else "")
    with _at_line(path, 2):
        _require(len(lines) > 1 and lines[1] == _COLUMNS, f"is not the header {_COLUMNS!r}")
    readings: dict[str, list[tuple[int, int | None]]] = {device_id: [] for device_id in facts}
    latest_ns = 0
    for number, line in enumerate(lines[2:], start=3):
        with _at_line(path, number):
            device_id, at_ns, energy = _row(line)
            _require(device_id in facts, f"names {device_id!r}, of which line 1 says nothing")
            _require(at_ns >= latest_ns, f"goes back in time, from {latest_ns} to {at_ns}")
        latest_ns = at_ns
        readings[device_id].append((at_ns, energy))
    silent = [device_id for device_id, known in readings.items() if not known]
    with _at_line(path, len(lines)):
        _require(not silent, f"is the last, and there is no reading of {', '.join(silent)}")
    begin_ns = min(known[0][0] for known in readings.values())
    start_monotonic_ns = monotonic_ns()
    counters = tuple(
        ReplayCounter(
            _played(facts[device_id], known),
            [(at_ns - begin_ns, energy) for at_ns, energy in known],
            start_monotonic_ns=start_monotonic_ns,
            end_ns=latest_ns - begin_ns,
            monotonic_ns=monotonic_ns,
        )
        for device_id, known in readings.items()
    )
    return Recording(counters=counters, methods=tuple(dict.fromkeys(each.method for each in facts.values())))


def record(
    counters: Sequence[Counter],
    file: TextIO,
    *,
    rounds: int,
    interval_ns: int,
    monotonic_ns: Callable[[], int],
    sleep: Callable[[float], None],
) -> None:
    """Read all counters ``rounds`` times, ``interval_ns`` apart, and write what `replay` plays."""
    facts = [{name: getattr(counter.facts, name) for name in _FACT_NAMES} for counter in counters]
    json.dump({"counters": facts}, file)
    file.write(f"\n{_COLUMNS}\n")
    begin_ns = monotonic_ns()
    for number in range(rounds):
        sleep(max(0, begin_ns + number * interval_ns - monotonic_ns()) / 1e9)
        at_ns = monotonic_ns()
        for counter in counters:
            try:
                energy = str(counter.read().energy_microjoules)
            except CounterLost:
                energy = ""
            file.write(f"{counter.facts.device_id},{at_ns},{energy}\n")


@contextmanager
def _at_line(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as malformed:
        raise ReplayUnusable(f"{path}: line {number} {malformed}") from malformed


def _facts_of(line: str) -> dict[str, CounterFacts]:
    """The first line's facts by device id; raises `ValueError` when it isn't one."""
    try:
        document = json.loads(line)
    except ValueError as wrong:
        raise ValueError(f"is not JSON: {wrong}") from wrong
    _require(isinstance(document, dict) and isinstance(document.get("counters"), list), 'has no list "counters"')
    facts = [_counter_facts(each) for each in document["counters"]]
    _require(bool(facts), "names no counter")
    _require(len({each.device_id for each in facts}) == len(facts), "names a device twice")
    return {each.device_id: each for each in facts}


def _counter_facts(entry: Mapping[str, Any]) -> CounterFacts:
    """One counter's facts, every one of them checked."""
    _require(isinstance(entry, dict) and set(entry) == set(_FACT_NAMES), f"must give {', '.join(_FACT_NAMES)}")
    for name in ("device_id", "method", "scope"):
        _require(isinstance(entry[name], str) and entry[name] != "", f"has no text for {name}")
    _require(_is_positive(entry["period_ns"]), "has no positive number for period_ns")
    for name in ("wrap_microjoules", "maximum_power_milliwatts"):
        _require(entry[name] is None or _is_positive(entry[name]), f"has neither null nor a positive number for {name}")
    error_percent = entry["error_percent"]
    _require(type(error_percent) in (int, float) and 0 <= error_percent <= 100, "has no percentage for error_percent")
    _require(entry["best_confidence"] in get_args(Confidence), "has no confidence for best_confidence")
    _require(isinstance(entry["closes_at_will"], bool), "has neither true nor false for closes_at_will")
    return CounterFacts(**entry)


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _row(line: str) -> tuple[str, int, int | None]:
    cells = line.rsplit(",", 2)
    _require(len(cells) == 3, f"has not the columns {_COLUMNS}")
    device_id, at_ns, energy = cells
    _require(_NUMBER.fullmatch(at_ns) is not None, f"has no whole number of nanoseconds: {at_ns!r}")
    _require(energy == "" or _NUMBER.fullmatch(energy) is not None, f"has no whole number of microjoules: {energy!r}")
    return device_id, int(at_ns), int(energy) if energy else None


def _played(facts: CounterFacts, readings: Sequence[tuple[int, int | None]]) -> CounterFacts:
    """What holds for the recording: it moves no sooner than it was read, and proves nothing about this machine."""
    gaps = [after - before for (before, _), (after, _) in pairwise(readings)]
    return replace(
        facts,
        method=_METHOD,
        period_ns=max(facts.period_ns, round(median(gaps)) if gaps else 0),
        best_confidence="derived",
        closes_at_will=False,
        begins_anew="the recording begins anew with each meter",
    )


def _require(is_so: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not is_so:
        raise ValueError(otherwise)
