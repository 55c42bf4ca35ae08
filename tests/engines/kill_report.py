"""A run of `killing_rounds` as tables."""

import statistics
from collections.abc import Iterator, Sequence
from math import ceil

from chat_load import KINDS, count_by
from kill_plan import TARGETS
from killing_rounds import Run
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from soundness import Verdict

_OUTCOMES = ("answered", "hung up", "broken", "refused", "no answer", "malformed")
_FINDINGS_SHOWN = 20


def report(run: Run) -> RenderableType:
    """Rounds, kills and recoveries by target, requests by kind, every check with its figure, and what was wrong."""
    return Group(*_parts(run))


def _parts(run: Run) -> Iterator[RenderableType]:
    per_round = f", {statistics.mean(run.round_s):.1f} s each" if run.round_s else ""
    yield Text(f"\n{run.rounds_done} rounds in {run.wall_s:.0f} s{per_round}; seed {run.seed}")
    yield _recoveries(run)
    yield Text("Seconds from a round's last blow, in the rounds that hit the target; others may have been hit too.\n")
    yield _exchanges(run)
    yield Text("")
    yield checks_table(run.verdict)
    for check, findings in run.verdict.findings.items():
        for finding in findings[:_FINDINGS_SHOWN]:
            yield Text(f"{check}: {finding}", style="red")
        if len(findings) > _FINDINGS_SHOWN:
            yield Text(f"{check}: and {len(findings) - _FINDINGS_SHOWN} more", style="red")


def _recoveries(run: Run) -> Table:
    table = figures_table(
        "killed", ">kills", ">rounds", *(f">{what} p50/p99/max" for what in ("answers", "signs", "whole"))
    )
    for target in TARGETS:
        of_target = run.recoveries[target]
        table.add_row(
            target,
            str(run.kills[target]),
            str(len(of_target)),
            _spread([each.answered_s for each in of_target]),
            _spread([each.signed_s for each in of_target]),
            _spread([each.whole_s for each in of_target]),
        )
    return table


def _exchanges(run: Run) -> Table:
    table = figures_table("requests", ">sent", *(f">{outcome}" for outcome in _OUTCOMES))
    for kind in KINDS:
        of_kind = [each for each in run.exchanges if each.kind == kind]
        counts = count_by(of_kind, lambda each: each.outcome)
        table.add_row(kind, str(len(of_kind)), *(str(counts.get(outcome, 0)) for outcome in _OUTCOMES))
    return table


def checks_table(verdict: Verdict) -> Table:
    """Every check with its figure, and whether anything was found."""
    table = figures_table("check", "", "figure")
    figures, findings = verdict.figures, verdict.findings
    for check in dict.fromkeys((*figures, *(each for each, found in findings.items() if found))):
        table.add_row(check, "[red]FAILED[/red]" if findings.get(check) else "ok", figures.get(check, ""))
    return table


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    p50, p99 = (ordered[ceil(len(ordered) * share) - 1] for share in (0.5, 0.99))
    return f"{p50:.1f} / {p99:.1f} / {ordered[-1]:.1f}"


def figures_table(*headers: str) -> Table:
    """A table without rules; a header that begins with ``>`` is a column of figures."""
    table = Table(box=None)
    for header in headers:
        table.add_column(header.removeprefix(">"), justify="right" if header.startswith(">") else "left")
    return table
