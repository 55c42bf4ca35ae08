"""What the door is told of an attempt that it gave up, from what the meter has of it."""

import pytest

from metering.settlement import EnergyErrors, EnergyFigures, MeteredSilicon, Settlement, TokenCounts, no_figures
from serve.messages import GivenUp
from serve.meter_actor import given_up

ERRORS = EnergyErrors(
    conservation_percent=0.0, counter_percent=30.0, allocation_percent=None, allocation_reason="not calibrated"
)
KNOWN = EnergyFigures(
    total_microjoules=310_000,
    active_microjoules=310_000,
    floor_microjoules=0,
    estimated_microjoules=0,
    unavailable_reason=None,
    method="util-tdp",
    method_confidence="derived",
    scope=("cpu",),
    counter_period_ns=None,
    mean_batch_thousandths=1000,
    peak_power_milliwatts=None,
    errors=ERRORS,
)


def settlement(outcome: str, energy: EnergyFigures) -> Settlement:
    return Settlement(
        request_id=f"{1:032x}",
        replica="replica-1",
        outcome=outcome,
        start_unix_ns=1,
        duration_ns=1,
        energy=energy,
        tokens=TokenCounts(input=1, cached=0, output=1),
        silicon=MeteredSilicon(vendor="amd", model="AMD EPYC", device_ids=(), node="host-1"),
        context=b"",
    )


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (None, GivenUp(is_charged=False, energy_microjoules=None)),
        (settlement("failed", KNOWN), GivenUp(is_charged=False, energy_microjoules=310_000)),
        (settlement("failed", no_figures("restarted", ERRORS)), GivenUp(is_charged=False, energy_microjoules=None)),
        (settlement("finished", KNOWN), GivenUp(is_charged=True, energy_microjoules=None)),
        (settlement("aborted", KNOWN), GivenUp(is_charged=True, energy_microjoules=None)),
    ],
)
def test_only_a_failed_attempts_energy_is_told(known: Settlement | None, told: GivenUp) -> None:
    assert given_up(known) == told
