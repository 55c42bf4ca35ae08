"""Whether a mesh under test has kept every receipt, once and rightly: all the evidence there is, in one verdict.

Checked by code that shares nothing with the mesh's (`books_audit`, `nonce_audit`), by the meters' own books, by the
project's own checker, and by asking the ledger for holds that were left.
"""

import json
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import requests
from books_audit import BooksAudit, Connect, audit_books, count_unsigned
from chat_load import Exchange, count_by
from nonce_audit import audit_nonces
from running_echo import RunningMesh

from mesh.app import OPERATOR_ACCOUNT
from receipts.ledger_check import check_ledger
from receipts.ledger_database import ReadingDatabase

_QUIET_WITHIN_S: Final = 120.0
_HOLDS_LAPSE_WITHIN_S: Final = 60.0
_ALLOWED_STATUSES: Final = (502, 503, 504)
# What Ray Serve's proxy says, with status 500, when the ingress behind it has died: nobody of ours is there to answer.
_RAYS_OWN_ERROR: Final = "Internal Server Error"
_HOLDS_LEFT: Final = Path(__file__).with_name("holds_left.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAccess:
    """The ledger of a mesh under test: ``url`` is SQLAlchemy's, ``connect`` opens it for SQL of one's own."""

    url: str
    connect: Connect

    @classmethod
    def of_folder(cls, data_dir: Path) -> "LedgerAccess":
        """The SQLite file of a data folder."""
        file = data_dir / "ledger.sqlite3"
        return cls(url=f"sqlite:///{file}", connect=partial(sqlite3.connect, f"file:{file}?mode=ro", uri=True))


@dataclass(slots=True)
class Verdict:
    """By check: what was looked at, and what was found wrong."""

    figures: dict[str, str] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def is_clean(self) -> bool:
        return not any(self.findings.values())


class Soundness:
    """Judges one mesh, which has a key for the operator's account, while nobody asks it anything."""

    def __init__(self, mesh: RunningMesh, ledger: LedgerAccess, *, records_nonces: bool) -> None:
        self._mesh = mesh
        self._ledger = ledger
        self._records_nonces = records_nonces
        self._public_key = self._group_key()

    def judge(self, exchanges: Sequence[Exchange]) -> Verdict:
        """Wait until everything under way has ended, and look at everything; ``exchanges`` are all there were."""
        verdict = Verdict()
        meters = self._settled_meters()
        if not self._mesh.wait_until(lambda: count_unsigned(self._ledger.connect) == 0, _QUIET_WITHIN_S):
            verdict.findings["signatures"].append(f"receipts were still unsigned after {_QUIET_WITHIN_S:g} s")
        audit = audit_books(self._ledger.connect, self._public_key, exchanges)
        _take_books(verdict, audit)
        _take_refusals(verdict, exchanges)
        _take_meters(verdict, meters, audit)
        self._take_project_check(verdict)
        if self._records_nonces:
            self._take_nonces(verdict)
        self._take_holds(verdict)
        verdict.figures["group key"] = "unchanged"
        if self._group_key() != self._public_key:
            verdict.findings["group key"].append("it is another than at the start")
        return verdict

    def _settled_meters(self) -> Sequence[Mapping[str, Any]]:
        """The meters' reports once the ledger has everything; else the last ones, for their figures."""
        last: list[Mapping[str, Any]] = []

        def is_settled() -> bool:
            with suppress(requests.RequestException, KeyError):
                response = requests.get(
                    f"{self._mesh.url}/v1/meters",
                    headers={"Authorization": f"Bearer {self._mesh.account_keys[OPERATOR_ACCOUNT]}"},
                    timeout=30,
                ).json()
                if response["data"] and response["unreachable"] == 0:
                    last[:] = response["data"]
                    return all(each["unacknowledged"] == each["open_requests"] == 0 for each in last)
            return False

        self._mesh.wait_until(is_settled, _QUIET_WITHIN_S)
        return last

    def _take_project_check(self, verdict: Verdict) -> None:
        database = ReadingDatabase.open(self._ledger.url)
        try:
            report = check_ledger(database, self._public_key)
        finally:
            database.close()
        verdict.figures["jc ledger check"] = "sound" if report.is_sound else "NOT sound"
        verdict.findings["jc ledger check"] += report.findings
        if not report.is_sound and not report.findings:
            verdict.findings["jc ledger check"].append("not sound, and it does not say why")

    def _take_nonces(self, verdict: Verdict) -> None:
        audit = audit_nonces(self._mesh.data_dir / "signers")
        verdict.figures["nonces"] = (
            f"{audit.released} shares of {audit.committed} commitments in {audit.lives} signer lives"
        )
        verdict.findings["nonces"] += audit.findings
        if not audit.released:
            verdict.findings["nonces"].append("no share was recorded: the signers do not record")

    def _take_holds(self, verdict: Verdict) -> None:
        """A hold whose ingress died ends when its lease does."""
        said = [""]

        def are_gone() -> bool:
            command = [sys.executable, str(_HOLDS_LEFT), str(self._mesh.data_dir)]
            asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            said[0] = asked.stdout.strip() or asked.stderr.strip().rpartition("\n")[2]
            return asked.returncode == 0 and json.loads(asked.stdout) == {"count": 0, "held_usd_picos": 0}

        are_left = not self._mesh.wait_until(are_gone, _HOLDS_LAPSE_WITHIN_S)
        verdict.figures["holds"] = said[0] if are_left else "0 left"
        if are_left:
            verdict.findings["holds"].append(f"after {_HOLDS_LAPSE_WITHIN_S:g} s the ledger says: {said[0]}")

    def _group_key(self) -> bytes:
        answer = requests.get(f"{self._mesh.url}/v1/keys/group", timeout=30)
        answer.raise_for_status()
        return bytes.fromhex(answer.json()["public_key"])


def _take_books(verdict: Verdict, audit: BooksAudit) -> None:
    verdict.figures |= {
        "acknowledged": f"{audit.acknowledged} acknowledged receipts, each once with the client's joules",
        "settlements": f"{audit.promised} promised ids: each a receipt or one of {len(audit.failed)} failed",
        "chain": f"{len(audit.receipts)} receipts in {audit.accounts} gapless chains",
        "signatures": f"{len(audit.receipts) - audit.unsigned} signatures verified, {audit.unsigned} missing",
        "books": f"{audit.entries} entries, both books at zero, equal to the receipts",
    }
    for check, findings in audit.findings.items():
        verdict.findings[check] += findings


def _take_refusals(verdict: Verdict, exchanges: Sequence[Exchange]) -> None:
    """Requests may fail while something is down, by errors that say so; an answer may not be malformed."""
    refused = [each for each in exchanges if each.outcome == "refused"]
    odd = [each for each in refused if each.status not in _ALLOWED_STATUSES and each.detail != _RAYS_OWN_ERROR]
    by_status = sorted(count_by(refused, lambda each: str(each.status)).items())
    verdict.figures["refusals"] = ", ".join(f"{count} with {status}" for status, count in by_status) or "none"
    verdict.findings["refusals"] += [f"status {each.status} to {each.kind}: {each.detail}" for each in odd]
    malformed = [each for each in exchanges if each.outcome == "malformed"]
    verdict.findings["acknowledged"] += [f"{each.receipt_id}: {each.detail}" for each in malformed]


def _take_meters(verdict: Verdict, meters: Sequence[Mapping[str, Any]], audit: BooksAudit) -> None:
    waiting = sum(each["unacknowledged"] for each in meters)
    running = sum(each["open_requests"] for each in meters)
    charged = sum(each["totals"]["request_microjoules"] for each in meters)
    broken = [each["identity_error_microjoules"] for each in meters if each["identity_error_microjoules"]]
    verdict.figures["meter"] = f"{charged} µJ charged, {waiting} unacknowledged, {running} open"
    findings = verdict.findings["meter"]
    if not meters:
        findings.append(f"no meter answered within {_QUIET_WITHIN_S:g} s")
    if waiting or running:
        findings.append(f"after {_QUIET_WITHIN_S:g} s {waiting} unacknowledged, {running} open")
    if meters and charged != audit.billed_microjoules:
        findings.append(f"the meters charged {charged} µJ, the receipts bill {audit.billed_microjoules}")
    if broken:
        findings.append(f"the meters' book is broken by {broken} µJ")
