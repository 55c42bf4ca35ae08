"""What calibration knows about a model on a silicon: how energy splits between kinds of work, and the idle floor."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields

from metering.engine_steps import RequestWork
from metering.errors import CalibrationRefused

_KIND = "joule-mesh.calibration"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Relative energy of one token's work, in millionths of a computed prefill token.

    The defaults are not calibrated: they only put the kinds of work in their published order (a decode step
    is bound by memory and costs several times a prefill token; a cached token costs next to nothing; attention
    grows with the context). ``step`` is what an engine step costs however little it computes, for its requests to
    share. ``allocation_percent`` stays ``None`` until the split has been measured.
    """

    step: int = 0
    prefill_token: int = 1_000_000
    cached_token: int = 10_000
    decode_token: int = 8_000_000
    context_token: int = 1_000
    allocation_percent: float | None = None

    def of(self, work: RequestWork, requests_in_step: int) -> int:
        """The weight of one request's work in one engine step that it shares with this many, itself included."""
        decode = work.decode_tokens * (self.decode_token + work.context_tokens * self.context_token)
        computed = work.prefill_tokens * self.prefill_token + work.cached_tokens * self.cached_token + decode
        return self.step // requests_in_step + computed


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaWork:
    """What a replica has computed and drawn since it was registered; counts only grow.

    ``context_tokens`` is the sum of decode tokens times the context that each attended to. ``busy_ns`` is the time
    that steps cover. ``active_microjoules`` is what its steps were given above the floor, over all counters,
    before it is divided among requests.
    """

    steps: int
    prefill_tokens: int
    cached_tokens: int
    decode_tokens: int
    context_tokens: int
    busy_ns: int
    active_microjoules: int

    def since(self, earlier: "ReplicaWork") -> "ReplicaWork":
        """The work done after ``earlier``, which is of the same registration."""
        return ReplicaWork(
            **{each.name: getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecord:
    """One calibration of one model on one silicon, as `jc calibrate` stores it.

    ``silicon`` is the model name that the meter detected, ``methods`` are those of the counters it was measured
    with. The allocation error in ``weights`` is of shapes that the fit hadn't seen.
    """

    model: str
    silicon: str
    methods: tuple[str, ...]
    weights: Weights
    floor_milliwatts: Mapping[str, int]
    fitted_shapes: int
    held_out_shapes: int
    made_unix_ns: int

    def check_fits(self, silicon: str, methods: Iterable[str]) -> None:
        """A record is of use on the silicon, and with the kinds of counters, that it was measured on.

        Raises:
            CalibrationRefused: this is other silicon, or it is measured by other counters.
        """
        what = f"the calibration of {self.model} on {self.silicon}"
        if self.silicon != silicon:
            raise CalibrationRefused(f"{what} is of no use here: this is {silicon}")
        theirs, ours = set(self.methods), set(methods)
        if theirs != ours:
            measured, measures = ("+".join(sorted(each)) or "nothing" for each in (theirs, ours))
            raise CalibrationRefused(f"{what} was measured by {measured}, and this host measures by {measures}")

    def to_json(self) -> str:
        """A document for people to read and `from_json` to parse."""
        return json.dumps({"kind": _KIND, "version": _VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "CalibrationRecord":
        """Parse what `to_json` wrote.

        Raises:
            CalibrationRefused: anything else; the message says what is wrong with it.
        """
        try:
            document = json.loads(text)
            kind, version = document.pop("kind", None), document.pop("version", None)
            document["weights"] = Weights(**document["weights"])
            document["methods"] = tuple(document["methods"])
            record = cls(**document)
            wrong = record._faults()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as malformed:
            raise CalibrationRefused(f"not a calibration record: {malformed}") from malformed
        if (kind, version) != (_KIND, _VERSION):
            raise CalibrationRefused(f"not a calibration record: it isn't a {_KIND} of version {_VERSION}")
        if wrong:
            raise CalibrationRefused(f"not a calibration record: {'; '.join(wrong)}")
        return record

    def _faults(self) -> list[str]:
        weights = asdict(self.weights)
        percent = weights.pop("allocation_percent")
        texts = [("model", self.model), ("silicon", self.silicon), *(("methods", each) for each in self.methods)]
        shapes = {"fitted_shapes": self.fitted_shapes, "held_out_shapes": self.held_out_shapes}
        counts = {**weights, **self.floor_milliwatts, **shapes, "made_unix_ns": self.made_unix_ns}
        faults = [f"{name} must be a text" for name, text in texts if not isinstance(text, str) or not text]
        faults += [
            f"{name} must be a whole number, not negative" for name, each in counts.items() if not _is_count(each)
        ]
        if weights["prefill_token"] == 0:
            faults.append("prefill_token, which the other weights are relative to, must not be 0")
        if percent is not None and not (_is_number(percent) and 0 <= percent < math.inf):
            faults.append("allocation_percent must be a percentage or null")
        return faults


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

    def with_record(self, record: CalibrationRecord) -> "Calibration":
        """This calibration and the record's, which wins where both speak."""
        return Calibration(
            weights={**self.weights, record.model: record.weights},
            floor_milliwatts={**self.floor_milliwatts, **record.floor_milliwatts},
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
