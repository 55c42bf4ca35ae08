"""The receipt, version 1, and the account head: what their JSON may hold, and which bytes are signed.

`receipts/README.md` explains every field to an auditor. The models are strict: no member more, none less, no
conversion of types. Whether the figures agree with each other is for `receipts.arithmetic`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from receipts.canonical import JsonValue, canonical_bytes, parse_strict
from receipts.errors import InvalidDocument
from receipts.members import (
    AccountName,
    ApiKeyId,
    Confidence,
    Count,
    CountryCode,
    CustomerTag,
    EnergyMethod,
    Figure,
    Joules,
    KeyId,
    MayLackMembers,
    Pue,
    ReceiptId,
    Seq,
    Sha256,
    Share,
    Signature,
    StrictModel,
    Text,
    TierName,
    WorkloadName,
    json_array,
)
from receipts.placement_section import Placement

RECEIPT_TYP: Final = "joule-mesh.receipt/v1"
HEAD_TYP: Final = "joule-mesh.account-head/v1"


def _either(section: BaseModel, value: str, reason: str) -> None:
    """One of the two is null: a value is known, or the reason is given why it is not."""
    if (getattr(section, value) is None) == (getattr(section, reason) is None):
        raise ValueError(f"{value} is null exactly when {reason} says why")


class Tokens(StrictModel):
    """Tokens of the prompt, those of it that came from the prefix cache, and of the answer."""

    input: Count
    cached: Count
    output: Count

    @model_validator(mode="after")
    def _cached_are_input(self) -> Self:
        if self.cached > self.input:
            raise ValueError("more cached tokens than input tokens")
        return self


def _absent_or_known(schema: JsonDict) -> None:
    """Null is how an absent member looks in Python, and nothing that JSON may have there."""
    del schema["default"]
    either = schema.pop("anyOf")
    assert isinstance(either, list)
    known, _null = either
    assert isinstance(known, dict)
    schema.update(known)


class Workload(MayLackMembers):
    """What ran, and for whom. Requests that name no workload have no ``name``, older ones no ``api_key_id``."""

    MAY_LACK: ClassVar = ("api_key_id", "name")

    id: Text
    kind: Text
    model: Text
    model_revision: Text | None
    tokens: Tokens
    customer_tag: CustomerTag | None
    account: AccountName
    api_key_id: Annotated[ApiKeyId | None, Field(json_schema_extra=_absent_or_known)] = None
    name: Annotated[WorkloadName | None, Field(json_schema_extra=_absent_or_known)] = None


class Silicon(StrictModel):
    """Which chip served it, as the meter detected it."""

    vendor: Text
    model: Text
    operator: Text
    region: Text
    node: Text
    device_ids: Annotated[tuple[Text, ...], json_array(max_length=256)]
    simulated: bool


class FailedAttempt(StrictModel):
    """An earlier attempt at the request; its joules are the mesh's own cost and on no bill. Null: not known."""

    pool: Text
    outcome: Text
    joules: Joules | None


class Execution(StrictModel):
    """When it ran, by the wall clock; the length is from the monotonic clock."""

    start_unix_ns: Count
    end_unix_ns: Count
    duration_ms: Count
    retries: Count
    attempts: Annotated[tuple[FailedAttempt, ...], json_array(max_length=64)]

    @model_validator(mode="after")
    def _attempts_are_retries(self) -> Self:
        if self.retries != len(self.attempts):
            raise ValueError("retries is not the number of failed attempts")
        if self.end_unix_ns < self.start_unix_ns:
            raise ValueError("it ended before it began")
        return self


class Errors(StrictModel):
    """How far the energy figure can be off, by cause, in percent."""

    conservation_percent: Figure
    counter_percent: Figure | None
    allocation_percent: Figure | None
    allocation_reason: Text | None

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        _either(self, "allocation_percent", "allocation_reason")
        return self


