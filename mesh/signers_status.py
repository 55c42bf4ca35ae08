"""`jc signers`: how the running mesh's signer group is, and taking back a signer that was excluded."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.errors import MeshError
from mesh.ray_session import join_ray
from mesh.run_state import DataFolder
from mesh.settings import Settings

if TYPE_CHECKING:
    from receipts.signers_report import MemberReport, SignersReport

# Longer than the group waits for a signer that does not answer.
_ANSWER_WITHIN_S = 30.0
_CLOCK_WRONG_S = 5.0


def show_signers(settings: Settings, console: Console, *, as_json: bool) -> bool:
    """Show the group; whether enough signers are ready for it to sign.

    Raises:
        NotRunning: no mesh runs on this data folder.
        MeshError: its ledger, which speaks to the signers, does not answer.
    """
    with _ledger(settings) as ledger:
        report = cast("SignersReport", _answer(ledger.signers_report))
    if as_json:
        console.print_json(json.dumps(report.to_jsonable()))
    else:
        for part in _picture(report):
            console.print(part)
    return report.ready >= report.threshold


def readmit_signer(settings: Settings, identifier: int) -> None:
    """Take back a signer that was excluded for breaking the protocol.

    Raises:
        NotRunning: no mesh runs on this data folder.
        SigningError: it is not excluded.
        MeshError: the ledger does not answer.
    """
    with _ledger(settings) as ledger:
        _answer(ledger.readmit_signer, identifier)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Any]:
    state = DataFolder(settings.mesh.data_dir).running()
    join_ray(state, settings.mesh.data_dir)
    import ray

    from receipts.ledger_actor import ledger_of

    try:
        yield ledger_of(state.namespace)
    finally:
        ray.shutdown()


def _answer(method: Any, *arguments: object) -> object:  # noqa: ANN401 - Ray's actor methods have no type
    import ray
    from ray.exceptions import RayError, RayTaskError

    from receipts.errors import ReceiptsError

    try:
        return ray.get(method.remote(*arguments), timeout=_ANSWER_WITHIN_S)
    except RayTaskError as failure:
        if isinstance(failure.cause, ReceiptsError):
            raise failure.cause from None
        raise
    except RayError as away:
        raise MeshError(f"the ledger does not answer: {type(away).__name__}") from away


def _picture(report: "SignersReport") -> "Iterator[Table | Text]":
    threshold, members = report.threshold, len(report.members)
    works = report.ready >= threshold
    yield Text(f"group key {report.public_key.hex()}, named {report.key_id}")
    yield Text(
        f"{threshold} of {members} sign; {report.ready} ready"
        + ("" if works else f": TOO FEW, receipts wait until {threshold} are"),
        style="bold" if works else "bold red",
    )
    table = Table(box=None)
    for header in ("signer", "node", "state", "nonces", "accounts", "vouched"):
        table.add_column(header, justify="right" if header in ("nonces", "accounts", "vouched") else "left")
    for member in report.members:
        table.add_row(*_row(member))
    yield table
    for note in _notes(report):
        yield Text(f"  {note}", style="yellow")
    oldest = report.oldest_age_s
    waits = (
        "no receipt waits" if oldest is None else f"{report.backlog.count:,} receipts wait, the oldest {oldest:.1f} s"
    )
    yield Text(f"{waits}; {report.signed_per_second:.1f} receipts/s signed over the last minute")


def _row(member: "MemberReport") -> tuple[str, ...]:
    status = member.status
    figures = ("-",) * 3
    if status is not None:
        figures = (f"{status.unused_nonces:,}", f"{status.accounts:,}", f"{status.vouched:,}")
    return (str(member.identifier), member.host or "-", str(member.state), *figures)


def _notes(report: "SignersReport") -> Iterator[str]:
    for member in report.members:
        name = f"signer {member.identifier}"
        if member.reason is not None:
            yield f"{name} is {member.state}: {member.reason}"
        if member.state == "excluded":
            yield f"  look at its node; then take it back: jc signers readmit {member.identifier}"
        if member.last_refusal is not None:
            yield f"{name} refused last: {member.last_refusal}"
        ahead = report.clock_ahead_s(member)
        if ahead is not None and abs(ahead) > _CLOCK_WRONG_S:
            yield f"{name}: its clock is {ahead:+.0f} s off the ledger's; set the clock of {member.host}"
