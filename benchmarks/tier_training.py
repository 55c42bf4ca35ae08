"""`python -m benchmarks.tier_training`: fit the tier classifier and rewrite its weights in the package.

Needs scikit-learn. The same prompts give the same weights, byte for byte, on the same machine and library.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import placement.tiers
from benchmarks.tier_prompts import Example, framed, read_examples
from placement.tier_features import features
from placement.tiers import Tier, TierClassifier, format_weights

TIERS = [tier.value for tier in Tier]
_LEAST_GROUPS = 3
_STRENGTH = 0.5
_LEAST_WEIGHT = 0.02
MOST_UNDER_ROUTED = 0.02
"""Aimed at when the confidence is chosen, to leave room below the goal of 3 % for prompts of other kinds."""
CONFIDENCES = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.87, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a fit gives: weights of each feature for the four tiers, and their bias."""

    weights: Mapping[str, tuple[float, float, float, float]]
    bias: tuple[float, ...]

    def classifier(self, confidence: float) -> TierClassifier:
        return TierClassifier(self.weights, self.bias, confidence)


def fit(examples: Sequence[Example]) -> Model:
    """Fit on ``examples`` and framed copies of them."""
    import numpy
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    used = [*examples, *framed(examples)]
    seen = [_cached(example.prompt) for example in used]
    columns = {name: column for column, name in enumerate(_worth_keeping(used, seen))}
    rows = [(row, columns[name]) for row, names in enumerate(seen) for name in names if name in columns]
    matrix = csr_matrix(
        (numpy.ones(len(rows)), ([row for row, _ in rows], [column for _, column in rows])),
        shape=(len(used), len(columns)),
    )
    model = LogisticRegression(C=_STRENGTH, max_iter=500, tol=1e-4)
    model.fit(matrix, [TIERS.index(example.tier) for example in used], sample_weight=_weights(used))
    weights = {
        name: tuple(round(float(value), 3) for value in model.coef_[:, column])
        for name, column in columns.items()
        if abs(model.coef_[:, column]).max() >= _LEAST_WEIGHT
    }
    return Model(weights=weights, bias=tuple(round(float(value), 3) for value in model.intercept_))  # type: ignore[arg-type]


@functools.cache
def _cached(prompt: str) -> Sequence[str]:
    return features(prompt)


def _worth_keeping(examples: Sequence[Example], seen: Iterable[Sequence[str]]) -> list[str]:
    """Features met in several independent prompts; a template's copies count once."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for example, names in zip(examples, seen, strict=True):
        for name in names:
            groups[name].add(example.group)
    return sorted(name for name, found in groups.items() if len(found) >= _LEAST_GROUPS)


def _weights(examples: Sequence[Example]) -> list[float]:
    """Weights that make the tiers equal, and temper sources and categories that are large."""
    cells: Counter[tuple[str, str, str]] = Counter()
    for example in examples:
        cells[example.source, example.category, example.tier] += example.weight  # type: ignore[assignment]
    tempered = [
        example.weight / max(cells[example.source, example.category, example.tier], 1.0) ** 0.4 for example in examples
    ]
    tiers: Counter[str] = Counter()
    for example, weight in zip(examples, tempered, strict=True):
        tiers[example.tier] += weight  # type: ignore[assignment]
    scale = sum(example.weight for example in examples) / len(tiers)
    return [weight * scale / tiers[example.tier] for example, weight in zip(examples, tempered, strict=True)]


def choose_confidence(held_out: Sequence[tuple[Model, Sequence[Example]]]) -> float:
    """The least confidence with which prompts of left-out sources are seldom under-routed.

    Shares are means over sources, so that a large source doesn't decide alone.
    """
    for confidence in CONFIDENCES:
        shares = []
        for model, examples in held_out:
            classifier = model.classifier(confidence)
            under = sum(e.weight for e in examples if classifier.of_text(e.prompt).value < e.tier)
            shares.append(under / sum(e.weight for e in examples))
        if sum(shares) / len(shares) <= MOST_UNDER_ROUTED:
            return confidence
    return CONFIDENCES[-1]


def leave_one_out(sources: Mapping[str, Sequence[Example]]) -> list[tuple[Model, Sequence[Example]]]:
    """For each source a model that never saw it."""
    return [
        (fit([e for other, examples in sources.items() if other != name for e in examples]), held)
        for name, held in sources.items()
    ]


def main() -> None:
    sources = read_examples()
    for name, examples in sources.items():
        print(f"{name}: {len(examples)} prompts of {len({e.group for e in examples})}")
    confidence = choose_confidence(leave_one_out(sources))
    model = fit([example for examples in sources.values() for example in examples])
    about = {"made_by": "python -m benchmarks.tier_training", "sources": ", ".join(sorted(sources))}
    path = Path(placement.tiers.__file__).with_name("tier_weights.json")
    path.write_bytes(format_weights(model.weights, model.bias, confidence, about))
    print(f"{len(model.weights)} weights, confidence {confidence}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
