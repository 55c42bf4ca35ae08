"""The schema: every member there, none more, and a reason beside every null."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import receipts
from receipts.canonical import canonical_bytes, parse_strict
from receipts.document import (
    AccountHead,
    Receipt,
    cut_signature,
    document_from,
    head_from_signed_bytes,
    head_json_schema,
    receipt_from_signed_bytes,
    receipt_json_schema,
    signed_bytes,
    with_signature,
)
from receipts.errors import InvalidDocument


@pytest.fixture(scope="session")
def document(group) -> dict[str, Any]:
    return json.loads(group.receipt(1, 1, None))


@pytest.fixture(scope="session")
def head(group) -> dict[str, Any]:
    return json.loads(group.head(group.chain(2)))


def members(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all members of all objects."""
    if not isinstance(value, dict):
        return []
    return [each for name in value for each in [(*path, name), *members(value[name], (*path, name))]]


def changed(document: dict[str, Any], path: tuple[str, ...], to: object) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return document


def test_a_receipt_survives_the_model(document: dict[str, Any]) -> None:
    receipt = document_from(document)
    assert isinstance(receipt, Receipt)
    assert canonical_bytes(receipt.model_dump()) == canonical_bytes(document)


def test_the_sections_are_those_of_the_product_page(document: dict[str, Any]) -> None:
    page = {
        "receipt_id": (),
        "workload": ("id", "kind"),
        "silicon": ("vendor", "model", "operator", "region"),
        "execution": ("start_unix_ns", "duration_ms"),
        "energy": ("total_joules", "peak_watts", "method", "method_confidence"),
        "carbon": ("gco2eq_total", "grid_intensity_gco2_per_kwh"),
        "operator": ("legal_entity", "dc_pue", "dc_ref_renewable_share"),
        "verification": ("signature_algo", "signature", "tier"),
    }
    for section, names in page.items():
        assert set(names) <= set(document[section] if names else ())


def test_every_member_is_required_and_none_is_added(document: dict[str, Any]) -> None:
    paths = members(document)
    assert len(paths) > 70
    for path in paths:
        if path == ("placement",):
            continue  # older receipts have none, see test_placement_section.py
        shorter = copy.deepcopy(document)
        inner = shorter
        for step in path[:-1]:
            inner = inner[step]
        del inner[path[-1]]
        with pytest.raises(InvalidDocument, match=r"Field required|no typ"):
            document_from(shorter)
        if isinstance(inner, dict):
            inner["more"] = 1
            with pytest.raises(InvalidDocument):
                document_from(shorter)
    with pytest.raises(InvalidDocument, match=r"chain\.more: Extra inputs are not permitted"):
        document_from(changed(document, ("chain", "more"), 1))


def test_no_type_is_converted(document: dict[str, Any]) -> None:
    """Every scalar as a string, as a list, and as a number or bool of another kind."""
    for path in members(document):
        value: Any = document
        for step in path:
            value = value[step]
        wrong: list[object] = [[value], {"a": value}]
        wrong.append(str(value) if isinstance(value, int | float) else 1.5)
        if isinstance(value, bool):
            wrong.append(int(value))
        elif isinstance(value, int | float):
            wrong.append(bool(value))
        for other in wrong:
            with pytest.raises(InvalidDocument):
                document_from(changed(document, path, other))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("typ", "joule-mesh.receipt/v2"),
        ("typ", None),
        ("receipt_id", "rcpt_" + "0" * 31),
        ("receipt_id", "rcpt_" + "A" * 32),
        ("receipt_id", "rcpt_" + "0" * 32 + "\n"),
        ("workload.account", ""),
        ("workload.account", "-acme"),
        ("workload.account", "a" * 129),
        ("workload.account", "acme corp"),
        ("workload.customer_tag", ""),
        ("workload.customer_tag", "a" * 129),
        ("workload.customer_tag", "line\nbreak"),
        ("workload.tokens.output", -1),
        ("workload.tokens.cached", 35),
        ("workload.model", "\x1b[31m"),
        ("silicon.device_ids", [""]),
        ("silicon.simulated", None),
        ("execution.start_unix_ns", -1),
        ("execution.start_unix_ns", 2**63),
        ("execution.end_unix_ns", 1),
        ("execution.retries", 1),
        ("energy.total_joules", -0.1),
        ("energy.total_joules", 2**33),
        ("energy.method", "nvidia-smi-power-draw"),
        ("energy.method", "rapl+"),
        ("energy.method", None),
        ("energy.method_confidence", "certain"),
        ("energy.method_confidence", "unavailable"),
        ("energy.total_joules", None),
        ("energy.unavailable_reason", "because"),
        ("energy.active_joules", None),
        ("energy.errors.allocation_reason", None),
        ("energy.errors.allocation_percent", 3.0),
        ("carbon.gco2eq_total", None),
        ("carbon.facility_joules", None),
        ("operator.country", "de"),
        ("operator.dc_pue", 0.99),
        ("operator.dc_ref_renewable_share", 1.01),
        ("operator.hardware_attestation", "a quote"),
        ("operator.hardware_attestation_reason", None),
        ("price.usd_picos", -1),
        ("price.usd_picos", 1.5),
        ("chain.seq", 0),
        ("chain.seq", 2),
        ("chain.prev_sha256", "ab" * 32),
        ("verification.signature_algo", "ed448"),
        ("verification.key_id", "AB" * 8),
        ("verification.tier", "L4"),
        ("verification.signature", "cd" * 63),
        ("verification.signature", "CD" * 64),
    ],
)
def test_values_outside_their_range_are_refused(document: dict[str, Any], path: str, value: object) -> None:
    with pytest.raises(InvalidDocument):
        document_from(changed(document, tuple(path.split(".")), value))