class Energy(StrictModel):
    """IT energy at the silicon, and how it is known."""

    _FIGURES: ClassVar = ("active_joules", "floor_joules", "estimated_joules", "method")

    total_joules: Joules | None
    active_joules: Joules | None
    floor_joules: Joules | None
    estimated_joules: Joules | None
    unavailable_reason: Text | None
    peak_watts: Figure | None
    method: EnergyMethod | None
    method_confidence: Confidence
    scope: Annotated[tuple[Text, ...], json_array(max_length=64)]
    counter_period_ms: Figure | None
    mean_batch: Figure | None
    errors: Errors

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        _either(self, "total_joules", "unavailable_reason")
        unavailable = self.total_joules is None
        for name in self._FIGURES:
            if (getattr(self, name) is None) != unavailable:
                raise ValueError(f"{name} is null exactly when total_joules is")
        if (self.method_confidence == "unavailable") != unavailable:
            raise ValueError("method_confidence is unavailable exactly when total_joules is null")
        return self


class Carbon(StrictModel):
    """CO2-equivalent by the grid's average intensity where and when the request ran, location-based."""

    gco2eq_total: Figure | None
    grid_intensity_gco2_per_kwh: Figure
    zone: Text
    source: Text
    as_of: Text
    is_estimated: bool
    facility_joules: Joules | None


class Operator(StrictModel):
    """Who runs the data centre, and what they publish about it."""

    legal_entity: Text | None
    country: CountryCode | None
    dc_pue: Pue
    dc_ref_renewable_share: Share | None
    hardware_attestation: Text | None
    hardware_attestation_reason: Text | None

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        _either(self, "hardware_attestation", "hardware_attestation_reason")
        return self


class Price(StrictModel):
    """What the account was charged, in millionths of a millionth of a US dollar."""

    usd_picos: Count
    usd_per_kwh: Figure
    version: Text


class Chain(StrictModel):
    """The receipt's place in its account's chain."""

    seq: Seq
    prev_sha256: Sha256 | None

    @model_validator(mode="after")
    def _only_the_first_has_no_predecessor(self) -> Self:
        if (self.prev_sha256 is None) != (self.seq == 1):
            raise ValueError("prev_sha256 is null exactly when seq is 1")
        return self


class Verification(StrictModel):
    """The group's signature; null while it is pending, and the only member outside the signed bytes."""

    signature_algo: Literal["ed25519"]
    key_id: KeyId
    tier: TierName
    signature: Signature | None


class Receipt(MayLackMembers):
    """One request's receipt. Those of before there was placement have no member ``placement``."""

    MAY_LACK: ClassVar = ("placement",)

    typ: Literal["joule-mesh.receipt/v1"]
    receipt_id: ReceiptId
    workload: Workload
    silicon: Silicon
    execution: Execution
    energy: Energy
    carbon: Carbon
    operator: Operator
    price: Price
    chain: Chain
    verification: Verification
    placement: Annotated[Placement | None, Field(json_schema_extra=_absent_or_known)] = None

    @model_validator(mode="after")
    def _no_carbon_without_energy(self) -> Self:
        unavailable = self.energy.total_joules is None
        for name in ("gco2eq_total", "facility_joules"):
            if (getattr(self.carbon, name) is None) != unavailable:
                raise ValueError(f"carbon.{name} is null exactly when energy.total_joules is")
        return self


class AccountHead(StrictModel):
    """The group's word on how far an account's chain reached at a moment, so that dropping receipts at its ends shows.

    It covers the receipts ``first_seq`` to ``last_seq``; the hashes are of those receipts' signed bytes. At
    ``as_of_unix_ns`` no later receipt of the account had been signed.
    """

    typ: Literal["joule-mesh.account-head/v1"]
    account: AccountName
    as_of_unix_ns: Count
    first_seq: Seq
    last_seq: Seq
    first_sha256: Sha256
    last_sha256: Sha256
    key_id: KeyId
    signature: Signature | None

    @model_validator(mode="after")
    def _first_comes_first(self) -> Self:
        if self.first_seq > self.last_seq:
            raise ValueError("first_seq is after last_seq")
        if self.first_seq == self.last_seq and self.first_sha256 != self.last_sha256:
            raise ValueError("one receipt with two hashes")
        return self


_MODELS: Final[Mapping[object, type[Receipt] | type[AccountHead]]] = {RECEIPT_TYP: Receipt, HEAD_TYP: AccountHead}


