"""An account's entries as CSV (RFC 4180), exact to the last digit and safe to open in a spreadsheet."""

import csv
import io
from collections.abc import Iterable
from typing import Final

from receipts.exact_decimal import exact_decimal
from receipts.ledger_reader import LedgerLine
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
)
# A cell that begins so is taken for a formula by some spreadsheet (OWASP, "CSV Injection").
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_JOULE_DIGITS: Final = 6
_USD_DIGITS: Final = 12


def csv_header() -> bytes:
    """The first line: the columns' names."""
    return _written([COLUMNS])


def csv_lines(lines: Iterable[LedgerLine]) -> bytes:
    """A line for each transaction.

    Joules and dollars are exact decimals, what the account was given positive. A text that a spreadsheet would take
    for a formula gets an apostrophe before it.
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
        )
        for line in lines
    )


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def _written(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