@pytest.mark.parametrize("method", ["rapl", "util-tdp", "ioreport", "nvml-total-energy+rapl", "nvml-power-integrated"])
def test_methods_may_be_summed(document: dict[str, Any], method: str) -> None:
    receipt = document_from(changed(document, ("energy", "method"), method))
    assert isinstance(receipt, Receipt)
    assert receipt.energy.method == method


@pytest.mark.parametrize("value", [None, 1, [], "text", {}, {"typ": ["joule-mesh.receipt/v1"]}])
def test_what_is_no_document_is_refused(value: Any) -> None:
    with pytest.raises(InvalidDocument, match=r"not a JSON object|it has no typ"):
        document_from(value)


def test_an_account_head_is_checked_too(head: dict[str, Any]) -> None:
    assert isinstance(document_from(head), AccountHead)
    wrong = {"first_seq": 3, "last_seq": 0, "last_sha256": "x", "account": None, "as_of_unix_ns": -1, "more": 1}
    for name, value in [*wrong.items(), ("last_seq", head["first_seq"])]:
        with pytest.raises(InvalidDocument):
            document_from({**head, name: value})


def test_only_a_heads_exact_signed_bytes_are_taken_for_signing(document: dict[str, Any], head: dict[str, Any]) -> None:
    signed = signed_bytes(document_from(head))
    assert head_from_signed_bytes(signed) == document_from({**head, "signature": None})
    for other, says in (
        (canonical_bytes(head), "the signature is not part of the signed bytes"),
        (signed + b" ", "not in canonical form"),
        (signed_bytes(document_from(document)), "not an account head"),
    ):
        with pytest.raises(InvalidDocument, match=says):
            head_from_signed_bytes(other)
    with pytest.raises(InvalidDocument, match="not a receipt"):
        receipt_from_signed_bytes(signed)


def test_signed_bytes_are_all_but_the_signature(document: dict[str, Any], head: dict[str, Any]) -> None:
    for value in (document, head):
        model = document_from(value)
        signature = (value.get("verification") or value)["signature"]
        canonical = canonical_bytes(value)
        signed = signed_bytes(model)
        assert signed == cut_signature(canonical, signature)
        assert signature not in signed.decode()
        assert with_signature(signed, bytes.fromhex(signature)) == canonical
    pending = json.loads(with_signature(signed_bytes(document_from(document)), None))
    assert pending == changed(document, ("verification", "signature"), None)


@given(st.text(min_size=1, max_size=128))
def test_no_text_can_pose_as_the_signature(group, text: str) -> None:
    """The cut is by text; a tag that spells the very member must not be mistaken for it."""
    for tag in (text, f'"signature":"{"ab" * 32}",', f'{text}","signature":"'[:128]):
        value = json.loads(group.receipt(1, 1, None))
        value["workload"]["customer_tag"] = tag
        value["silicon"]["model"] = f'"signature":"{value["verification"]["signature"]}",'
        try:
            model = document_from(value)
        except InvalidDocument:
            assert not tag.isprintable()
            continue
        signature = value["verification"]["signature"]
        assert cut_signature(canonical_bytes(value), signature) == signed_bytes(model)


def test_only_exact_signed_bytes_are_taken_for_signing(document: dict[str, Any]) -> None:
    signed = signed_bytes(document_from(document))
    receipt = receipt_from_signed_bytes(signed)
    assert receipt.verification.signature is None
    assert signed_bytes(receipt) == signed
    for other, says in (
        (canonical_bytes(document), "the signature is not part of the signed bytes"),
        (signed + b"\n", "not in canonical form"),
        (json.dumps(parse_strict(signed)).encode(), "not in canonical form"),
        (b"{}", "it has no typ"),
        (b'{"verification":1}', "not a document's signed bytes"),
        (b"[]", "not a document's signed bytes"),
        (b'{"typ":"joule-mesh.account-head/v1","verification":{}}', "Field required|Extra inputs"),
    ):
        with pytest.raises(InvalidDocument, match=says):
            receipt_from_signed_bytes(other)


def test_a_huge_number_is_refused_and_nothing_worse(document: dict[str, Any]) -> None:
    for path in (("energy", "total_joules"), ("execution", "start_unix_ns"), ("carbon", "gco2eq_total")):
        with pytest.raises(InvalidDocument):
            document_from(changed(document, path, 10**400))


@pytest.mark.parametrize(
    ("name", "schema"), [("receipt", receipt_json_schema), ("account-head", head_json_schema)], ids=["receipt", "head"]
)
def test_the_checked_in_schema_is_the_models(name: str, schema: Callable[[], str]) -> None:
    path = Path(receipts.__file__).with_name(f"{name}.schema.json")
    again = f"python -c 'from receipts.document import *; print({schema.__name__}(), end=\"\")' > {path.name}"
    assert path.read_text() == schema(), f"the models changed; write it anew: {again}"


def test_every_field_is_explained_to_the_auditor(document: dict[str, Any], head: dict[str, Any]) -> None:
    page = Path(receipts.__file__).with_name("README.md").read_text()
    leaves = [path for path in members(document) if not any(other[:-1] == path for other in members(document))]
    attempt = ["pool", "outcome", "joules"]
    candidate, rejected = document["placement"]["candidates"][0], document["placement"]["rejected"][0]
    for name in [*(path[-1] for path in leaves), *attempt, *candidate, *rejected, *head]:
        assert re.search(rf"`[a-z_.\[\]]*\b{name}[`\[]", page), f"receipts/README.md does not explain {name}"
