"""The audits of `killing_rounds` on evidence made by hand: sound evidence passes, and each wrong is found."""

import hashlib
import json
import sqlite3
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from books_audit import BooksAudit, audit_books, count_unsigned
from chat_load import Exchange
from kill_plan import TARGETS, rounds
from nacl.signing import SigningKey
from nonce_audit import audit_nonces

KEY = SigningKey(bytes(range(32)))
SCHEMA = """
    CREATE TABLE receipts (account, seq, receipt_id, request_id, signed_bytes, signed_sha256, signature);
    CREATE TABLE entries (transaction_id, unit, book_account, amount);
    CREATE TABLE failed_attempts (request_id);
"""
ANSWER = Exchange(
    kind="unary",
    account="anna",
    words=3,
    begun_s=0,
    ended_s=1,
    outcome="answered",
    status=200,
    receipt_id="rcpt_anna1",
    joules=Decimal("0.000002"),
)


@pytest.fixture
def ledger(tmp_path) -> Path:
    """Two accounts with two receipts each, of 2 and of 3 µJ, and a request that failed."""
    file = tmp_path / "ledger.sqlite3"
    with sqlite3.connect(file) as connection:
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO failed_attempts VALUES ('unlucky')")
        for account in ("anna", "bela"):
            previous = None
            for seq, microjoules in ((1, 2), (2, 3)):
                previous = _add(connection, account, seq, previous, microjoules)
    connection.close()
    return file


def _add(connection: sqlite3.Connection, account: str, seq: int, previous: str | None, microjoules: int) -> str:
    request_id, usd_picos = f"{account}{seq}", microjoules * 10
    receipt = {
        "receipt_id": f"rcpt_{request_id}",
        "workload": {"account": account, "tokens": {"output": 3}},
        "energy": {"total_joules": microjoules / 1e6},
        "price": {"usd_picos": usd_picos},
        "chain": {"seq": seq, "prev_sha256": previous},
    }
    signed = json.dumps(receipt).encode()
    digest = hashlib.sha256(signed)
    row = (account, seq, f"rcpt_{request_id}", request_id, signed, digest.digest(), KEY.sign(signed).signature)
    connection.execute("INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    for unit, giver, taker, amount in (
        ("microjoules", "meter", f"customer:{account}", microjoules),
        ("usd_picos", f"customer:{account}", "revenue", usd_picos),
    ):
        for side, signed_amount in ((giver, -amount), (taker, amount)):
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?)", (f"rcpt_{request_id}", unit, side, signed_amount)
            )
    return digest.hexdigest()


def _audit(file: Path, *exchanges: Exchange) -> BooksAudit:
    return audit_books(lambda: sqlite3.connect(file), bytes(KEY.verify_key), exchanges)


def _found(audit: BooksAudit) -> set[str]:
    return {check for check, findings in audit.findings.items() if findings}


def test_a_sound_ledger_has_nothing_wrong(ledger):
    cut = replace(ANSWER, kind="stream", outcome="broken", receipt_id="rcpt_unlucky", joules=None)
    audit = _audit(ledger, ANSWER, cut)
    assert _found(audit) == set()
    assert (len(audit.receipts), audit.accounts, audit.acknowledged, audit.promised) == (4, 2, 1, 2)
    assert audit.billed_microjoules == 10
    assert count_unsigned(lambda: sqlite3.connect(ledger)) == 0


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("chain", "DELETE FROM receipts WHERE receipt_id = 'rcpt_bela1'"),
        ("chain", "UPDATE receipts SET seq = 3 WHERE receipt_id = 'rcpt_anna2'"),
        ("chain", "UPDATE receipts SET signed_sha256 = x'00' WHERE receipt_id = 'rcpt_anna2'"),
        ("chain", "UPDATE receipts SET receipt_id = 'rcpt_other' WHERE receipt_id = 'rcpt_anna2'"),
        ("chain", "UPDATE receipts SET account = 'anne' WHERE account = 'anna'"),
        ("chain", "INSERT INTO receipts SELECT * FROM receipts WHERE receipt_id = 'rcpt_anna2'"),
        ("signatures", "UPDATE receipts SET signature = NULL WHERE receipt_id = 'rcpt_anna2'"),
        ("signatures", "UPDATE receipts SET signature = zeroblob(64) WHERE receipt_id = 'rcpt_anna2'"),
        ("signatures", "UPDATE receipts SET signed_bytes = CAST(signed_bytes || ' ' AS BLOB) WHERE account = 'anna'"),
        ("books", "DELETE FROM entries WHERE book_account = 'revenue'"),
        ("books", "DELETE FROM entries WHERE transaction_id = 'rcpt_anna1'"),
        ("books", "UPDATE entries SET amount = 2 * amount"),
        ("books", "UPDATE entries SET transaction_id = 'rcpt_nobody' WHERE transaction_id = 'rcpt_anna1'"),
        ("acknowledged", "DELETE FROM receipts WHERE receipt_id = 'rcpt_anna1'"),
    ],
)
def test_damage_is_found(ledger, check, damage):
    with sqlite3.connect(ledger) as connection:
        changed = connection.execute(damage).rowcount
    connection.close()
    assert changed
    assert check in _found(_audit(ledger, ANSWER))


