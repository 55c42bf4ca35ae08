"""`jc verify`: findings on stdout as they come, then what was and wasn't checked, then the count. Base install only."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from mesh.errors import MeshError
from receipts.errors import CannotVerify
from receipts.verify import public_key_from_hex, verify_paths

_SOME_FAILED: Final = 1
_INTERRUPTED: Final = 130
# Half a second's work; below this a bar would only flash.
_LONG_INPUT_BYTES: Final = 2**22
# A key file has 65 bytes. Anything much longer is another file.
_MAX_KEY_FILE: Final = 1024


def verify_files(files: Sequence[Path], key_file: Path) -> int:
    """Print the findings and the summary; give the exit code: 1 when any receipt failed or none passed, 130 when
    interrupted.

    Raises:
        MeshError: the key file cannot be read or holds no key.
        CannotVerify: one of the files cannot be read.
    """
    public_key = _read_public_key(key_file)
    with _progress(files) as on_read:
        report = verify_paths(files, public_key, on_read)
        try:
            for finding in report:
                click.echo(finding)
        except KeyboardInterrupt:
            click.echo("jc: interrupted; what comes after the last line above was not checked", err=True)
            return _INTERRUPTED
    for note in report.notes:
        click.echo(note)
    click.echo(report.summary)
    if not report.failed and not report.passed:
        click.echo("jc: the files hold no receipt", err=True)
    return _SOME_FAILED if report.failed or not report.passed else 0


@contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar over the files' bytes, where stderr is a terminal and the input is long; the block tells what it read."""
    console = Console(stderr=True)
    total = sum(path.stat().st_size for path in files if path.is_file())
    if not console.is_terminal or total < _LONG_INPUT_BYTES:
        yield lambda _bytes: None
        return
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # Where findings go to the same terminal they must be printed above the bar; elsewhere they are left alone.
    on_terminal = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=on_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _read_public_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_FILE).decode("ascii", "replace")
    except OSError as unreadable:
        raise MeshError(f"cannot read the key file {path}: {unreadable.strerror}") from unreadable
    try:
        return public_key_from_hex(text)
    except CannotVerify as none:
        raise MeshError(f"the key file {path} holds no key: {none}. `jc key` writes one") from none
