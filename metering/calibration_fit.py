"""What each kind of work costs, fitted to measured shapes of load. Pure: counts and energies in, coefficients out.

A shape's energy above the floor is taken to be a sum over its steps, prefill tokens, cached tokens, decode tokens and
context (decode tokens times the length that each attended to), every one with a cost that is not negative. A decode
token costs a prefill token's energy at least: it goes through the same matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from metering.calibration import ReplicaWork, Weights
from metering.errors import FitFailed

_TERMS = {
    "step": "steps",
    "prefill_token": "prefill_tokens",
    "cached_token": "cached_tokens",
    "decode_token": "decode_tokens",
    "context_token": "context_tokens",
}
_PREFILL_WEIGHT = 1_000_000
# A term that is a mix of the others but for this share of its length cannot be told from them: the measurements'
# own noise of a few percent, divided by it, is as large as what there is to find.
_DISTINCT_SHARE = 0.02
_SINGULAR = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyModel:
    """Microjoules of one step, token or token of context, above the floor.

    ``undetermined`` names the terms that the shapes could not tell apart, or never had: their costs are only right
    together, and only for loads like the shapes.
    """

    step: float
    prefill_token: float
    cached_token: float
    decode_token: float
    context_token: float
    undetermined: tuple[str, ...]

    def predict(self, work: ReplicaWork) -> float:
        """Microjoules that this work should take."""
        return math.fsum(getattr(self, term) * getattr(work, counted) for term, counted in _TERMS.items())

    def error_percent(self, shapes: Sequence[ReplicaWork]) -> float:
        """Mean absolute percentage by which predictions miss what these shapes drew."""
        misses = [abs(self.predict(work) / work.active_microjoules - 1) for work in _drawing(shapes)]
        if not misses:
            raise FitFailed("no shape was held out of the fit, so its error cannot be known")
        return 100 * math.fsum(misses) / len(misses)

    def weights(self, allocation_percent: float | None) -> Weights:
        """The costs relative to a prefill token's.

        Raises:
            FitFailed: a prefill token came out as costing nothing.
        """
        if self.prefill_token <= 0:
            raise FitFailed(
                "the energy did not grow with the prompt tokens computed, so nothing can be relative to them; "
                "was the machine busy with other work, or is prefill hidden behind the cost of a step?"
            )
        relative = {term: round(getattr(self, term) / self.prefill_token * _PREFILL_WEIGHT) for term in _TERMS}
        return Weights(**relative, allocation_percent=allocation_percent)


def fit(shapes: Sequence[ReplicaWork]) -> EnergyModel:
    """The costs, none negative, with the least sum of squared relative errors over these shapes.

    Raises:
        FitFailed: too few shapes, or one that drew no energy.
    """
    drawing = _drawing(shapes)
    # Every row is divided by its energy: a relative error of a small shape then weighs as much as a large one's.
    columns = {
        term: [count / work.active_microjoules for work, count in zip(drawing, counts, strict=True)]
        for term, counts in _counts(drawing).items()
    }
    lengths = {term: math.hypot(*column) for term, column in columns.items()}
    present = {term: [each / lengths[term] for each in column] for term, column in columns.items() if lengths[term]}
    if len(drawing) <= len(present):
        raise FitFailed(f"{len(drawing)} shapes are too few to fit {len(present)} costs")
    solution = _least_squares_not_negative(present, [1.0] * len(drawing))
    costs = {term: solution.get(term, 0.0) / (lengths[term] or 1.0) for term in _TERMS}
    costs["decode_token"] += costs["prefill_token"]
    undetermined = tuple(term for term in _TERMS if term not in present or not _is_distinct(term, present))
    return EnergyModel(**costs, undetermined=undetermined)


def _counts(shapes: Sequence[ReplicaWork]) -> dict[str, list[int]]:
    """What each cost is multiplied by, shape by shape; a decode token's is what it costs beyond a prefill token."""
    counts = {term: [getattr(work, counted) for work in shapes] for term, counted in _TERMS.items()}
    counts["prefill_token"] = [work.prefill_tokens + work.decode_tokens for work in shapes]
    return counts


def _drawing(shapes: Sequence[ReplicaWork]) -> Sequence[ReplicaWork]:
    for work in shapes:
        if work.active_microjoules <= 0:
            raise FitFailed(f"a shape of {work.steps} steps drew no energy above the floor; let each run longer")
    return shapes


def _is_distinct(term: str, columns: dict[str, list[float]]) -> bool:
    """Whether something of this column, which has length 1, is left after taking out every mix of the others."""
    basis: list[list[float]] = []
    for column in (*(column for other, column in columns.items() if other != term), columns[term]):
        rest = column
        for _ in range(2):  # a second pass removes what rounding left of the first
            for axis in basis:
                along = _dot(rest, axis)
                rest = [each - along * part for each, part in zip(rest, axis, strict=True)]
        length = math.hypot(*rest)
        if column is columns[term]:
            return length > _DISTINCT_SHARE
        if length > _DISTINCT_SHARE:
            basis.append([each / length for each in rest])
    raise AssertionError("the term's own column comes last")


def _least_squares_not_negative(columns: dict[str, list[float]], target: list[float]) -> dict[str, float]:
    """The best of all solutions in which only some columns take part and none is negative: exact, for a few columns.

    Among equals the one with the fewest columns.
    """
    best: dict[str, float] = {}
    least = _dot(target, target)
    for size in range(1, len(columns) + 1):
        for terms in combinations(columns, size):
            chosen = [columns[term] for term in terms]
            solution = _least_squares(chosen, target)
            if solution is None or min(solution) < 0:
                continue
            fitted = [math.fsum(c * x for c, x in zip(solution, row, strict=True)) for row in zip(*chosen, strict=True)]
            squares = math.fsum((t - f) ** 2 for t, f in zip(target, fitted, strict=True))
            if squares < least - _SINGULAR:
                best, least = dict(zip(terms, solution, strict=True)), squares
    return best


def _least_squares(columns: Sequence[list[float]], target: list[float]) -> list[float] | None:
    """Solve the normal equations by Gauss-Jordan elimination; ``None`` when the columns depend on each other."""
    rows = [[*(_dot(one, other) for other in columns), _dot(one, target)] for one in columns]
    for index in range(len(rows)):
        pivot = max(range(index, len(rows)), key=lambda row: abs(rows[row][index]))
        rows[index], rows[pivot] = rows[pivot], rows[index]
        if abs(rows[index][index]) < _SINGULAR:
            return None
        rows[index] = [each / rows[index][index] for each in rows[index]]
        for other, row in enumerate(rows):
            if other != index:
                rows[other] = [a - row[index] * b for a, b in zip(row, rows[index], strict=True)]
    return [row[-1] for row in rows]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
