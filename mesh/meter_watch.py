"""`jc meter`: the host meters' power and books in the terminal, of the running mesh or of this machine alone."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mesh.app import meter_setup
from mesh.errors import MeshError, NotRunning
from mesh.ray_session import join_ray
from mesh.run_state import DataFolder
from mesh.settings import Settings
from metering.meter_report import DeviceReport, MeterReport, ReplicaReport

_MICROJOULES = 1e6
_EVERY_S = 1.0
_INCIDENTS_SHOWN = 8
_ANSWER_WITHIN_S = 10.0

Reports = Callable[[], Sequence[MeterReport]]


def show_meters(settings: Settings, console: Console, *, as_json: bool, once: bool) -> None:
    """Show the meters, anew every second until Ctrl-C; ``once`` or ``as_json`` only one time.

    Raises:
        StartFailed: a mesh runs but its Ray cannot be reached.
        MeshError: its meters do not answer.
    """
    with _meters(settings) as reports:
        before = reports()
        if as_json:
            console.print_json(json.dumps([report.to_jsonable() for report in before]))
            return
        time.sleep(_EVERY_S)
        if once:
            console.print(_picture(before, reports()))
            return
        with Live(console=console, auto_refresh=False) as live:
            try:
                while True:
                    now = reports()
                    live.update(_picture(before, now), refresh=True)
                    before = now
                    time.sleep(_EVERY_S)
            except KeyboardInterrupt:
                return


@contextmanager
def _meters(settings: Settings) -> Iterator[Reports]:
    """The running mesh's meters; without a mesh, one of this machine's own counters for as long as it is watched."""
    try:
        state = DataFolder(settings.mesh.data_dir).running()
    except NotRunning:
        with _this_machine(settings) as of_this_machine:
            yield of_this_machine
        return
    join_ray(state, settings.mesh.data_dir)
    import ray
    from ray.exceptions import RayError

    from serve.meter_actor import meters_of

    def reports() -> Sequence[MeterReport]:
        try:
            asked = [meter.report.remote() for meter in meters_of(state.namespace)]
            return cast("list[MeterReport]", ray.get(asked, timeout=_ANSWER_WITHIN_S))
        except RayError as away:
            raise MeshError(f"the host meters do not answer: {type(away).__name__}") from away

    try:
        yield reports
    finally:
        ray.shutdown()


@contextmanager
def _this_machine(settings: Settings) -> Iterator[Reports]:
    with tempfile.TemporaryDirectory(prefix="joule-mesh-") as folder:
        setup = replace(meter_setup(settings, ()), journal=Path(folder), socket=Path(folder) / "steps.sock")
        meter, _ = setup()

        def reports() -> Sequence[MeterReport]:
            meter.tick()
            report = meter.report()
            hint = "no mesh runs on this data folder; these are the counters that one would use here"
            return [replace(report, notes=(*report.notes, hint))]

        yield reports


def _picture(before: Sequence[MeterReport], now: Sequence[MeterReport]) -> RenderableType:
    earlier = {report.node: report for report in before}
    return Group(*(part for report in now for part in _host(earlier.get(report.node, report), report)))


def _host(before: MeterReport, now: MeterReport) -> Iterator[RenderableType]:
    error = now.identity_error_microjoules
    identity = "the accounts sum to what was counted" if error == 0 else f"THE BOOK IS BROKEN BY {error} µJ"
    yield Text(f"\n{now.node}: {now.silicon.model}; {identity}", style="bold" if error == 0 else "bold red")
    yield _devices(now.devices)
    yield _accounts(before, now)
    if now.replicas:
        yield _replicas(now.replicas)
    share = "-" if now.trueup_share is None else f"{now.trueup_share:.3%} (bias {now.trueup_bias:+.3%})"
    yield Text(
        f"requests: {now.open_requests} running, {now.settled_requests} settled, {now.unacknowledged} waiting for the "
        f"ledger; estimates were off by {share}; {now.statement_sequence} statements by key {now.meter_key[:16]}…"
    )
    for note in now.notes:
        yield Text(f"  {note}", style="dim")
    for incident in now.incidents[-_INCIDENTS_SHOWN:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(incident.at_unix_ns / 1e9))
        yield Text(f"  {at} {incident.what}", style="yellow")


def _devices(devices: Sequence[DeviceReport]) -> RenderableType:
    if not devices:
        return Text("  no counter: energy is unavailable and nothing is billed", style="bold red")
    table = _table("device", "method", ">watts", ">joules", ">floor W", ">period ms", ">error", "at best")
    for each in devices:
        table.add_row(
            each.device_id,
            each.method,
            _watts(each.power_milliwatts),
            f"{each.counted_microjoules / _MICROJOULES:,.1f}",
            _watts(each.floor_milliwatts),
            f"{each.period_ns / 1e6:g}",
            f"{each.error_percent:g} %",
            each.best_confidence if each.trouble is None else f"[red]{each.trouble}[/red]",
        )
    return table


def _accounts(before: MeterReport, now: MeterReport) -> RenderableType:
    """Joules by account, and watts from the difference of two reports."""
    elapsed_ns = _read_at_ns(now) - _read_at_ns(before)
    earlier, later = before.totals.accounts(), now.totals.accounts()
    counted = now.totals.counted_microjoules
    table = _table("account", ">watts", ">joules", ">share")
    for account, microjoules in later.items():
        watts = (microjoules - earlier[account]) * 1e3 / elapsed_ns if elapsed_ns else None
        share = f"{microjoules / counted:.2%}" if counted else "-"
        table.add_row(account, "-" if watts is None else f"{watts:.2f}", f"{microjoules / _MICROJOULES:,.1f}", share)
    return table


def _replicas(replicas: Sequence[ReplicaReport]) -> RenderableType:
    table = _table("replica", "model", ">resident", "split", "devices")
    for each in replicas:
        split = "calibrated" if each.is_calibrated else "not calibrated"
        trouble = each.unavailable or each.shared
        devices = ", ".join(each.device_ids) or "cpu"
        table.add_row(
            each.replica,
            each.model,
            str(each.resident_requests),
            split,
            f"{devices}: [red]{trouble}[/red]" if trouble else devices,
        )
    return table


def _read_at_ns(report: MeterReport) -> int:
    """When the book was last brought up to date: the newest reading."""
    return max((each.read_at_monotonic_ns or 0 for each in report.devices), default=0)


def _table(*headers: str) -> Table:
    """A table without rules; a header that begins with ``>`` is a column of figures."""
    table = Table(box=None)
    for header in headers:
        table.add_column(header.removeprefix(">"), justify="right" if header.startswith(">") else "left")
    return table


def _watts(milliwatts: int | None) -> str:
    return "-" if milliwatts is None else f"{milliwatts / 1e3:.2f}"
