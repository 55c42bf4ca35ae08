"""`jc explain`: a plan as a table, with the parts of each score in micro-USD."""

import json
from typing import Any, Final

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_WIDE: Final = 110
_COLUMNS: Final[tuple[tuple[str, JustifyMethod], ...]] = (
    ("", "right"),
    ("pool", "left"),
    ("joules", "right"),
    ("wait s", "right"),
    ("µUSD", "right"),
)
_PARTS: Final = ("energy", "facility", "carbon", "wait", "network")
_NOTES: Final = {"is_set_aside": "failed lately", "is_tight": "its context may be too short"}
_MICRO: Final = 1e6


def show_plan(plan: dict[str, Any], console: Console, *, as_json: bool) -> bool:
    """Print what `/v1/explain` answered; whether any pool is left. Narrow terminals get no columns of parts."""
    if as_json:
        # Not wrapped at the terminal's width: others read it.
        console.print_json(json.dumps(plan))
        return bool(plan["candidates"])
    console.print(Text(_asked(plan)))
    if plan["candidates"]:
        console.print(_candidates(plan["candidates"], has_parts=console.width >= _WIDE))
        console.print(Text(_first(plan["candidates"][0])))
    else:
        console.print(Text("no pool is left", style="bold red"))
    if plan["rejected"]:
        console.print(_rejected(plan["rejected"]))
    return bool(plan["candidates"])


def _asked(plan: dict[str, Any]) -> str:
    needs, rates = plan["needs"], plan["rates"]
    features = f", {' and '.join(needs['features'])}" if needs["features"] else ""
    pins = [f"{name} {_shown(value)}" for name, value in plan["pins"].items() if value not in (None, [])]
    return (
        f"tier {plan['tier']}; about {needs['input_tokens']:.0f} tokens in and {needs['output_tokens']:.0f} out"
        f"{features}; pinned to {' and '.join(pins) or 'nothing'}\n"
        f"a kg of CO2e is worth ${rates['usd_per_kgco2']:g}, an hour of waiting ${rates['usd_per_hour_waited']:g}"
    )


def _shown(value: object) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _candidates(candidates: list[dict[str, Any]], *, has_parts: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in _COLUMNS:
        # A pool's name breaks over lines where it must; figures never do.
        table.add_column(title, justify=justify, no_wrap=title != "pool", overflow="fold")
    for part in _PARTS if has_parts else ():
        table.add_column(part, justify="right", no_wrap=True)
    for each in candidates:
        name = "  ".join([each["pool"], *(note for mark, note in _NOTES.items() if each[mark])])
        parts = [_micro(each["usd"][part]) for part in _PARTS] if has_parts else []
        figures = [f"{each['expected_joules']:.4g}", f"{each['wait_s']:.3g}", _micro(each["score_usd"]), *parts]
        table.add_row(str(each["rank"]), Text(name), *figures)
    return table


def _first(candidate: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {_micro(candidate['usd'][part])}" for part in _PARTS)
    return f"it would go to {candidate['pool']}: {_micro(candidate['score_usd'])} µUSD ({parts})"


def _rejected(rejected: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("refused", overflow="fold")
    table.add_column("why", overflow="fold")
    for each in rejected:
        table.add_row(Text(each["pool"]), Text(each["reason"] + (" (for now)" if each["is_for_now"] else "")))
    return table


def _micro(usd: float) -> str:
    return f"{usd * _MICRO:.4g}"
