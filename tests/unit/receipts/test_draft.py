"""A drafted receipt says what the meter and the door said, adds up, and is the same each time."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.settlement import EnergyFigures
from receipts.arithmetic import check_arithmetic, microjoules
from receipts.canonical import parse_strict
from receipts.document import Receipt, document_from, signed_bytes, with_signature
from receipts.draft import Attempt, RequestContext, draft_receipt
from receipts.errors import InvalidDocument, SettlementRefused

KEY_ID = "0123456789abcdef"
PREVIOUS = "ab" * 32


def drafted(context: RequestContext, settlement) -> Receipt:
    return draft_receipt(context, settlement, key_id=KEY_ID, seq=2, prev_sha256=PREVIOUS)


def test_each_figure_comes_from_its_source(make_context, make_settlement) -> None:
    attempts = (
        Attempt(pool="p1", outcome="timeout", energy_microjoules=None),
        Attempt(pool="p2", outcome="replica died", energy_microjoules=1_500_000),
    )
    receipt = drafted(make_context(7, customer_tag="team-a", attempts=attempts), make_settlement(7))
    assert receipt.receipt_id == f"rcpt_{7:032x}"
    assert receipt.workload.tokens.model_dump() == {"input": 34, "cached": 16, "output": 128}
    assert (receipt.workload.customer_tag, receipt.workload.account) == ("team-a", "acme")
    assert (receipt.silicon.vendor, receipt.silicon.operator, receipt.silicon.node) == ("amd", "this-machine", "host-1")
    execution = receipt.execution
    assert execution.end_unix_ns - execution.start_unix_ns == 312_400_000
    assert (execution.duration_ms, execution.retries) == (312, 2)
    assert [(each.pool, each.outcome, each.joules) for each in execution.attempts] == [
        ("p1", "timeout", None),
        ("p2", "replica died", 1.5),
    ]
    energy = receipt.energy
    assert (energy.total_joules, energy.active_joules, energy.floor_joules) == (0.31, 0.295001, 0.014999)
    assert (energy.peak_watts, energy.counter_period_ms, energy.mean_batch) == (5.47, 10.0, 1.5)
    assert (energy.method, energy.method_confidence, energy.scope) == ("util-tdp", "derived", ("cpu",))
    assert receipt.carbon.facility_joules == 0.3565
    assert receipt.carbon.gco2eq_total == 0.000031035306
    assert receipt.price.usd_picos == 43_056
    assert (receipt.chain.seq, receipt.chain.prev_sha256) == (2, PREVIOUS)
    assert (receipt.verification.key_id, receipt.verification.tier) == (KEY_ID, "L0")


def test_unknown_energy_is_null_with_its_reason_and_free(make_context, make_unavailable) -> None:
    receipt = drafted(make_context(7), make_unavailable(7))
    energy = receipt.energy
    assert (energy.total_joules, energy.active_joules, energy.floor_joules, energy.estimated_joules) == (None,) * 4
    assert (energy.method, energy.method_confidence) == (None, "unavailable")
    assert energy.unavailable_reason == "the meter was restarted"
    assert (receipt.carbon.gco2eq_total, receipt.carbon.facility_joules) == (None, None)
    assert receipt.price.usd_picos == 0
    check_arithmetic(receipt)


@given(
    active=st.integers(0, 10**13),
    floor=st.integers(0, 10**13),
    pue=st.floats(1, 3),
    intensity=st.floats(0, 2000),
    price=st.floats(0, 10),
)
def test_every_draft_adds_up_and_reads_back(
    make_context, make_settlement, active: int, floor: int, pue: float, intensity: float, price: float
) -> None:
    settlement = make_settlement(7)
    energy: EnergyFigures = dataclasses.replace(
        settlement.energy,
        total_microjoules=active + floor,
        active_microjoules=active,
        floor_microjoules=floor,
        estimated_microjoules=active,
    )
    context = make_context(7, dc_pue=pue, grid_intensity_gco2_per_kwh=intensity, usd_per_kwh=price)
    receipt = drafted(context, dataclasses.replace(settlement, energy=energy))
    check_arithmetic(receipt)
    assert receipt.energy.total_joules is not None
    assert microjoules(receipt.energy.total_joules, "total") == active + floor
    read = document_from(parse_strict(with_signature(signed_bytes(receipt), None)))
    assert read == receipt
    assert signed_bytes(read) == signed_bytes(receipt)


def test_the_context_survives_its_journey(make_context) -> None:
    context = make_context(7, attempts=(Attempt(pool="p", outcome="timeout", energy_microjoules=3),), customer_tag="é")
    assert RequestContext.from_json(context.to_json()) == context
    assert b"\n" not in context.to_json()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"receipt_id":1}', b"\xff"])
def test_other_bytes_are_no_context(data: bytes) -> None:
    with pytest.raises(InvalidDocument):
        RequestContext.from_json(data)


def test_context_and_settlement_must_be_of_one_request(make_context, make_settlement) -> None:
    with pytest.raises(SettlementRefused, match=f"settlement {8:032x}: its context is that of rcpt_{7:032x}"):
        drafted(make_context(7), make_settlement(8))


def test_a_figure_outside_the_schema_is_named(make_context, make_settlement) -> None:
    with pytest.raises(SettlementRefused, match=r"execution\.start_unix_ns: Input should be less"):
        drafted(make_context(7), make_settlement(7, start_unix_ns=2**63))
