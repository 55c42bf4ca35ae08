"""``workload.api_key_id`` and ``workload.name``: there where they are known, absent in what is older, never null."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from receipts.canonical import canonical_bytes
from receipts.document import Receipt, document_from, receipt_from_signed_bytes, signed_bytes
from receipts.draft import RequestContext, draft_receipt
from receipts.errors import InvalidDocument

_KEY = "key_0123456789abcdef"


def drafted(make_settlement, **changes: Any) -> Receipt:
    settlement = make_settlement(1, **changes)
    context = RequestContext.from_json(settlement.context)
    return draft_receipt(context, settlement, key_id="0" * 16, seq=1, prev_sha256=None)


@pytest.mark.parametrize("names", [("api_key_id",), ("name",), ("api_key_id", "name"), ()])
def test_they_are_among_the_signed_bytes_where_the_door_knew_them(make_settlement, names: tuple[str, ...]) -> None:
    known = {"api_key_id": _KEY, "name": "etl/2026:a_b@c.d-e"}
    asked = {"workload_name" if name == "name" else name: known[name] for name in names}
    receipt = drafted(make_settlement, **asked)
    signed = signed_bytes(receipt)
    workload = json.loads(signed)["workload"]
    assert {name: workload[name] for name in known if name in workload} == {name: known[name] for name in names}
    assert receipt_from_signed_bytes(signed) == receipt


@pytest.mark.parametrize("name", ["api_key_id", "name"])
@pytest.mark.parametrize("value", [None, "", 5, "\n", "x" * 129, "key_0123456789ABCDEF ", "-a"])
def test_what_is_no_such_member_is_no_receipt(make_settlement, name: str, value: object) -> None:
    whole = json.loads(signed_bytes(drafted(make_settlement)))
    whole["verification"]["signature"] = None
    whole["workload"][name] = value
    with pytest.raises(InvalidDocument, match=rf"workload\.{name}"):
        document_from(whole)


def test_the_idempotency_key_is_on_no_receipt(make_settlement) -> None:
    receipt = drafted(make_settlement, idempotency_sha256="ab" * 32)
    assert b"abab" not in signed_bytes(receipt)
    assert receipt == drafted(make_settlement)


@pytest.mark.parametrize(
    "wrong", [{"api_key_id": "key_1"}, {"workload_name": "a b"}, {"idempotency_sha256": "AB" * 32}]
)
def test_a_context_takes_no_other_text(make_context, wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        make_context(1, **wrong)


def test_a_context_travels_as_it_is(make_context) -> None:
    for changes in ({}, {"api_key_id": _KEY, "workload_name": "w", "idempotency_sha256": "ab" * 32}):
        context = make_context(1, **changes)
        assert RequestContext.from_json(context.to_json()) == context
        assert ("api_key_id" in json.loads(context.to_json())) == bool(changes)


def test_a_chain_of_older_and_newer_receipts_verifies(group) -> None:
    chain = group.chain(4, changes=lambda seq: {"api_key_id": _KEY, "workload_name": "w"} if seq > 2 else {})
    members = [set(json.loads(each)["workload"]) & {"api_key_id", "name"} for each in chain]
    assert members == [set(), set(), {"api_key_id", "name"}, {"api_key_id", "name"}]
    for line in chain:
        assert canonical_bytes(json.loads(line)) == line
        assert isinstance(document_from(json.loads(line)), Receipt)
