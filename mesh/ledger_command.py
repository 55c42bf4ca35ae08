"""`jc ledger`: whether the ledger is sound, and a correction in its books."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mesh.errors import MeshError
from mesh.ledger_call import call_ledger
from mesh.settings import Settings
from receipts.group_record import GroupRecord
from receipts.verify import public_key_from_hex

if TYPE_CHECKING:  # verifying receipts needs no database, and this needs one
    from receipts.ledger_check import LedgerReport


def check(settings: Settings, key_file: Path | None) -> bool:
    """Check the ledger that these settings name, beside its mesh or without, and print what is found.

    Gives whether it is sound. Signatures are checked with the key in ``key_file``, else with that of the data folder's
    signer group.

    Raises:
        MeshError: a key cannot be read.
        LedgerError: there is no ledger to be read.
    """
    from receipts.ledger_check import check_ledger
    from receipts.ledger_database import ReadingDatabase

    public_key = _public_key(settings, key_file)
    if public_key is None:
        click.echo("signatures are not checked: no signer group is here; give its key with --key", err=True)
    with closing(ReadingDatabase.open(settings.ledger_url)) as database, _progress() as on_checked:
        report = check_ledger(database, public_key, progress=on_checked)
    for line in (*report.findings, *_notes(report), _summary(report)):
        click.echo(line)
    return report.is_sound


def reverse(settings: Settings, transaction_id: str, reason: str) -> str:
    """Reverse a transaction through the running mesh; gives the reversing transaction's id.

    Raises:
        NotRunning: no mesh runs on this data folder.
        LedgerError: there is no such transaction, or it is reversed already.
        MeshError: the ledger does not answer.
    """
    return str(call_ledger(settings.mesh.data_dir, lambda ledger: ledger.reverse.remote(transaction_id, reason)))


def _public_key(settings: Settings, key_file: Path | None) -> bytes | None:
    record = settings.mesh.data_dir / "group.json"
    try:
        if key_file is not None:
            return public_key_from_hex(key_file.read_text())
        return GroupRecord.from_json(record.read_bytes()).public_key if record.exists() else None
    except (OSError, UnicodeDecodeError) as unreadable:
        raise MeshError(f"cannot read the key in {key_file or record}: {unreadable}") from unreadable


def _notes(report: "LedgerReport") -> Iterator[str]:
    """What the check can't know, and the figures by which a person can."""
    for tally in report.tallies:
        yield f"meter {tally.meter}: {tally.statements:,} statements, {tally.missing:,} before the last are missing"
    if report.meters > len(report.tallies):
        yield f"and {report.meters - len(report.tallies):,} more meters"
    if report.meters:
        yield "the meters' keys are taken at their word: compare them with each meter_key in GET /v1/meters"
    if report.unstated:
        yield (
            f"{report.unstated:,} receipts without a meter's statement (made before meters signed; after an upgrade "
            "this number never grows)"
        )
    if report.unstated_failures:
        yield f"{report.unstated_failures:,} failed attempts without a meter's statement (of meters that did not sign)"
    yield (
        "not seen here: receipts cut off at the end of a chain together with their entries; a signed account head "
        "shows them (`jc export`, then `jc verify`)"
    )


def _summary(report: "LedgerReport") -> str:
    held = (
        f"{report.receipts:,} receipts of {report.accounts:,} accounts ({report.pending:,} wait for their signature), "
        f"{report.failed_attempts:,} failed attempts, {report.transactions:,} transactions ({report.reversals:,} "
        f"reversals), {report.statements:,} statements of {report.meters:,} meters"
    )
    return f"Ledger {'sound' if report.is_sound else 'NOT sound'}: {held}"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over the receipts, where stderr is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