def document_from(value: JsonValue) -> Receipt | AccountHead:
    """The document that a parsed JSON value holds, by its ``typ``.

    Raises:
        InvalidDocument: an unknown ``typ``, or the first member that is missing, unknown or wrong.
    """
    if not isinstance(value, dict):
        raise InvalidDocument("not a JSON object")
    typ = value.get("typ")
    model = _MODELS.get(typ) if isinstance(typ, str) else None
    if model is None:
        named = f"unknown typ {typ[:64]!r}" if isinstance(typ, str) else "it has no typ"
        raise InvalidDocument(f"{named}; known are {', '.join(map(str, _MODELS))}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidDocument(first_fault(error)) from error


def first_fault(error: ValidationError) -> str:
    """The first of a validation's faults as ``place: what is wrong``; the faulty value is not quoted."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:64] for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def signed_bytes(document: Receipt | AccountHead) -> bytes:
    """The canonical bytes of the document without its ``signature``: what the group signs and the chain hashes."""
    value = document.model_dump()
    _holder_of_signature(value).pop("signature")
    return canonical_bytes(value)


def cut_signature(canonical: bytes, signature: str) -> bytes:
    """The signed bytes of a document whose canonical bytes and signature are at hand; saves writing it twice.

    Only the member itself can match: inside a string its quotes would stand behind backslashes.
    """
    before, found, after = canonical.partition(f'"signature":"{signature}",'.encode())
    assert found, "the signature is not a member of these bytes"
    return before + after


def with_signature(signed: bytes, signature: bytes | None) -> bytes:
    """The canonical bytes of the whole document: signed bytes and signature, or null while that is pending.

    Put in where canonical order has it, without parsing: pages and exports do this for each of their receipts.
    Only the member itself can match: inside a string its quotes would stand behind backslashes.
    """
    before, found, after = signed.rpartition(b'"signature_algo":')
    if not found:
        before, found, after = signed.rpartition(b'"typ":')
    assert found, "signed bytes are a receipt's or an account head's"
    member = b"null" if signature is None else b'"%s"' % signature.hex().encode()
    return b'%s"signature":%s,%s%s' % (before, member, found, after)


def receipt_from_signed_bytes(signed: bytes) -> Receipt:
    """The receipt that is to be signed, its signature null.

    Raises:
        InvalidDocument: not exactly the signed bytes of a receipt.
    """
    document = _unsigned_document(signed)
    if not isinstance(document, Receipt):
        raise InvalidDocument("not a receipt")
    return document


def head_from_signed_bytes(signed: bytes) -> AccountHead:
    """The account head that is to be signed, its signature null.

    Raises:
        InvalidDocument: not exactly the signed bytes of an account head.
    """
    document = _unsigned_document(signed)
    if not isinstance(document, AccountHead):
        raise InvalidDocument("not an account head")
    return document


def _unsigned_document(signed: bytes) -> Receipt | AccountHead:
    value = parse_strict(signed)
    if not isinstance(value, dict) or not isinstance(value.get("verification", {}), dict):
        raise InvalidDocument("not a document's signed bytes")
    holder = _holder_of_signature(value)
    if "signature" in holder:
        raise InvalidDocument("the signature is not part of the signed bytes")
    if canonical_bytes(value) != signed:
        raise InvalidDocument("not in canonical form")
    holder["signature"] = None
    return document_from(value)


def _holder_of_signature(value: dict[str, Any]) -> dict[str, Any]:
    """The object that has the member ``signature``: a receipt's is in a section, a head's at the top."""
    holder: dict[str, Any] = value.get("verification", value)
    return holder


def receipt_json_schema() -> str:
    """The JSON Schema of a receipt, as it stands in ``receipt.schema.json``.

    It says what single members may hold; rules between members (null with a reason, retries) it cannot.
    """
    return _json_schema(Receipt, "urn:joule-mesh:receipt:v1")


def head_json_schema() -> str:
    """The JSON Schema of an account head, as it stands in ``account-head.schema.json``."""
    return _json_schema(AccountHead, "urn:joule-mesh:account-head:v1")


def _json_schema(model: type[BaseModel], name: str) -> str:
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": name}
    return json.dumps({**dialect, **model.model_json_schema()}, indent=2, ensure_ascii=False) + "\n"
