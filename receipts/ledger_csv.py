"""An account's entries as CSV (RFC 4180), exact to the last digit and safe to open in a spreadsheet."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Final

from receipts.exact_decimal import exact_decimal
from receipts.ledger_reader import LedgerLine
from receipts.line_service import LineService
from receipts.moments import rfc3339

COLUMNS: Final = (
    "time",
    "transaction",
    "kind",
    "receipt_id",
    "model",
    "region",
    "customer_tag",
    "joules",
    "usd",
    "balance_usd",
    "pool",
    "region_pin",
    "waited_ms",
    "retries",
    "resumed_after_tokens",
)
# A cell that begins so is taken for a formula by some spreadsheet (OWASP, "CSV Injection"), blanks and quotes before it
# or not, and in full width too. Where the decimal mark is a comma, a semicolon begins a new cell, whatever is quoted.
_FORMULA_START: Final = re.compile(r'(^|[;\t\r\n])(?=[\s"]*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])')
_JOULE_DIGITS: Final = 6
_USD_DIGITS: Final = 12


def csv_header() -> bytes:
    """The first line: the columns' names."""
    return _written([COLUMNS])


def csv_lines(lines: Iterable[LedgerLine]) -> bytes:
    """A line for each transaction.

    Joules and dollars are exact decimals, what the account was given positive. A text that a spreadsheet would take
    for a formula gets an apostrophe before it, and after a semicolon in it too.
    """
    return _written(
        (
            rfc3339(line.created_unix_ns),
            line.transaction_id,
            line.kind,
            line.receipt_id or "",
            *(_inert(text or "") for text in (line.model, line.region, line.customer_tag)),
            exact_decimal(line.microjoules, _JOULE_DIGITS),
            exact_decimal(line.usd_picos, _USD_DIGITS),
            exact_decimal(line.balance_usd_picos, _USD_DIGITS),
            *_service_cells(line.service),
        )
        for line in lines
    )


def _service_cells(service: LineService | None) -> tuple[str, ...]:
    """Empty where there is no receipt, or one of before there was placement."""
    if service is None:
        return ("",) * 5
    counts = (service.waited_ms, service.retries, service.resumed_after_tokens)
    return (
        _inert(service.pool or ""),
        _inert(service.region_pin or ""),
        *("" if each is None else str(each) for each in counts),
    )


def _inert(text: str) -> str:
    return _FORMULA_START.sub(r"\1'", text)


def _written(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
