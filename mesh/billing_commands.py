"""`jc balance`, `usage`, `top-up`, `refund`, `credit` and `budget`: an account's money and energy, over HTTP."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from mesh.client import MeshClient
from mesh.command_options import with_client
from mesh.errors import MeshError

_USAGE: Final[tuple[tuple[str, JustifyMethod], ...]] = (
    ("requests", "right"),
    ("tokens in", "right"),
    ("tokens out", "right"),
    ("joules", "right"),
    ("CO2 mg", "right"),
    ("USD", "right"),
)
_BY: Final = ("day", "model", "key", "tag", "workload", "region")
_WINDOWS: Final = ("hour", "day", "month")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.command()
@with_client
@_json_option
def balance(client: MeshClient, *, as_json: bool) -> None:
    """Show what your account has left."""
    left = client.balance()
    if as_json:
        click.echo(json.dumps(left))
        return
    click.echo(f"{left['available_usd']} USD available to {left['account']}")
    if left["held_usd_picos"]:
        click.echo(f"{left['held_usd']} USD more are held for requests under way")


@click.command()
@with_client
@click.option("--by", type=click.Choice(_BY), default="day", show_default=True, help="What the sums are over.")
@click.option("--since", default="30d", show_default=True, help="From then on: 30d, 12h, or 2026-01-31T08:00:00Z.")
@click.option("--until", help="Until before then; as --since.")
@click.option("--workload", help="Of one workload (X-Workload).")
@_json_option
def usage(client: MeshClient, by: str, since: str, until: str | None, workload: str | None, *, as_json: bool) -> None:
    """Show what your account has used: requests, tokens, joules and dollars."""
    used = client.usage(by, since=since, until=until, workload=workload)
    if as_json:
        click.echo(json.dumps(used))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    table.add_column(by, footer="total", overflow="fold")
    for (title, justify), total in zip(_USAGE, _figures(used["total"]), strict=True):
        table.add_column(title, justify=justify, footer=total, no_wrap=True)
    for row in used["data"]:
        table.add_row(Text(row["group"] or "(none)"), *_figures(row))
    console = Console(highlight=False)
    console.print(table)
    if used["is_cut"]:
        console.print("more groups are in the total only")
    if unmetered := used["total"]["unmetered_requests"]:
        console.print(f"{unmetered:,} of the requests have no known energy, and cost nothing")


@click.command("top-up")
@with_client
@click.argument("usd")
@click.option("--save-for-recharge", is_flag=True, help="Keep the means of payment, for recharging by itself.")
@click.option("--account", help="Operator: the account that a transfer has arrived for.")
@click.option("--reference", help="Operator: what tells the transfer from every other.")
def top_up(
    client: MeshClient, usd: str, account: str | None, reference: str | None, *, save_for_recharge: bool
) -> None:
    """Add USD (such as 25.00) to your balance: prints where to pay.

    With a key of the operator's account, --account and --reference enter a transfer that has arrived; entered again,
    nothing happens.
    """
    with _saying_how_to_open(account):
        begun = client.top_up(usd, save_for_recharge=save_for_recharge, account=account, reference=reference)
    payment = begun["payment"]
    click.echo(_entered(payment, account) if payment else begun["pay_url"] or begun["instructions"])


@click.command()
@with_client
@_json_option
def payments(client: MeshClient, *, as_json: bool) -> None:
    """Show your top-ups, refunds and credits, the newest first."""
    found = client.payments()
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("payment", "kind", "USD", "status", "when", "reference"):
        is_text = title == "reference"
        table.add_column(title, justify="right" if title == "USD" else "left", overflow="fold", no_wrap=not is_text)
    for each in found:
        reference = each["reference"] or each["refunds"] or ""
        table.add_row(each["id"], each["kind"], each["usd"], each["status"], each["created_at"][:10], Text(reference))
    Console(highlight=False).print(table)


@click.command()
@with_client
@click.argument("payment")
@click.option("--usd", help="How much; else as much as can be.")
@click.option("--account", help="Operator: whose transfer was sent back.")
@click.option("--reference", help="Operator: the transfer back.")
def refund(client: MeshClient, payment: str, usd: str | None, account: str | None, reference: str | None) -> None:
    """Send the top-up PAYMENT (`jc payments` shows it), or a part of it, back to where it came from."""
    sent = client.refund(payment, usd, account=account, reference=reference)
    click.echo(f"{sent['usd']} USD sent back as {sent['id']}")


@click.command()
@with_client
@click.argument("usd")
@click.option("--account", required=True, help="Who gets it.")
@click.option("--kind", type=click.Choice(("sla", "goodwill")), default="sla", show_default=True)
@click.option("--why", required=True, help="A line that stays with it.")
@click.option("--reference", required=True, help="What tells it from every other; given again, nothing happens.")
def credit(client: MeshClient, usd: str, account: str, kind: str, why: str, reference: str) -> None:
    """Give an account USD of credit, which is never paid out. Needs a key of the operator's account."""
    with _saying_how_to_open(account):
        given = client.credit(account, usd, kind=kind, reason=why, reference=reference)
    click.echo(_entered(given, account))


