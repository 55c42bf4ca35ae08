"""What requests to a model typically draw, from those settled lately."""

from dataclasses import dataclass
from typing import Final

from placement.running_mean import RunningMean

_TOKENS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Typical:
    """In microjoules; None for what nothing is known of, as output tokens of an embedding model."""

    microjoules_per_request: float | None
    microjoules_per_1000_output_tokens: float | None


class TypicalEnergy:
    """The means of about the last hundred requests of each model whose energy is known."""

    def __init__(self) -> None:
        self._per_request: dict[str, RunningMean] = {}
        self._per_1000_output_tokens: dict[str, RunningMean] = {}

    def observe(self, model: str, output_tokens: int, microjoules: int | None) -> None:
        """Take in one settled request; ``microjoules`` is None where it isn't known."""
        if not microjoules:
            return
        _observe(self._per_request, model, microjoules)
        if output_tokens:
            _observe(self._per_1000_output_tokens, model, microjoules * _TOKENS / output_tokens)

    def of(self, model: str) -> Typical:
        """What is known of a model."""
        return Typical(
            microjoules_per_request=_mean(self._per_request, model),
            microjoules_per_1000_output_tokens=_mean(self._per_1000_output_tokens, model),
        )


def _observe(means: dict[str, RunningMean], model: str, value: float) -> None:
    if model in means:
        means[model].observe(value)
    else:
        means[model] = RunningMean(value, prior_counts_as=1)


def _mean(means: dict[str, RunningMean], model: str) -> float | None:
    found = means.get(model)
    return None if found is None else found.mean
