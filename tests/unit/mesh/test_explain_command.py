"""`jc explain` and `jc pools`: what a person sees, in a narrow terminal and in a wide one."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from mesh.explain_command import show_plan
from mesh.pools_table import show_pools

PARTS = ("energy", "facility", "carbon", "wait", "network")
LONG = "smollm2-135m-instruct@nordic-cloud-operator/eu-fi/epyc-genoa"


def candidate(rank: int, pool: str, **rest: Any) -> dict[str, Any]:
    usd = dict.fromkeys(PARTS, 2.5e-7)
    figures = {"expected_joules": 12.3456, "wait_s": 0.0, "score_usd": 1.25e-6, "usd": usd}
    return {"rank": rank, "pool": pool, **figures, "is_set_aside": False, "is_tight": False, **rest}


def plan(*candidates: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {
        "tier": "L1",
        "needs": {"input_tokens": 6.0, "output_tokens": 150.0, "least_tokens": 1, "features": ["tools"]},
        "pins": {"model": None, "region": "eu", "residency": [], "operators": ["acme", "nordic"]},
        "rates": {"usd_per_kgco2": 0.2, "usd_per_hour_waited": 0.01},
        "candidates": list(candidates),
        "rejected": [{"pool": "small@acme/us-east", "reason": "is in region us-east", "is_for_now": False}],
        **rest,
    }


def pool(key: str, **rest: Any) -> dict[str, Any]:
    return {
        "pool": key,
        "capable_up_to": "L3",
        "replicas": {"running": 1, "wanted": 2, "least": 0, "most": 4},
        "in_flight": 3,
        "microjoules_per_input_token": 18181.8,
        "microjoules_per_output_token": 1_818_181.0,
        "grid": {"zone": "FI", "gco2_per_kwh": 70.25},
        "dc_pue": 1.1,
        "usd_per_kwh": 0.5,
        "wait_s": 0.25,
        "wake_s": 60.0,
        "is_asleep": False,
        "is_set_aside": False,
        "unavailable": None,
        "simulated": False,
        **rest,
    }


def console(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=False)


def explained(shown: dict[str, Any], width: int = 200, *, as_json: bool = False) -> tuple[str, bool]:
    to = console(width)
    is_placed = show_plan(shown, to, as_json=as_json)
    return to.file.getvalue(), is_placed  # type: ignore[attr-defined]


def listed(*shown: dict[str, Any], width: int = 200, as_json: bool = False) -> str:
    to = console(width)
    show_pools(list(shown), to, as_json=as_json)
    return to.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 200])
def test_every_figure_and_reason_is_there_at_any_width(width: int):
    text, is_placed = explained(plan(candidate(1, LONG), candidate(2, "b", wait_s=42.0)), width)
    assert is_placed
    assert all(len(line) <= width for line in text.splitlines())
    for wanted in ("tier L1", "12.35", "1.25", "42", "small@acme/us-east", "us-east", "tools", "acme or nordic"):
        assert wanted in text
    assert LONG in "".join(text.split("\n")).replace(" ", "") or LONG in text


def test_a_wide_terminal_has_the_parts_of_each_score_in_columns():
    header = next(line for line in explained(plan(candidate(1, "a")))[0].splitlines() if "joules" in line)
    assert all(part in header for part in PARTS)
    narrow = next(line for line in explained(plan(candidate(1, "a")), 80)[0].splitlines() if "joules" in line)
    assert "facility" not in narrow


def test_no_pool_left_is_said_and_told_by_the_answer():
    text, is_placed = explained(plan())
    assert not is_placed
    assert "no pool is left" in text


def test_what_failed_lately_and_what_is_for_now_are_marked():
    rejected = [{"pool": "b", "reason": "none of its replicas runs", "is_for_now": True}]
    text, _ = explained(plan(candidate(1, "a", is_set_aside=True), rejected=rejected))
    assert "a  failed lately" in text
    assert "short" not in text
    assert "a  its context may be too short" in explained(plan(candidate(1, "a", is_tight=True)))[0]
    assert "none of its replicas runs (for now)" in text


def test_a_reason_is_no_markup():
    rejected = [{"pool": "b", "reason": "[red]node[/red]", "is_for_now": True}]
    assert "[red]node[/red]" in explained(plan(rejected=rejected))[0]


def test_json_is_the_plan():
    shown = plan(candidate(1, LONG))
    assert json.loads(explained(shown, 80, as_json=True)[0]) == shown


@pytest.mark.parametrize("width", [80, 200])
def test_pools_fit_the_terminal_with_their_figures(width: int):
    text = listed(pool(LONG), pool("b"), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    for wanted in ("1/2", "18.2k/1.82M", "0.25", "70.25", "L3"):
        assert wanted in text
    assert ("USD/kWh" in text) == (width == 200)


@pytest.mark.parametrize(
    ("rest", "note"),
    [
        ({"unavailable": "no living node"}, "unavailable: no living node"),
        ({"is_asleep": True, "replicas": {"running": 0, "wanted": 0}}, "asleep; a first request waits 60 s"),
        ({"is_asleep": True, "replicas": {"running": 0, "wanted": 1}}, "waking, which takes 60 s"),
        ({"is_set_aside": True}, "set aside"),
        ({"simulated": True}, "only a label"),
    ],
)
def test_what_is_the_matter_with_a_pool_is_said(rest: dict[str, Any], note: str):
    assert note in listed(pool("a", **rest))
    assert note not in listed(pool("a"))


def test_pools_as_json():
    assert json.loads(listed(pool(LONG), width=80, as_json=True)) == [pool(LONG)]
