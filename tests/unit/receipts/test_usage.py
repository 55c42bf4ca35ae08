"""Usage is what the receipts say, summed up exactly, whatever it is grouped by."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from opened_ledger import opened
from past_the_ledger import direct, tampering
from sqlalchemy import text

from receipts.ledger import Ledger
from receipts.ledger_reader import LedgerReader
from receipts.ledger_usage import groups_statement
from receipts.usage import MOST_GROUPS, Usage, UsageBy

_DAY_NS = 86_400 * 10**9
_START_NS = 1_782_172_800 * 10**9
"""2026-06-23, midnight in UTC."""
_KEYS = [f"key_{number:016x}" for number in (1, 2)]
_MEMBER = {
    "model": lambda receipt: receipt["workload"]["model"],
    "key": lambda receipt: receipt["workload"].get("api_key_id"),
    "tag": lambda receipt: receipt["workload"]["customer_tag"],
    "workload": lambda receipt: receipt["workload"].get("name"),
    "region": lambda receipt: receipt["silicon"]["region"],
    "day": lambda receipt: f"2026-06-{23 + (receipt['execution']['end_unix_ns'] - _START_NS) // _DAY_NS}",
}


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = opened(ledger_url)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


@pytest.fixture
def reader(ledger: Ledger, ledger_url: str) -> Iterator[LedgerReader]:
    reader = LedgerReader.open(ledger_url)
    yield reader
    reader.close()


def fill(ledger: Ledger, make_settlement, make_unavailable) -> list[dict[str, Any]]:
    """Receipts of two accounts over three days; gives acme's as JSON."""
    settlements = [
        make_settlement(
            number,
            "other" if number % 5 == 0 else "acme",
            placement=None,
            start_unix_ns=_START_NS + number * _DAY_NS // 9,
            customer_tag=[None, "büro", "lab"][number % 3],
            api_key_id=[None, *_KEYS][number % 3],
            workload_name=[None, "etl/1"][number % 2],
            region=["eu-de", "eu-fi"][number % 2],
            model=["m", "n"][number % 4 == 0],
        )
        for number in range(1, 25)
    ]
    stored = ledger.settle([*settlements, make_unavailable(30)])
    return [json.loads(each.signed_bytes) for each in stored if each is not None and each.account == "acme"]


def summed(found: list[dict[str, Any]], by: str) -> dict[str | None, list[int]]:
    sums: dict[str | None, list[int]] = defaultdict(lambda: [0] * 7)
    for receipt in found:
        joules, grams = receipt["energy"]["total_joules"], receipt["carbon"]["gco2eq_total"]
        tokens = receipt["workload"]["tokens"]
        figures = (
            1,
            joules is None,
            tokens["input"],
            tokens["output"],
            round((joules or 0) * 10**6),
            round((grams or 0) * 10**12),
            receipt["price"]["usd_picos"],
        )
        group = sums[_MEMBER[by](receipt)]
        group[:] = [a + b for a, b in zip(group, figures, strict=True)]
    return dict(sums)


def shown(usage: Usage) -> dict[str | None, list[int]]:
    return {
        row.group: [
            row.requests,
            row.unmetered_requests,
            row.input_tokens,
            row.output_tokens,
            row.microjoules,
            row.carbon_picograms,
            row.usd_picos,
        ]
        for row in usage.rows
    }


@pytest.mark.parametrize("by", get_args(UsageBy))
def test_each_group_has_its_receipts_sums(
    ledger: Ledger, reader: LedgerReader, make_settlement, make_unavailable, by: UsageBy
) -> None:
    found = fill(ledger, make_settlement, make_unavailable)
    usage = reader.usage("acme", 0, 2**62, by)
    assert shown(usage) == summed(found, by)
    in_all = [sum(column) for column in zip(*summed(found, by).values(), strict=True)]
    assert (usage.total.requests, usage.total.microjoules, usage.total.usd_picos) == (in_all[0], in_all[4], in_all[6])
    assert not usage.is_cut
    if by == "day":
        assert [row.group for row in usage.rows] == sorted(row.group or "" for row in usage.rows)


