"""`jc pools`: the pools as a table."""

import json
from typing import Any, Final

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_WIDE: Final = 140
_NARROW: Final[tuple[tuple[str, JustifyMethod], ...]] = (
    ("pool", "left"),
    ("tier", "left"),
    ("replicas", "right"),
    ("in flight", "right"),
    ("µJ in/out", "right"),
    ("wait s", "right"),
    ("g/kWh", "right"),
)
_MORE: Final[tuple[tuple[str, JustifyMethod], ...]] = (
    ("zone", "left"),
    ("PUE", "right"),
    ("USD/kWh", "right"),
    ("wake s", "right"),
)


def show_pools(pools: list[dict[str, Any]], console: Console, *, as_json: bool) -> None:
    """Print what `/v1/pools` answered; what is the matter with a pool stands on a line of its own below the table."""
    if as_json:
        console.print_json(json.dumps(pools))
        return
    is_wide = console.width >= _WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (*_NARROW, *(_MORE if is_wide else ())):
        table.add_column(title, justify=justify, no_wrap=title != "pool", overflow="fold")
    for pool in pools:
        table.add_row(Text(pool["pool"]), *_figures(pool), *(_more(pool) if is_wide else ()))
    console.print(table)
    for pool in pools:
        for note in _notes(pool):
            console.print(Text(f"{pool['pool']}: {note}", style="yellow"))


def _figures(pool: dict[str, Any]) -> tuple[str, ...]:
    replicas = pool["replicas"]
    return (
        pool["capable_up_to"],
        f"{replicas['running']}/{replicas['wanted']}",
        str(pool["in_flight"]),
        f"{_short(pool['microjoules_per_input_token'])}/{_short(pool['microjoules_per_output_token'])}",
        f"{pool['wait_s']:.3g}",
        f"{pool['grid']['gco2_per_kwh']:.4g}",
    )


def _short(microjoules: float) -> str:
    """Three digits: 950, 18.2k, 1.82M."""
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if microjoules >= factor:
            return f"{microjoules / factor:.3g}{unit}"
    return f"{microjoules:.3g}"


def _more(pool: dict[str, Any]) -> tuple[str, ...]:
    return (pool["grid"]["zone"], f"{pool['dc_pue']:g}", f"{pool['usd_per_kwh']:g}", f"{pool['wake_s']:.3g}")


def _notes(pool: dict[str, Any]) -> list[str]:
    notes = []
    if pool["unavailable"] is not None:
        notes.append(f"unavailable: {pool['unavailable']}")
    elif pool["is_asleep"] and pool["replicas"]["wanted"]:
        notes.append(f"is waking, which takes {pool['wake_s']:.3g} s")
    elif pool["is_asleep"]:
        notes.append(f"asleep; a first request waits {pool['wake_s']:.3g} s")
    if pool["is_set_aside"]:
        notes.append("set aside: it failed lately")
    if pool["simulated"]:
        notes.append("its silicon is only a label")
    return notes
