"""Runs of `failing_over` and `breaking_engines` as tables."""

from collections.abc import Iterator, Sequence
from math import ceil

from breaking_engines import Broken
from failing_over import FAULTS, REQUESTS, Run
from kill_report import checks_table, figures_table
from rich.console import Group, RenderableType
from rich.text import Text
from soundness import Verdict

_FINDINGS_SHOWN = 20


def failover_report(run: Run) -> RenderableType:
    """Faults and the time lost by kind, every check with its figure, and what was wrong."""
    return Group(*_parts(run))


def _parts(run: Run) -> Iterator[RenderableType]:
    yield Text(f"\n{len(run.struck)} faults in {run.wall_s:.0f} s; seed {run.seed}")
    headers = ("fault", "answer", ">faults", ">met one", ">whole", ">seconds lost p50", ">p99", ">most")
    table = figures_table(*headers)
    for fault in FAULTS:
        for request in REQUESTS:
            of_kind = [each for each in run.struck if (each.round.fault, each.round.request) == (fault, request)]
            met = [each for each in of_kind if each.retries]
            whole = sum(each.exchange.outcome == "answered" for each in of_kind)
            table.add_row(
                fault, request, str(len(of_kind)), str(len(met)), str(whole), *_spread([e.lost_s for e in met])
            )
    yield table
    yield Text("Lost: beyond the same answer without a fault, where the fault met the attempt. All were under load.\n")
    yield from _checks(run.verdict)


def engines_report(broken: Sequence[Broken], verdict: Verdict, *, wall_s: float, seed: int) -> RenderableType:
    """The same of real engines: each fault's seconds one by one, for they are few."""
    table = figures_table(
        "fault", "answer", ">faults", ">the same answer", "failed attempts", "resumed after tokens", "seconds lost"
    )
    for fault, request in dict.fromkeys((each.fault, each.request) for each in broken):
        of_kind = [each for each in broken if (each.fault, each.request) == (fault, request)]
        table.add_row(
            fault,
            request,
            str(len(of_kind)),
            str(sum(each.exchange.outcome == "answered" for each in of_kind)),
            ", ".join(dict.fromkeys(outcome for each in of_kind for outcome in each.outcomes)),
            ", ".join(str(each.resumed_after) for each in of_kind),
            ", ".join(f"{each.lost_s:.2f}" for each in of_kind),
        )
    title = Text(f"\n{len(broken)} faults of real engines; {wall_s:.0f} s in all, seed {seed}")
    return Group(title, table, Text(""), *_checks(verdict))


def _checks(verdict: Verdict) -> Iterator[RenderableType]:
    yield checks_table(verdict)
    for check, findings in verdict.findings.items():
        for finding in findings[:_FINDINGS_SHOWN]:
            yield Text(f"{check}: {finding}", style="red")


def _spread(seconds: Sequence[float]) -> tuple[str, str, str]:
    if not seconds:
        return "-", "-", "-"
    ordered = sorted(seconds)
    p50, p99 = (ordered[ceil(len(ordered) * share) - 1] for share in (0.5, 0.99))
    return f"{p50:.2f}", f"{p99:.2f}", f"{ordered[-1]:.2f}"