def test_a_time_has_its_first_moment_and_not_its_last(
    ledger: Ledger, reader: LedgerReader, make_settlement, make_unavailable
) -> None:
    found = fill(ledger, make_settlement, make_unavailable)
    ends = sorted(receipt["execution"]["end_unix_ns"] for receipt in found)
    assert reader.usage("acme", ends[2], ends[7], "day").total.requests == 5
    assert reader.usage("acme", 5, 5, "day").rows == ()


def test_of_one_workload_or_of_nobody(ledger: Ledger, reader: LedgerReader, make_settlement, make_unavailable) -> None:
    found = fill(ledger, make_settlement, make_unavailable)
    named = [receipt for receipt in found if receipt["workload"].get("name") == "etl/1"]
    usage = reader.usage("acme", 0, 2**62, "region", "etl/1")
    assert shown(usage) == summed(named, "region")
    nothing = reader.usage("nobody", 0, 2**62, "model")
    assert (nothing.rows, nothing.total.requests, nothing.total.microjoules) == ((), 0, 0)


def test_sums_past_what_a_column_holds_are_exact(
    ledger: Ledger, ledger_url: str, reader: LedgerReader, make_settlement
) -> None:
    ledger.settle([make_settlement(number, placement=None) for number in range(1, 4)])
    with tampering(ledger_url) as other:
        other.execute(text(f"UPDATE receipts SET energy_microjoules = {2**63 - 1}, usd_picos = {2**63 - 1}"))  # noqa: S608
    (row,) = reader.usage("acme", 0, 2**62, "model").rows
    assert (row.microjoules, row.usd_picos) == (3 * (2**63 - 1),) * 2


def test_groups_are_in_the_order_of_what_they_drew(
    ledger: Ledger, ledger_url: str, reader: LedgerReader, make_settlement
) -> None:
    """Also below a kilojoule; and those whose energy isn't known come last, whichever the database."""
    drawn = {"least": (1, 1, 1), "most": (999_999_999,), None: (7, 8), "unknown": (None,) * 4}
    rows = [(tag, each) for tag, energies in drawn.items() for each in energies]
    ledger.settle(
        [make_settlement(number, placement=None, customer_tag=tag) for number, (tag, _) in enumerate(rows, start=1)]
    )
    with tampering(ledger_url) as other:
        for seq, (_, microjoules) in enumerate(rows, start=1):
            change = text("UPDATE receipts SET energy_microjoules = :microjoules WHERE seq = :seq")
            other.execute(change, {"microjoules": microjoules, "seq": seq})
    assert [row.group for row in reader.usage("acme", 0, 2**62, "tag").rows] == ["most", None, "least", "unknown"]


def test_groups_beyond_the_bound_are_in_the_total(
    ledger: Ledger, ledger_url: str, reader: LedgerReader, make_settlement
) -> None:
    count = MOST_GROUPS + 5
    ledger.settle(
        [make_settlement(number, placement=None, customer_tag=f"t{number}") for number in range(1, count + 1)]
    )
    usage = reader.usage("acme", 0, 2**62, "tag")
    assert (len(usage.rows), usage.is_cut, usage.total.requests) == (MOST_GROUPS, True, count)


@pytest.mark.parametrize("by", [each for each in get_args(UsageBy) if each != "region"])
def test_no_receipt_itself_is_read(ledger: Ledger, ledger_url: str, by: UsageBy) -> None:
    """Each is some kilobytes: a month's would take minutes from a disk."""
    with direct(ledger_url) as other:
        if other.dialect.name != "sqlite":
            pytest.skip("its planner goes by what is in the table")
        statement = groups_statement("acme", 0, 9, by, None).compile(other, compile_kwargs={"literal_binds": True})
        steps = " ".join(str(row) for row in other.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}"))
    assert "USING COVERING INDEX receipts_usage" in steps, steps