@click.group()
def budget() -> None:
    """Energy budgets of your keys and workloads, in joules."""


@budget.command("list")
@with_client
@_json_option
def budget_list(client: MeshClient, *, as_json: bool) -> None:
    """Show the budgets, and what was drawn of each in its present window."""
    found = client.budgets()
    if as_json:
        click.echo(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("of", "subject", "window", "joules", "used", "ends"):
        table.add_column(title, justify="right" if title in ("joules", "used") else "left", overflow="fold")
    for each in found:
        table.add_row(
            each["kind"],
            Text(each["subject"]),
            each["window"],
            f"{each['joules']:,g}",
            f"{each['used_joules']:,g}",
            each["window_ends_at"],
        )
    Console(highlight=False).print(table)


@budget.command("set")
@with_client
@click.argument("kind", type=click.Choice(("key", "workload")))
@click.argument("subject")
@click.argument("joules", type=click.FloatRange(min=0))
@click.option("--window", type=click.Choice(_WINDOWS), default="day", show_default=True, help="In each of UTC's.")
def budget_set(client: MeshClient, kind: str, subject: str, joules: float, window: str) -> None:
    """Let the key (its id) or workload SUBJECT draw at most JOULES in each window."""
    client.set_budget(kind, subject, joules, window=window)
    click.echo(f"{kind} {subject}: {joules:,g} J a {window}")


@budget.command("remove")
@with_client
@click.argument("kind", type=click.Choice(("key", "workload")))
@click.argument("subject")
@click.option("--window", type=click.Choice(_WINDOWS), default="day", show_default=True)
def budget_remove(client: MeshClient, kind: str, subject: str, window: str) -> None:
    """Take the budget of one window away."""
    client.remove_budget(kind, subject, window=window)
    click.echo(f"{kind} {subject}: no budget for the {window}")


COMMANDS: Final = (balance, usage, top_up, payments, refund, credit, budget)


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['requests']:,}",
        f"{row['input_tokens']:,}",
        f"{row['output_tokens']:,}",
        f"{row['joules']:,.3f}",
        f"{row['carbon_mg']:,.3f}",
        row["usd"],
    )


@contextmanager
def _saying_how_to_open(account: str | None) -> Iterator[None]:
    """Where the mesh refuses since there is no such account, the refusal names the command that opens it."""
    try:
        yield
    except MeshError as error:
        if account is None or f"there is no account {account!r}" not in str(error):
            raise
        raise MeshError(f"{error}; `jc keys new --account {shlex.quote(account)}` opens it") from error


def _entered(payment: dict[str, Any], account: str | None) -> str:
    return f"{payment['usd']} USD entered for {account} as {payment['id']}"
