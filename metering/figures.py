"""From a charge to the figures of a receipt: method, confidence, errors. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from metering.book import Charge
from metering.counters.counter import CounterFacts
from metering.settlement import Confidence, EnergyErrors, EnergyFigures, no_figures

_STRONGEST_FIRST: tuple[Confidence, ...] = (
    "measured-direct",
    "measured-apportioned",
    "estimated",
    "derived",
    "unavailable",
)
# Past this part of the total, a figure charged by estimate is called one.
_ESTIMATED_PERCENT = 20
# Alone for at least this many counter periods, a request was measured and not apportioned.
_DIRECT_PERIODS = 10
_ALONE_THOUSANDTHS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A request's time on its replica.

    ``steps_lost``: some reports of its steps were dropped. ``shared``: its devices weren't the mesh's alone.
    ``has_neighbours``: they weren't its replica's alone.
    """

    resident_ns: int
    mean_batch_thousandths: int | None
    peak_milliwatts: int | None
    steps_lost: bool
    shared: bool
    has_neighbours: bool

    @classmethod
    def never(cls, *, steps_lost: bool) -> "Stay":
        """Of a request that no step ever listed."""
        return cls(
            resident_ns=0,
            mean_batch_thousandths=None,
            peak_milliwatts=None,
            steps_lost=steps_lost,
            shared=False,
            has_neighbours=False,
        )


def figures(
    charge: Charge, counters: Sequence[CounterFacts], stay: Stay, *, allocation_percent: float | None
) -> EnergyFigures:
    """The energy section for a charge that these counters stand behind."""
    return EnergyFigures(
        total_microjoules=charge.total_microjoules,
        active_microjoules=charge.active_microjoules,
        floor_microjoules=charge.floor_microjoules,
        estimated_microjoules=charge.estimated_microjoules,
        unavailable_reason=None,
        method="+".join(dict.fromkeys(facts.method for facts in counters)),
        method_confidence=_confidence(charge, counters, stay),
        scope=tuple(dict.fromkeys(facts.scope for facts in counters)),
        counter_period_ns=max(facts.period_ns for facts in counters),
        mean_batch_thousandths=stay.mean_batch_thousandths,
        peak_power_milliwatts=stay.peak_milliwatts,
        errors=_errors(max(facts.error_percent for facts in counters), allocation_percent),
    )


def unknown_figures(reason: str) -> EnergyFigures:
    """Energy that isn't known, and why."""
    return no_figures(reason, _errors(None, None))


def _confidence(charge: Charge, counters: Sequence[CounterFacts], stay: Stay) -> Confidence:
    """The weakest of what the counters can say and what this request's stay allows."""
    labels = [facts.best_confidence for facts in counters]
    period_ns = max(facts.period_ns for facts in counters)
    alone = stay.mean_batch_thousandths == _ALONE_THOUSANDTHS and stay.resident_ns >= _DIRECT_PERIODS * period_ns
    if not alone or stay.has_neighbours:
        labels.append("measured-apportioned")
    mostly_estimated = charge.estimated_microjoules * 100 > charge.total_microjoules * _ESTIMATED_PERCENT
    if stay.steps_lost or stay.shared or mostly_estimated:
        labels.append("estimated")
    return max(labels, key=_STRONGEST_FIRST.index)


def _errors(counter_percent: float | None, allocation_percent: float | None) -> EnergyErrors:
    return EnergyErrors(
        conservation_percent=0.0,
        counter_percent=counter_percent,
        allocation_percent=allocation_percent,
        allocation_reason=None if allocation_percent is not None else "not calibrated",
    )
