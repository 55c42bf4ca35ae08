"""What a request drew, as the meter says it once and for all: the value that becomes a receipt."""

import base64
import binascii
import json
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

from metering.errors import SettlementMalformed
from metering.statements import SignedStatement

Confidence = Literal["measured-direct", "measured-apportioned", "estimated", "derived", "unavailable"]
Outcome = Literal["finished", "aborted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyErrors:
    """The three errors of a figure, kept apart.

    ``conservation_percent`` is 0 by construction of the book. ``counter_percent`` is the silicon's published
    accuracy. ``allocation_percent`` is how far the split between requests can be off: ``None`` with
    ``allocation_reason`` until it has been measured for this model on this silicon.
    """

    conservation_percent: float
    counter_percent: float | None
    allocation_percent: float | None
    allocation_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyFigures:
    """One request's energy at the silicon.

    ``total_microjoules`` is ``None`` exactly when ``unavailable_reason`` is given; otherwise it equals
    active + floor, and ``estimated_microjoules`` says how much of it was charged by estimate.
    ``peak_power_milliwatts`` is the highest power of the devices while the request was resident,
    not its share; ``mean_batch_thousandths`` the time-mean of resident requests on its replica, times 1000.
    """

    total_microjoules: int | None
    active_microjoules: int | None
    floor_microjoules: int | None
    estimated_microjoules: int | None
    unavailable_reason: str | None
    method: str | None
    method_confidence: Confidence
    scope: tuple[str, ...]
    counter_period_ns: int | None
    mean_batch_thousandths: int | None
    peak_power_milliwatts: int | None
    errors: EnergyErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens as the engine's scheduler counted them: ``input`` includes ``cached``."""

    input: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredSilicon:
    """The silicon as the meter detected it, whatever the node's labels say.

    ``device_ids`` are GPU UUIDs, or ``cpu-package-N`` for work on the CPU alone.
    """

    vendor: str
    model: str
    device_ids: tuple[str, ...]
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A closed account: final when the response ends, kept until the ledger acknowledges it.

    ``context`` is whatever the caller gave at ``begin``, opaque here, and never a prompt.
    ``duration_ns`` comes from the monotonic clock, ``start_unix_ns`` from the wall. ``statement`` is the meter's own
    word for the figure, ``None`` from meters that didn't sign yet.
    """

    request_id: str
    replica: str
    outcome: Outcome
    start_unix_ns: int
    duration_ns: int
    energy: EnergyFigures
    tokens: TokenCounts
    silicon: MeteredSilicon
    context: bytes
    statement: SignedStatement | None = None

    @property
    def attempt_id(self) -> str:
        """Names the attempt among all at this request: its statement's signature, of which no meter makes a second."""
        return self.request_id if self.statement is None else self.statement.signature

    def to_json(self) -> bytes:
        """One line of JSON without a newline; `from_json` gives an equal settlement back."""
        document = asdict(self)
        document["context"] = base64.b64encode(self.context).decode("ascii")
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, data: bytes) -> "Settlement":
        """Parse what `to_json` wrote.

        Raises:
            SettlementMalformed: anything else.
        """
        try:
            document = json.loads(data)
            energy = dict(document["energy"])
            energy["errors"] = EnergyErrors(**energy["errors"])
            energy["scope"] = tuple(energy["scope"])
            silicon = dict(document["silicon"])
            silicon["device_ids"] = tuple(silicon["device_ids"])
            document["energy"] = EnergyFigures(**energy)
            document["tokens"] = TokenCounts(**document["tokens"])
            document["silicon"] = MeteredSilicon(**silicon)
            document["context"] = base64.b64decode(document["context"], validate=True)
            statement = document.get("statement")
            document["statement"] = None if statement is None else SignedStatement(**statement)
            settlement = cls(**document)
        except (ValueError, KeyError, TypeError, binascii.Error) as wrong:
            raise SettlementMalformed(f"not a settlement: {wrong}") from wrong
        settlement._check()
        return settlement

    def _check(self) -> None:
        confidences, outcomes = get_args(Confidence), get_args(Outcome)
        if self.energy.method_confidence not in confidences or self.outcome not in outcomes:
            raise SettlementMalformed(f"unknown outcome or confidence in settlement {self.request_id!r}")


def checked_outcome(word: str) -> Outcome:
    """The outcome that this word names.

    Raises:
        ValueError: it names none.
    """
    if word not in get_args(Outcome):
        raise ValueError(f"outcome must be one of {', '.join(get_args(Outcome))}, not {word!r}")
    return cast("Outcome", word)


def no_figures(reason: str, errors: EnergyErrors) -> EnergyFigures:
    """Energy that is not known, and why; it is never billed."""
    return EnergyFigures(
        total_microjoules=None,
        active_microjoules=None,
        floor_microjoules=None,
        estimated_microjoules=None,
        unavailable_reason=reason,
        method=None,
        method_confidence="unavailable",
        scope=(),
        counter_period_ns=None,
        mean_batch_thousandths=None,
        peak_power_milliwatts=None,
        errors=errors,
    )
