"""The `jc` command: start and stop a mesh, talk to it, and verify receipts without one."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from mesh import billing_commands
from mesh.client import MeshClient, ReceiptFilter
from mesh.command_options import for_this_mesh, with_client, with_settings
from mesh.errors import MeshError, NotRunning
from mesh.keys_command import keys
from mesh.nodes_file import NodesFile, load_nodes
from mesh.progress import Progress
from mesh.run_state import DataFolder
from mesh.settings import Settings
from metering.errors import MeteringError
from receipts.errors import ReceiptsError

_STOP_DEADLINE_S = 90.0
_CANNOT_RUN = 2
_SHOWN_RECEIPTS = 20
# Modules of the `serve` extra; the engine's own packages are asked for in its replica only.
_SERVE_EXTRA = frozenset({"alembic", "fastapi", "numpy", "openai", "psycopg", "pynvml", "ray", "sqlalchemy", "stripe"})
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Turns this project's errors into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except (MeshError, MeteringError, ReceiptsError) as error:
            click.echo(f"jc: {error}", err=True)
        except ModuleNotFoundError as missing:
            package = (missing.name or "").partition(".")[0]
            if package not in _SERVE_EXTRA:
                raise
            how = "`make install`, or pip install '.[serve]' ('.[cpu]' or '.[gpu]' to start a mesh)"
            click.echo(f"jc: this command needs {package}, of the `serve` extra: {how}", err=True)
        sys.exit(_CANNOT_RUN)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="joule-mesh", prog_name="jc")
def main() -> None:
    """Joule Mesh: inference billed in joules, with a signed receipt for every request."""


main.add_command(keys)
for _each in billing_commands.COMMANDS:
    main.add_command(_each)


def _selected(command: _Command) -> _Command:
    """Options that select receipts."""
    since = click.option(
        "--since", metavar="WHEN", help="Those that ended then or later: 30d, 12h, or 2026-01-31T08:00:00Z; else all."
    )
    tag = click.option("--customer-tag", "--tag", "customer_tag", help="Those sent with this X-Customer-Tag.")
    return since(tag(command))


_nodes_option = click.option(
    "--nodes",
    "nodes_path",
    type=click.Path(path_type=Path),
    envvar="JC_NODES",
    help="Start several Ray nodes on this machine, as this file lists them.",
)


@main.command()
@with_settings
@_nodes_option
@click.option("--detach", is_flag=True, help="Return once it answers; stop it with `jc down`.")
@click.option("--serve-log", type=click.Path(path_type=Path), hidden=True)
def up(settings: Settings, *, nodes_path: Path | None, detach: bool, serve_log: Path | None) -> None:
    """Start the mesh, send one request, and serve until Ctrl-C."""
    nodes_file = _nodes_file(nodes_path, settings)
    if detach:
        _start_detached(settings)
        return
    _run(settings, nodes_file, serve_log=serve_log, stay=True)


@main.command()
@with_settings
@_nodes_option
def demo(settings: Settings, *, nodes_path: Path | None) -> None:
    """Start the mesh, send one request, show its receipt, and stop."""
    _run(settings, _nodes_file(nodes_path, settings), serve_log=None, stay=False)


def _nodes_file(path: Path | None, settings: Settings) -> NodesFile | None:
    if path is None:
        return None
    from mesh.placement_setup import node_catalogue

    return load_nodes(path, node_catalogue(settings))


def _run(settings: Settings, nodes_file: NodesFile | None, *, serve_log: Path | None, stay: bool) -> None:
    from mesh.app import start_mesh
    from mesh.first_request import show_first_request

    console = Console(soft_wrap=True, highlight=False)
    stop = _stop_on_signal()
    with start_mesh(settings, Progress(console), stop, nodes_file=nodes_file) as running:
        if running.first_key is not None:
            console.print(f"\nYour API key, shown this once: [bold]{running.first_key}[/bold]")
        else:
            console.print(f"\nAPI key: as shown at the first start; another: {for_this_mesh('jc keys new')}")
        show_first_request(running.state.url, running.operator_key, console)
        if stay:
            running.announce_ready()
            console.print(f"\nServing on {running.state.url} until Ctrl-C.")
            if running.dashboard_url is not None:
                console.print(f"Ray's dashboard: {running.dashboard_url}   Logs: {running.state.logs}")
            _continue_into(serve_log)
            stop.wait()


def _stop_on_signal() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM; a start under way ends at its next step. A second one is not waited for."""
    stop = threading.Event()

    def ask(signum: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        signal.signal(signum, ask)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask)
    return stop


