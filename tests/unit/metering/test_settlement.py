"""A settlement survives its way through bytes, and other bytes are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.book import Charge
from metering.counters.counter import CounterFacts
from metering.errors import SettlementMalformed
from metering.figures import Stay, figures, unknown_figures
from metering.settlement import EnergyErrors, EnergyFigures, MeteredSilicon, Settlement, TokenCounts
from metering.statements import SignedStatement

_counts = st.integers(0, 2**70)
_maybe = st.one_of(st.none(), _counts)
_settlements = st.builds(
    Settlement,
    request_id=st.text(max_size=40),
    replica=st.text(max_size=20),
    outcome=st.sampled_from(("finished", "aborted", "failed")),
    start_unix_ns=_counts,
    duration_ns=_counts,
    energy=st.builds(
        EnergyFigures,
        total_microjoules=_maybe,
        active_microjoules=_maybe,
        floor_microjoules=_maybe,
        estimated_microjoules=_maybe,
        unavailable_reason=st.one_of(st.none(), st.text()),
        method=st.one_of(st.none(), st.text()),
        method_confidence=st.sampled_from(("measured-direct", "derived", "unavailable")),
        scope=st.lists(st.text(max_size=9), max_size=3).map(tuple),
        counter_period_ns=_maybe,
        mean_batch_thousandths=_maybe,
        peak_power_milliwatts=_maybe,
        errors=st.builds(
            EnergyErrors,
            conservation_percent=st.just(0.0),
            counter_percent=st.one_of(st.none(), st.floats(0, 100)),
            allocation_percent=st.one_of(st.none(), st.floats(0, 100)),
            allocation_reason=st.one_of(st.none(), st.text()),
        ),
    ),
    tokens=st.builds(TokenCounts, input=_counts, cached=_counts, output=_counts),
    silicon=st.builds(
        MeteredSilicon,
        vendor=st.text(),
        model=st.text(),
        device_ids=st.lists(st.text(), max_size=3).map(tuple),
        node=st.text(),
    ),
    context=st.binary(max_size=100),
    statement=st.one_of(st.none(), st.builds(SignedStatement, statement=st.text(), signature=st.text())),
)


def _unbilled():
    return Settlement(
        request_id="a",
        replica="r",
        outcome="finished",
        start_unix_ns=1,
        duration_ns=1,
        energy=unknown_figures("why"),
        tokens=TokenCounts(input=0, cached=0, output=0),
        silicon=MeteredSilicon(vendor="amd", model="m", device_ids=(), node="n"),
        context=b"",
    )


@given(settlement=_settlements)
def test_it_comes_back_equal_and_fits_on_a_line(settlement):
    data = settlement.to_json()
    assert b"\n" not in data
    assert Settlement.from_json(data) == settlement


def test_a_settlement_from_before_statements_has_none():
    settlement = _unbilled()
    document = json.loads(settlement.to_json())
    del document["statement"]
    assert Settlement.from_json(json.dumps(document).encode()) == settlement


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("tokens"),
        lambda document: document.update(extra=1),
        lambda document: document.update(outcome="perhaps"),
        lambda document: document.update(context="***"),
        lambda document: document["energy"].update(method_confidence="sure"),
        lambda document: document.update(energy=None),
        lambda document: document.update(statement={"statement": "{}"}),
    ],
)
def test_other_bytes_are_refused(change):
    document = json.loads(_unbilled().to_json())
    change(document)
    with pytest.raises(SettlementMalformed):
        Settlement.from_json(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff"])
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(SettlementMalformed):
        Settlement.from_json(data)


def _facts(method="nvml-total-energy", confidence="measured-direct", period_ns=100_000_000, percent=10.0):
    return CounterFacts(
        device_id=method,
        method=method,
        scope="gpu",
        period_ns=period_ns,
        wrap_microjoules=None,
        maximum_power_milliwatts=None,
        error_percent=percent,
        best_confidence=confidence,
        closes_at_will=False,
    )


def _confidence(facts=None, *, batch=1000, seconds=5, estimated=0, steps_lost=False, shared=False, neighbours=False):
    charge = Charge(active_microjoules=100, floor_microjoules=0, estimated_microjoules=estimated)
    stay = Stay(
        resident_ns=seconds * 1_000_000_000,
        mean_batch_thousandths=batch,
        peak_milliwatts=None,
        steps_lost=steps_lost,
        shared=shared,
        has_neighbours=neighbours,
    )
    return figures(charge, facts or (_facts(),), stay, allocation_percent=None).method_confidence


def test_confidence_is_the_weakest_that_applies():
    derived = _facts("util-tdp", "derived")
    assert _confidence() == "measured-direct"
    assert _confidence(seconds=0) == "measured-apportioned"
    assert _confidence(batch=1001) == "measured-apportioned"
    assert _confidence(batch=None) == "measured-apportioned"
    assert _confidence(estimated=20) == "measured-direct"
    assert _confidence(estimated=21) == "estimated"
    assert _confidence(steps_lost=True) == "estimated"
    assert _confidence(shared=True) == "estimated"
    assert _confidence(neighbours=True) == "measured-apportioned"
    assert _confidence((derived,), shared=True) == "derived"
    assert _confidence((_facts(), derived)) == "derived"


def test_a_sum_of_counters_names_each_method_once_and_the_worst_error():
    charge = Charge(active_microjoules=1, floor_microjoules=2, estimated_microjoules=0)
    stay = Stay.never(steps_lost=False)
    counters = (_facts(), _facts(), _facts("rapl", period_ns=1_000_000, percent=5.0))
    energy = figures(charge, counters, stay, allocation_percent=4.5)
    assert energy.method == "nvml-total-energy+rapl"
    assert energy.total_microjoules == 3
    assert energy.counter_period_ns == 100_000_000
    assert energy.errors == EnergyErrors(
        conservation_percent=0.0, counter_percent=10.0, allocation_percent=4.5, allocation_reason=None
    )