@pytest.mark.parametrize(
    ("check", "exchange"),
    [
        ("acknowledged", replace(ANSWER, receipt_id="rcpt_lost")),
        ("acknowledged", replace(ANSWER, joules=Decimal("0.000003"))),
        ("acknowledged", replace(ANSWER, joules=None)),
        ("acknowledged", replace(ANSWER, account="bela")),
        ("acknowledged", replace(ANSWER, words=2)),
        ("settlements", replace(ANSWER, outcome="hung up", receipt_id="rcpt_lost", joules=None)),
    ],
)
def test_what_a_client_saw_and_the_ledger_does_not_bear_out_is_found(ledger, check, exchange):
    assert _found(_audit(ledger, exchange)) == {check}


def test_an_id_promised_to_two_requests_is_found(ledger):
    assert _found(_audit(ledger, ANSWER, ANSWER)) == {"acknowledged"}


def _written(folder: Path, signer: int, life: str, *records: dict, torn: str = "") -> None:
    file = folder / str(signer) / "released" / f"{life}.ndjson"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + torn)


def test_nonces_that_serve_once_are_fine(tmp_path):
    _written(
        tmp_path, 1, "a", {"committed": ["aa:bb", "cc:dd"]}, {"released": [["aa:bb", "p"]]}, torn='{"released": [["cc'
    )
    _written(tmp_path, 1, "b", {"committed": ["ee:ff"]}, {"released": [["ee:ff", "p"]]})
    audit = audit_nonces(tmp_path)
    assert (audit.lives, audit.committed, audit.released, audit.findings) == (2, 3, 2, ())


@pytest.mark.parametrize(
    "second_life",
    [
        ({"committed": ["aa:xx"]},),  # half a commitment again
        ({"released": [["aa:bb", "q"]]},),  # nonces of the life before
        ({"committed": ["ee:ff"]}, {"released": [["ee:ff", "p"], ["ee:ff", "q"]]}),  # two messages
        ({"committed": ["ee:ff"]}, {"released": [["ee:ff", "p"]]}, {"released": [["ee:ff", "p"]]}),  # one twice
        ({"released": [["yy:zz", "p"]]},),  # published by nobody
    ],
)
def test_nonces_that_serve_twice_are_found(tmp_path, second_life):
    _written(tmp_path, 1, "a", {"committed": ["aa:bb"]}, {"released": [["aa:bb", "p"]]})
    _written(tmp_path, 2, "b", *second_life)
    assert len(audit_nonces(tmp_path).findings) == 1


def test_a_plan_is_its_seed_and_hits_every_target_in_any_five_rounds():
    plan = list(rounds(7, 200))
    assert plan == list(rounds(7, 200))
    assert plan != list(rounds(8, 200))
    for first in range(0, 200, 5):
        assert {each.blows[0].target for each in plan[first : first + 5]} == set(TARGETS)
    assert any(len(each.blows) == 2 for each in plan)
    assert any(blow.successor for each in plan for blow in each.blows)
    assert {blow.count for each in plan for blow in each.blows if blow.target == "signer"} == {1, 2, 3}
    assert all(later.number == earlier.number + 1 for earlier, later in pairwise(plan))
