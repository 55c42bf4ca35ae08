"""A mesh's book held against an independent reader of the same counters, over a stretch of time."""

import bisect
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests

from benchmarks.running_mesh import MeshUnderTest

_REPORTS = 5
_BETWEEN_REPORTS_S = 0.3

Report = dict[str, Any]
# By device: the times of its samples, and what it said at each.
Samples = dict[str, tuple[list[int], list[int]]]


def meter_report(mesh: MeshUnderTest) -> Report:
    """The host's meter as `GET /v1/meters` shows it."""
    headers = {"Authorization": f"Bearer {mesh.operator_key}"}
    response = requests.get(f"{mesh.url}/v1/meters", headers=headers, timeout=30)
    response.raise_for_status()
    (report,) = response.json()["data"]
    return dict(report)


def accounts(report: Report) -> dict[str, int]:
    """The book's accounts in microjoules."""
    return {
        name.removesuffix("_microjoules"): value
        for name, value in report["totals"].items()
        if name not in {"counted_microjoules", "open_microjoules"}
    }


@dataclass(kw_only=True)
class BookCheck:
    """What the book and the reader say of the same stretch, in microjoules; filled in at its end.

    The reader brackets each of the meter's readings by two of its own, so it gives a least and a most.
    ``quantum_microjoules`` is the smallest step that it saw: on processor time, a tick of one thread.
    """

    before: Report = field(default_factory=dict)
    after: Report = field(default_factory=dict)
    least_read_microjoules: int = 0
    most_read_microjoules: int = 0
    quantum_microjoules: int = 0

    def account(self, name: str) -> int:
        """What came to an account."""
        return accounts(self.after)[name] - accounts(self.before)[name]

    @property
    def booked_microjoules(self) -> int:
        """What came to all accounts."""
        return sum(self.account(name) for name in accounts(self.before))

    @property
    def off_quanta(self) -> float:
        """How far the book is outside of what the reader allows; one step of the counter at each end is natural.

        To a thousandth: a step of 20,833.3 microjoules is read as 20,833, and two of them as 41,667.
        """
        booked = self.booked_microjoules
        off = max(self.least_read_microjoules - booked, booked - self.most_read_microjoules, 0)
        return round(off / self.quantum_microjoules, 3)

    @property
    def blur_quanta(self) -> float:
        """How far the reader's least and most are apart: large when it was held up at the wrong moment."""
        return (self.most_read_microjoules - self.least_read_microjoules) / self.quantum_microjoules


@contextmanager
def watched(mesh: MeshUnderTest) -> Iterator[BookCheck]:
    """Compare the book and the reader over the block."""
    check = BookCheck()
    with tempfile.TemporaryFile("w+") as output:
        reader = subprocess.Popen([sys.executable, "-m", "benchmarks.counter_reader"], stdout=output)
        try:
            befores = _reports(mesh, reader)
            yield check
            afters = _reports(mesh, reader)
        finally:
            reader.terminate()
            reader.wait()
        output.seek(0)
        samples = _samples(output)
    check.before, start = _best(befores, samples)
    check.after, end = _best(afters, samples)
    check.least_read_microjoules = end[0] - start[1]
    check.most_read_microjoules = end[1] - start[0]
    for values in (values for _, values in samples.values()):
        steps = (later - sooner for sooner, later in itertools.pairwise(values) if later > sooner)
        check.quantum_microjoules = max(check.quantum_microjoules, min(steps))


def _reports(mesh: MeshUnderTest, reader: "subprocess.Popen[bytes]") -> list[Report]:
    """Several: on a busy machine the reader may have been held up just when the meter read."""
    reports = []
    for _ in range(_REPORTS):
        try:
            code = reader.wait(_BETWEEN_REPORTS_S)
        except subprocess.TimeoutExpired:
            reports.append(meter_report(mesh))
        else:
            sys.exit(f"the independent reader ended with {code}")
    time.sleep(_BETWEEN_REPORTS_S)
    return reports


def _samples(lines: Iterable[str]) -> Samples:
    samples: Samples = {}
    for line in lines:
        at_ns, device, microjoules = line.split()
        times, values = samples.setdefault(device, ([], []))
        times.append(int(at_ns))
        values.append(int(microjoules))
    return samples


def _best(reports: list[Report], samples: Samples) -> tuple[Report, tuple[int, int]]:
    """The report whose readings the reader's samples bracket most narrowly, and what these two samples say."""

    def bracket(report: Report) -> tuple[int, int] | None:
        low = high = 0
        for device in report["devices"]:
            times, values = samples[device["device_id"]]
            place = bisect.bisect_left(times, device["read_at_monotonic_ns"])
            if not 0 < place < len(times):
                return None
            low, high = low + values[place - 1], high + values[place]
        return low, high

    bracketed = [(report, found) for report in reports if (found := bracket(report)) is not None]
    return min(bracketed, key=lambda each: each[1][1] - each[1][0])
