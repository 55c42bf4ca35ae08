"""`jc ledger`: what is said, and the exit code."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from opened_ledger import opened
from past_the_ledger import tampering
from sqlalchemy import insert, text

from mesh.command import main
from metering.statements import ChainHead, MeterKey, StatementChain
from receipts.ledger_schema import failed_attempts, receipts


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    ledger = opened(url)
    ledger.create_key("acme", "")
    ledger.close()
    return url


CHAINS_END = (
    "not seen here: receipts cut off at the end of a chain together with their entries; a signed account head shows "
    "them (`jc export`, then `jc verify`)\n"
)


def jc(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["ledger", *arguments, "--data-dir", str(tmp_path)])


def test_a_sound_ledger(tmp_path: Path, url: str) -> None:
    done = jc(tmp_path, "check")
    assert done.stdout == CHAINS_END + (
        "Ledger sound: 0 receipts of 1 accounts (0 wait for their signature), 0 failed attempts, "
        "1 transactions (0 reversals), 0 statements of 0 meters\n"
    )
    assert done.stderr == "signatures are not checked: no signer group is here; give its key with --key\n"
    assert done.exit_code == 0


def test_what_a_person_has_to_compare_is_said(tmp_path: Path, url: str) -> None:
    statement = StatementChain(MeterKey(bytes(32)), ChainHead(sequence=2, sha256="ab" * 32, charged_microjoules=0))
    said = statement.state(request_id="1", outcome="failed", microjoules=None, counted_microjoules=1, open_ns=0)
    with tampering(url) as connection:
        for number, each in enumerate((said, None)):
            row = {"settlement_sha256": bytes([number]) * 32, "statement": each and each.statement}
            row |= {"account": "acme", "request_id": "1", "created_unix_ns": 1}
            connection.execute(insert(failed_attempts), {**row, "statement_signature": each and each.signature})
    done = jc(tmp_path, "check")
    assert done.stdout.splitlines()[:3] == [
        f"meter {MeterKey(bytes(32)).public_key.hex()}: 1 statements, 2 before the last are missing",
        "the meters' keys are taken at their word: compare them with each meter_key in GET /v1/meters",
        "1 failed attempts without a meter's statement (of meters that did not sign)",
    ]
    assert done.exit_code == 0


def test_receipts_without_a_statement_are_counted(tmp_path: Path, url: str) -> None:
    row = {"receipt_id": "rcpt_1", "account": "acme", "request_id": "1", "seq": 1, "created_unix_ns": 1}
    with tampering(url) as connection:
        connection.execute(insert(receipts), {**row, "signed_bytes": b"{}", "signed_sha256": bytes(32)})
    assert (
        "1 receipts without a meter's statement (made before meters signed; after an upgrade this number never grows)"
        in jc(tmp_path, "check").stdout.splitlines()
    )


def test_each_finding_has_its_line_and_the_exit_code_says_so(tmp_path: Path, url: str) -> None:
    key = tmp_path / "key.hex"
    key.write_text("00" * 32)
    with tampering(url) as connection:
        connection.execute(text("UPDATE entries SET amount = amount + 1 WHERE amount > 0"))
    done = jc(tmp_path, "check", "--key", str(key))
    *findings, _, summary = done.stdout.splitlines()
    assert findings[0].startswith("transaction opening:acme: the books have 5000000000001 usd_picos of customer:acme; ")
    assert findings[1] == "transaction opening:acme: its usd_picos sum to 1, not to zero"
    assert summary.startswith("Ledger NOT sound: 0 receipts of 1 accounts")
    assert (done.exit_code, done.stderr) == (1, "")


@pytest.mark.parametrize("written", ["", "not hex", "00" * 31])
def test_a_key_that_is_none(tmp_path: Path, url: str, written: str) -> None:
    key = tmp_path / "key.hex"
    key.write_text(written)
    done = jc(tmp_path, "check", "--key", str(key))
    assert (done.exit_code, done.stderr) == (2, "jc: a public key is 64 hex digits\n")
    missing = jc(tmp_path, "check", "--key", str(tmp_path / "none.hex"))
    assert missing.exit_code == 2
    assert "cannot read the key in" in missing.stderr


def test_no_ledger_is_made_where_none_is(tmp_path: Path) -> None:
    done = jc(tmp_path, "check")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"jc: there is no ledger {tmp_path}/ledger.sqlite3; a mesh makes one when it is started"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_reversal_needs_a_mesh_that_runs_and_a_reason(tmp_path: Path, url: str) -> None:
    away = jc(tmp_path, "reverse", "rcpt_x", "--why", "because")
    assert away.exit_code == 2
    assert away.stderr.startswith(f"jc: no mesh runs on {tmp_path}; start one with `jc up`, or name one that runs by ")
    assert "Missing option '--why'" in jc(tmp_path, "reverse", "rcpt_x").stderr
