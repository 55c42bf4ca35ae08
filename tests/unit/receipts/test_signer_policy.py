"""What no signer puts its name to."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from receipts.canonical import canonical_bytes
from receipts.signer_policy import ReceiptRules
from receipts.signing_errors import PolicyViolation

KEY_ID = "0123456789abcdef"
TEMPLATE = json.loads((Path(__file__).parent / "data" / "unsigned-receipt.json").read_text())
END_UNIX_NS = TEMPLATE["execution"]["end_unix_ns"]


def receipt(**chain: object) -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(TEMPLATE)
    document["verification"]["key_id"] = KEY_ID
    document["chain"].update(chain)
    return document


def rules(now_unix_ns: int = END_UNIX_NS) -> ReceiptRules:
    return ReceiptRules(wall_clock_ns=lambda: now_unix_ns, max_clock_skew_ns=60 * 10**9)


def test_an_honest_receipt_claims_its_place() -> None:
    message = canonical_bytes(receipt())
    claim = rules().examine(message, key_id=KEY_ID)
    assert (claim.account, claim.seq, claim.prev_sha256) == ("acme", 1, None)
    assert claim.sha256 == hashlib.sha256(message).digest()
    later = rules().examine(canonical_bytes(receipt(seq=7, prev_sha256="ab" * 32)), key_id=KEY_ID)
    assert (later.seq, later.prev_sha256) == (7, b"\xab" * 32)


def setting(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting("energy", "total_joules", to=0.32), "joules"),
        (setting("energy", "active_joules", to=0.1), "joules"),
        (setting("carbon", "gco2eq_total", to=0.07), "gco2eq_total"),
        (setting("carbon", "facility_joules", to=0.31), "facility_joules"),
        (setting("price", "usd_picos", to=43057), "usd_picos"),
        (setting("execution", "duration_ms", to=999), "duration_ms"),
        (setting("energy", "total_joules", to=None), "total_joules"),
        (setting("chain", "seq", to=0), "seq"),
        (setting("chain", "seq", to=2), "prev_sha256"),
        (setting("chain", "prev_sha256", to="AB" * 32), "prev_sha256"),
        (setting("typ", to="joule-mesh.receipt/v2"), "typ"),
        (setting("note", to="an extra member"), "note"),
        (setting("verification", "key_id", to="f" * 16), "the group's is 0123456789abcdef"),
        (setting("verification", "signature", to=None), "signature"),
        (setting("verification", "signature_algo", to="none"), "signature_algo"),
        (setting("workload", "account", to=""), "account"),
    ],
)
def test_a_receipt_that_breaks_a_rule_is_refused(change: Callable[[dict[str, Any]], None], says: str) -> None:
    document = receipt()
    change(document)
    with pytest.raises(PolicyViolation, match=says):
        rules().examine(canonical_bytes(document), key_id=KEY_ID)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"not JSON",
        b'{"typ":"joule-mesh.receipt/v1"}',
        canonical_bytes(receipt())[:-1],
        canonical_bytes(receipt()) + b" ",
        json.dumps(receipt()).encode(),
        canonical_bytes(receipt()).replace(b'"seq":1', b'"seq":1,"seq":1'),
        b"[" * 100_000,
        b" " * 1_000_000,
    ],
    ids=range(13),
)
def test_anything_but_canonical_signed_bytes_is_refused(message: bytes) -> None:
    with pytest.raises(PolicyViolation):
        rules().examine(message, key_id=KEY_ID)


def test_the_clock_may_differ_a_little_and_a_receipt_may_be_old() -> None:
    message = canonical_bytes(receipt())
    minute_ns = 60 * 10**9
    rules(END_UNIX_NS - minute_ns).examine(message, key_id=KEY_ID)
    rules(END_UNIX_NS + 365 * 24 * 60 * minute_ns).examine(message, key_id=KEY_ID)
    with pytest.raises(PolicyViolation, match="61 s in the future"):
        rules(END_UNIX_NS - minute_ns - 10**9).examine(message, key_id=KEY_ID)
