"""What calibration knows about a model on a silicon: how energy splits between kinds of work, and the idle floor."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from metering.engine_steps import RequestWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Relative energy of one token's work, in thousandths of a computed prefill token.

    The defaults are not calibrated: they only put the kinds of work in their published order (a decode step
    is bound by memory and costs several times a prefill token; a cached token costs next to nothing; attention
    grows with the context). ``allocation_percent`` stays ``None`` until the split has been measured.
    """

    prefill_token: int = 1000
    cached_token: int = 10
    decode_token: int = 8000
    context_token: int = 1
    allocation_percent: float | None = None

    def of(self, work: RequestWork) -> int:
        """The weight of one request's work in one engine step."""
        decode = work.decode_tokens * (self.decode_token + work.context_tokens * self.context_token)
        return work.prefill_tokens * self.prefill_token + work.cached_tokens * self.cached_token + decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Weights by model and floors by device id; what is missing is not calibrated.

    A floor is the power that a device draws with the model loaded and nothing resident. An unknown floor counts
    as zero while requests run; a device with an unknown floor and nothing resident is idle.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    floor_milliwatts: Mapping[str, int] = field(default_factory=dict)

    def weights_of(self, model: str) -> Weights:
        """This model's weights, or the uncalibrated defaults."""
        return self.weights.get(model) or Weights()
