"""`jc receipts`: an account's newest receipts as a table, or all of them as lines."""

import json
from collections.abc import Iterable
from itertools import islice
from typing import IO, Any, Final

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from mesh.client import MeshClient, ReceiptFilter
from receipts.exact_decimal import exact_decimal
from receipts.moments import rfc3339

_PAGE: Final = 1000
_WIDEST: Final = 1000
_COLUMNS: Final[tuple[tuple[str, JustifyMethod], ...]] = (
    ("no.", "right"),
    ("ended (UTC)", "left"),
    ("model", "left"),
    ("tag", "left"),
    ("tokens", "right"),
    ("joules", "right"),
    ("USD", "right"),
    ("receipt", "left"),
)
_USD_DIGITS: Final = 12
_TO_SECONDS: Final = len("2026-01-31T08:00:00")


def print_lines(pages: Iterable[bytes], file: IO[bytes], *, limit: int | None) -> None:
    """The receipts as they are, a line each; no more than ``limit``."""
    lines = (line for page in pages for line in page.splitlines(keepends=True))
    file.writelines(islice(lines, limit))


def show_receipts(client: MeshClient, wanted: ReceiptFilter, console: Console, *, limit: int) -> None:
    """The newest ``limit`` of the receipts that are ``wanted``, and what those with known energy sum up to."""
    pages = client.receipt_pages(**wanted, limit=min(limit, _PAGE), newest_first=True)
    shown = [json.loads(line) for line in islice((line for page in pages for line in page.splitlines()), limit)]
    if not shown:
        console.print("no receipts")
        return
    table = _table(shown)
    # A narrow terminal wraps whole lines; what stands in them can then still be copied.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDEST)).maximum)
    console.print(table)
    joules = sum(receipt["energy"]["total_joules"] or 0 for receipt in shown)
    usd_picos = sum(receipt["price"]["usd_picos"] for receipt in shown)
    more = "; there may be more: --limit, --since, or --json for all" if len(shown) == limit else ""
    console.print(f"\n{len(shown)} shown, {joules:.6f} J, ${exact_decimal(usd_picos, _USD_DIGITS)}{more}")


def _table(receipts: list[dict[str, Any]]) -> Table:
    """With a column for the retries only where there are any."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    retries = [receipt["execution"]["retries"] for receipt in receipts]
    columns = (*_COLUMNS, ("retries", "right")) if any(retries) else _COLUMNS
    for title, justify in columns:
        table.add_column(title, justify=justify, no_wrap=True)
    for receipt, count in zip(receipts, retries, strict=True):
        cells = (*_cells(receipt), str(count))[: len(columns)]
        table.add_row(*(Text(each) for each in cells))
    return table


def _cells(receipt: dict[str, Any]) -> tuple[str, ...]:
    workload, joules = receipt["workload"], receipt["energy"]["total_joules"]
    is_signed = receipt["verification"]["signature"] is not None
    return (
        str(receipt["chain"]["seq"]),
        rfc3339(receipt["execution"]["end_unix_ns"])[:_TO_SECONDS].replace("T", " "),
        workload["model"],
        workload["customer_tag"] or "",
        f"{workload['tokens']['input']} in, {workload['tokens']['output']} out",
        "unavailable" if joules is None else f"{joules:.6f}",
        exact_decimal(receipt["price"]["usd_picos"], _USD_DIGITS),
        receipt["receipt_id"] + ("" if is_signed else " (not signed yet)"),
    )