def _continue_into(log: Path | None) -> None:
    """From here on write to ``log``: the terminal that detached us stops listening."""
    if log is None:
        return
    sys.stdout.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _start_detached(settings: Settings) -> None:
    """Run `jc up` in a session of its own and pass on what it says until it serves.

    What it says holds the first API key, so it comes through a pipe and never touches a file.
    """
    log = settings.mesh.data_dir / "mesh.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    again = [sys.executable, "-m", "mesh.command", *[each for each in sys.argv[1:] if each != "--detach"]]
    with subprocess.Popen(
        [*again, "--serve-log", str(log)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        try:
            state = DataFolder(settings.mesh.data_dir).running()
        except NotRunning:
            sys.exit(child.wait() or _CANNOT_RUN)
        if state.pid != child.pid:
            sys.exit(child.wait() or _CANNOT_RUN)
        child.returncode = 0  # it lives on; Popen must not wait for it
    click.echo(f"detached: process {state.pid}; stop it with `{for_this_mesh('jc down')}`")


@main.command()
@with_settings
def down(settings: Settings) -> None:
    """Stop the mesh that runs on the data folder, and everything it started."""
    state = DataFolder(settings.mesh.data_dir).stop(_STOP_DEADLINE_S)
    click.echo(f"stopped {state.url} (process {state.pid})")


@main.command()
@with_client
@click.argument("prompt")
@click.option("--model", default="auto", show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--system", help="A system message before the prompt.")
def chat(client: MeshClient, prompt: str, model: str, max_tokens: int, system: str | None) -> None:
    """Ask one question and watch the answer come, with its joules."""
    import openai

    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    energy: dict[str, Any] = {}
    try:
        stream = client.openai().chat.completions.create(
            model=model, messages=messages, max_tokens=max_tokens, stream=True
        )
        for chunk in stream:
            if chunk.choices:
                click.echo(chunk.choices[0].delta.content or "", nl=False)
            energy = (chunk.model_extra or {}).get("energy") or energy
    except openai.OpenAIError as error:
        raise MeshError(_openai_message(error)) from error
    click.echo()
    if energy:
        click.echo(f"\n{_energy_line(energy)}  receipt {energy['receipt_id']}", err=True)


def _openai_message(error: Exception) -> str:
    import openai

    if isinstance(error, openai.APIStatusError) and isinstance(error.body, dict) and "message" in error.body:
        return str(error.body["message"])
    if isinstance(error, openai.APIConnectionError):
        where = error.request.url.join("/")
        return f"no mesh answers at {where}; start one with `jc up`, or say where it is with --url"
    return str(error)


def _energy_line(energy: dict[str, Any]) -> str:
    if energy["joules"] is None:
        return "energy unavailable, not billed;"
    return f"{energy['joules']:g} J ({energy['method']}, {energy['confidence']});"


@main.command()
@with_client
def models(client: MeshClient) -> None:
    """List the models that can be asked for."""
    for name in client.models():
        click.echo(name)


@main.command()
@with_client
@click.argument("prompt")
@click.option("--model", default="auto", show_default=True)
@click.option("--region", help="As the header X-Region: a region, a prefix such as eu, or a country's code.")
@click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
def explain(client: MeshClient, prompt: str, model: str, region: str | None, max_tokens: int, *, as_json: bool) -> None:
    """Show where a prompt would run at this moment, what each pool would cost, and why the others can't serve it.

    Nothing runs, and nothing is charged. Exit code 1 where no pool is left.
    """
    from mesh.explain_command import show_plan

    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}
    plan = client.explain(body, region=region)
    if not show_plan(plan, Console(highlight=False), as_json=as_json):
        sys.exit(1)


@main.command()
@with_client
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def pools(client: MeshClient, *, as_json: bool) -> None:
    """Show the pools: replicas, load, learned energy, grid, and which of them can't serve now."""
    from mesh.pools_table import show_pools

    show_pools(client.pools(), Console(highlight=False), as_json=as_json)


@main.command()
@with_client
@click.argument("receipt_id")
def receipt(client: MeshClient, receipt_id: str) -> None:
    """Print one receipt as it was signed; `jc verify` takes it."""
    click.echo(client.receipt(receipt_id).decode())


@main.command("receipts")
@with_client
@_selected
@click.option("--until", help="Those that ended before; as --since.")
@click.option("--model", help="Those of this model.")
@click.option("--limit", type=click.IntRange(1), help="How many at most; else 20, and all with --json.")
@click.option("--json", "as_json", is_flag=True, help="Print them as they were signed, a line each, oldest first.")
def receipts_command(
    client: MeshClient,
    since: str | None,
    until: str | None,
    model: str | None,
    customer_tag: str | None,
    limit: int | None,
    *,
    as_json: bool,
) -> None:
    """Show your receipts, the newest first."""
    from mesh.receipts_table import print_lines, show_receipts

    wanted = ReceiptFilter(since=since, until=until, model=model, customer_tag=customer_tag)
    if as_json:
        print_lines(client.receipt_pages(**wanted), sys.stdout.buffer, limit=limit)
    else:
        show_receipts(client, wanted, Console(highlight=False), limit=limit or _SHOWN_RECEIPTS)


@main.command()
@with_client
@_selected
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="A .tar, .tar.gz or .tgz to write."
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def export(client: MeshClient, since: str | None, customer_tag: str | None, output: Path, *, force: bool) -> None:
    """Write your receipts into one archive that anybody can check offline.

    It holds the receipts, the signers' word on where their chain ends, and the public key; `jc verify` takes it.
    Receipts that are not signed yet are waited for, up to a minute.
    """
    from mesh.export_command import run_export

    console = Console(soft_wrap=True, highlight=False)
    run_export(client, output, since=since, customer_tag=customer_tag, overwrite=force, console=console)


@main.command()
@with_client
@click.option("-o", "--output", type=click.Path(path_type=Path), default="signer_pubkey.hex", show_default=True)
def key(client: MeshClient, output: Path) -> None:
    """Write the signer group's public key, which receipts verify under."""
    group = client.group_key()
    output.write_text(group["public_key"] + "\n")
    click.echo(f"wrote {output}: group key {group['key_id']} ({group['threshold']} of {group['signers']} signers)")


@main.command()
@with_settings
@click.option("--once", is_flag=True, help="Print once instead of watching.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report once, as JSON.")
def meter(settings: Settings, *, once: bool, as_json: bool) -> None:
    """Watch power and the energy book: live watts per device and account.

    Without a running mesh it shows which counters one would use on this machine, and why.
    """
    from mesh.meter_watch import show_meters

    # A live picture is cut at the terminal's edge unless its lines wrap.
    console = Console(soft_wrap=once or as_json, highlight=False)
    show_meters(settings, console, as_json=as_json, once=once)


@main.command()
@with_settings
@click.option("--json", "as_json", is_flag=True, help="Print the nodes as JSON.")
def nodes(settings: Settings, *, as_json: bool) -> None:
    """Show the running mesh's nodes, their grids and silicon; exit code 1 when one is refused."""
    from mesh.nodes_table import show_nodes

    if not show_nodes(settings, Console(soft_wrap=True, highlight=False), as_json=as_json):
        sys.exit(1)


@main.group()
def ledger() -> None:
    """The ledger and its books."""


@ledger.command("check")
@with_settings
@click.option("--key", "key_file", type=click.Path(path_type=Path), help="The group's key; else the data folder's.")
def ledger_check(settings: Settings, key_file: Path | None) -> None:
    """Check every chain, receipt, entry and meter's statement in the ledger; exit code 1 with findings.

    It reads the database beside the mesh, which may run or not.
    """
    from mesh.ledger_command import check

    if not check(settings, key_file):
        sys.exit(1)


@ledger.command("reverse")
@with_settings
@click.argument("transaction")
@click.option("--why", required=True, help="A line that stays with it.")
def ledger_reverse(settings: Settings, transaction: str, why: str) -> None:
    """Undo TRANSACTION (a receipt's is the receipt's id) in the running mesh's books, by opposite entries.

    Nothing is deleted, and the receipt stays as it was signed.
    """
    from mesh.ledger_command import reverse

    click.echo(f"reversed by {reverse(settings, transaction, why)}")


@main.group()
def signers() -> None:
    """Look at the signer group of the running mesh."""


@signers.command("status")
@with_settings
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def signers_status(settings: Settings, *, as_json: bool) -> None:
    """Show which signers can sign, and what waits for them; exit code 1 when they are too few."""
    from mesh.signers_status import show_signers

    if not show_signers(settings, Console(soft_wrap=True, highlight=False), as_json=as_json):
        sys.exit(1)


@signers.command("readmit")
@with_settings
@click.argument("number", type=int)
def signers_readmit(settings: Settings, number: int) -> None:
    """Take back signer NUMBER, which was excluded for breaking the protocol."""
    from mesh.signers_status import readmit_signer

    readmit_signer(settings, number)
    click.echo(f"signer {number} may sign again")


@main.command()
@with_settings
@click.option("--model", help="Which model, where the mesh serves several.")
@click.option("--load", type=click.Path(path_type=Path), help="Take over a record that was measured elsewhere.")
def calibrate(settings: Settings, model: str | None, load: Path | None) -> None:
    """Measure on the running mesh how energy splits between kinds of work, and store it for its silicon.

    Takes some minutes and needs the mesh to itself. Receipts then state the allocation error instead of
    "not calibrated".
    """
    from mesh.calibrate import load_record, run_calibration

    console = Console(soft_wrap=True, highlight=False)
    if load is None:
        run_calibration(settings, console=console, model=model)
    else:
        load_record(settings, load, console=console)


@main.command()
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    required=True,
    help="File with the group's public key as 64 hex digits (`jc key` writes it).",
)
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
def verify(key_file: Path, files: tuple[Path, ...]) -> None:
    """Check receipts: signature, canonical form, arithmetic, chain. Works offline.

    FILES are receipts, newline-delimited JSON, or an export tar. Each failure is one line; then comes how far each
    account's receipts reach and what was not checked. Exit code 1 when any receipt failed, 2 when the check could
    not run.
    """
    from mesh.verify_command import verify_files

    sys.exit(verify_files(files, key_file))


if __name__ == "__main__":
    main()
