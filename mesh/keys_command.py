"""`jc keys`: API keys of the mesh that runs on this machine, of any of its accounts."""

import time
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.command_options import with_settings
from mesh.errors import MeshError
from mesh.ledger_call import call_ledger
from mesh.settings import Settings
from receipts.moments import parse_moment_to_come, rfc3339_to_seconds

if TYPE_CHECKING:  # what it comes from needs no ledger, but `jc verify` needs none of it
    from collections.abc import Sequence

    from receipts.api_keys import ApiKey, NewKey

_SCOPES: Final = ("inference", "read", "deploy", "billing-admin")
_account_option = click.option("--account", default="default", show_default=True)


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("new")
@with_settings
@_account_option
@click.option("--name", default="", help="What the key is for.")
@click.option(
    "--scope", "scopes", type=click.Choice(_SCOPES), multiple=True, help="What it may; may be repeated; else all."
)
@click.option("--expires", metavar="WHEN", help="When it ends: 90d, 12h, or 2027-01-31T08:00:00Z; else never.")
def keys_new(settings: Settings, account: str, name: str, scopes: tuple[str, ...], expires: str | None) -> None:
    """Make an API key on the mesh that runs here; it is shown once."""
    expires_unix_ns = None if expires is None else parse_moment_to_come(expires, time.time_ns())
    made: NewKey = call_ledger(
        settings.mesh.data_dir,
        lambda ledger: ledger.create_key.remote(account, name, scopes or _SCOPES, expires_unix_ns),
    )
    click.echo(made.secret)


@keys.command("list")
@with_settings
@_account_option
def keys_list(settings: Settings, account: str) -> None:
    """Show an account's keys, the newest first; never their secrets."""
    found: Sequence[ApiKey] = call_ledger(settings.mesh.data_dir, lambda ledger: ledger.list_keys.remote(account))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "name", "scopes", "made", "ends"):
        table.add_column(title, overflow="fold", no_wrap=title in ("key", "made"))
    for each in found:
        table.add_row(
            each.key_id,
            Text(each.name),
            ", ".join(each.scopes),
            _day(each.created_unix_ns),
            _end(each),
        )
    Console(highlight=False).print(table)


@keys.command("revoke")
@with_settings
@_account_option
@click.argument("key_id")
def keys_revoke(settings: Settings, account: str, key_id: str) -> None:
    """Revoke the key KEY_ID (`jc keys list` shows it): it opens nothing from the next request on."""
    if not call_ledger(settings.mesh.data_dir, lambda ledger: ledger.revoke_key.remote(account, key_id)):
        raise MeshError(f"the account {account!r} has no key {key_id!r} that isn't revoked")
    click.echo(f"revoked {key_id}")


@keys.command("rotate")
@with_settings
@_account_option
@click.argument("key_id")
@click.option("--overlap", default="1d", show_default=True, help="How long the old key goes on: 0s, 30m, 12h, 7d.")
def keys_rotate(settings: Settings, account: str, key_id: str, overlap: str) -> None:
    """Make a key in place of KEY_ID, which ends after the overlap; the new one is shown once."""
    overlap_s = parse_moment_to_come(overlap, 0) / 10**9
    made: NewKey = call_ledger(
        settings.mesh.data_dir, lambda ledger: ledger.rotate_key.remote(account, key_id, overlap_s)
    )
    click.echo(made.secret)


def _end(key: "ApiKey") -> str:
    if key.revoked_unix_ns is not None:
        return f"revoked {_day(key.revoked_unix_ns)}"
    return "" if key.expires_unix_ns is None else _day(key.expires_unix_ns)


def _day(unix_ns: int) -> str:
    return rfc3339_to_seconds(unix_ns).partition("T")[0]
