"""Receipts as a frame: the right columns, of the right types, that sum up right."""

import copy
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pytest

from mesh.receipts_frame import receipts_frame

_RECEIPT = Path(__file__).parents[1] / "receipts" / "data" / "unsigned-receipt.json"


@pytest.fixture
def receipt() -> dict[str, Any]:
    document = json.loads(_RECEIPT.read_text())
    document["verification"]["signature"] = None
    return document


@pytest.fixture
def old(receipt) -> dict[str, Any]:
    """A receipt of before there was placement."""
    return {section: members for section, members in receipt.items() if section != "placement"}


def changed(receipt: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(receipt)
    for section, members in sections.items():
        document[section].update(members)
    return document


def unavailable(receipt: dict[str, Any]) -> dict[str, Any]:
    names = ("total_joules", "active_joules", "floor_joules", "estimated_joules", "method")
    nothing = dict.fromkeys(names) | {"unavailable_reason": "the meter was restarted"}
    return changed(receipt, energy=nothing, price={"usd_picos": 0})


def test_a_row_each_and_a_column_for_every_member(receipt) -> None:
    frame = receipts_frame([receipt, receipt])
    assert len(frame) == 2
    paths = [f"{section}.{name}" for section, inner in receipt.items() if isinstance(inner, dict) for name in inner]
    nested = ("workload.tokens", "energy.errors", "placement.pins", "placement.rates")
    flat = [path for path in paths if path not in nested]
    assert set(flat) <= set(frame.columns)
    assert {"typ", "receipt_id", "workload.tokens.input", "energy.errors.counter_percent"} <= set(frame.columns)
    assert frame["energy.total_joules"][0] == receipt["energy"]["total_joules"]
    assert frame["silicon.device_ids"][0] == receipt["silicon"]["device_ids"]


def test_integers_stay_exact_and_sum_up_exactly(receipt) -> None:
    many = [changed(receipt, price={"usd_picos": 2**53 + 1}, chain={"seq": seq}) for seq in (1, 2, 3)]
    frame = receipts_frame(many)
    assert frame["price.usd_picos"].dtype == "int64"
    assert int(frame["price.usd_picos"].sum()) == 3 * (2**53 + 1)
    assert frame["execution.start_unix_ns"][0] == receipt["execution"]["start_unix_ns"]
    assert frame["workload.tokens.output"].dtype == frame["chain.seq"].dtype == "int64"


def test_times_are_utc_timestamps_to_the_nanosecond(receipt) -> None:
    frame = receipts_frame([changed(receipt, execution={"end_unix_ns": 1_782_219_834_000_123_457})])
    assert str(frame["execution.end"].dtype) == "datetime64[ns, UTC]"
    assert frame["execution.end"][0] == pandas.Timestamp("2026-06-23T13:03:54.000123457Z")
    assert frame["execution.start"][0].value == receipt["execution"]["start_unix_ns"]


def test_a_figure_is_a_double_even_where_json_wrote_it_whole(receipt) -> None:
    frame = receipts_frame([changed(receipt, energy={"total_joules": 2})])
    assert frame["energy.total_joules"].dtype == "float64"
    assert frame["energy.errors.conservation_percent"].dtype == "float64"


def test_unknown_energy_is_missing_and_in_no_sum(receipt) -> None:
    known = changed(receipt, energy={"total_joules": 0.25})
    frame = receipts_frame([known, unavailable(receipt), known])
    assert frame["energy.total_joules"].isna().tolist() == [False, True, False]
    assert frame["energy.total_joules"].sum() == 0.5
    assert frame["energy.total_joules"].mean() == 0.25


def test_joules_of_many_receipts_sum_up_to_the_microjoule(receipt) -> None:
    joules = [Decimal(number) / 10**6 for number in range(1, 20_001, 7)]
    frame = receipts_frame([changed(receipt, energy={"total_joules": float(each)}) for each in joules])
    assert round(float(frame["energy.total_joules"].sum()), 6) == float(sum(joules))


def test_it_groups_by_tag_and_day(receipt) -> None:
    tags = ["blue", None, "blue", "red"]
    many = [changed(receipt, workload={"customer_tag": tag}, energy={"total_joules": 1.5}) for tag in tags]
    frame = receipts_frame(many)
    by_tag = frame.groupby("workload.customer_tag")["energy.total_joules"].sum()
    assert by_tag.to_dict() == {"blue": 3.0, "red": 1.5}
    by_day = frame.set_index("execution.end").resample("D")["energy.total_joules"].sum()
    assert by_day.tolist() == [6.0]


def test_placement_has_its_columns_after_all_others(receipt, old) -> None:
    frame = receipts_frame([receipt, old])
    columns = list(frame.columns)
    first = columns.index("placement.pool")
    assert [name for name in columns if name.startswith("placement.")] == columns[first:]
    assert frame["placement.pins.region"].tolist()[0] == "eu"
    assert frame["placement.rates.usd_per_kgco2"][0] == 0.2
    assert frame["placement.rejected"][0] == receipt["placement"]["rejected"]
    assert frame["placement.accepted"][0].value == receipt["placement"]["accepted_unix_ns"]
    assert frame["placement.waited_ms"].sum() == 512
    assert frame["placement.resumed_after_tokens"].dtype == "Int64"
    assert frame["execution.retries"].tolist() == [1, 1]


def test_where_there_was_no_placement_its_columns_are_missing(receipt, old) -> None:
    frame = receipts_frame([old, receipt, old])
    for name in (each for each in frame.columns if each.startswith("placement.")):
        missing = frame[name].isna().tolist()
        assert (missing[0], missing[2]) == (True, True), name
    assert frame["placement.waited_ms"].isna().tolist() == [True, False, True]
    assert str(frame["placement.accepted"].dtype) == "datetime64[ns, UTC]"


def test_without_receipts_the_columns_are_the_same(receipt) -> None:
    empty, full = receipts_frame([]), receipts_frame([receipt])
    assert list(empty.columns) == list(full.columns)
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert empty["energy.total_joules"].sum() == 0
