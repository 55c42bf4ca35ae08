"""From a settled request to its receipt, yet unsigned. Pure: the same figures give the same bytes."""

from typing import Annotated, ClassVar, Self

from pydantic import ValidationError, model_validator

from metering.settlement import EnergyFigures, Settlement
from receipts.arithmetic import (
    MICROJOULES_PER_JOULE,
    PICOGRAMS_PER_GRAM,
    as_double,
    carbon_picograms,
    duration_milliseconds,
    facility_microjoules,
    price_usd_picos,
)
from receipts.canonical import canonical_bytes, parse_strict
from receipts.document import RECEIPT_TYP, Receipt, first_fault
from receipts.errors import InvalidDocument, SettlementRefused
from receipts.members import (
    AccountName,
    ApiKeyId,
    Count,
    CountryCode,
    CustomerTag,
    Figure,
    MayLackMembers,
    Pue,
    ReceiptId,
    Sha256,
    Share,
    StrictModel,
    Text,
    TierName,
    WorkloadName,
    json_array,
)
from receipts.placement_rules import ServedBy, check_placement, waited_milliseconds
from receipts.placement_section import PlacementContext

NO_ATTESTATION = "no hardware attestation is taken"
_NS_PER_MS = 10**6
_MILLIWATTS_PER_WATT = 1000
_THOUSANDTHS = 1000
# Left out where they are None, so that a context without them is written as it always was.
_NEWER = ("api_key_id", "workload_name", "idempotency_sha256")


class Attempt(StrictModel):
    """An earlier attempt that failed, in which pool and how; its energy is on no bill, None when not known."""

    pool: Text
    outcome: Text
    energy_microjoules: Count | None


class RequestContext(MayLackMembers):
    """What the door knows of a request when it sends it on: everything on a receipt that the meter cannot know.

    It travels as the settlement's opaque context, so that a receipt can be written whoever has died meanwhile.
    The grid's figures are those of the moment, ``usd_per_kwh`` is the price at the silicon. Only a context of before
    there was placement, which a meter's journal may still hold, has no ``placement``; the three after it are None where
    the request came without them, too. ``workload_name`` is the client's own; ``idempotency_sha256`` goes on no
    receipt.
    """

    MAY_LACK: ClassVar = ("placement",)

    receipt_id: ReceiptId
    workload_id: Text
    kind: Text
    model: Text
    model_revision: Text | None
    customer_tag: CustomerTag | None
    account: AccountName
    tier: TierName
    operator_name: Text
    region: Text
    simulated: bool
    legal_entity: Text | None
    country: CountryCode | None
    dc_pue: Pue
    dc_ref_renewable_share: Share | None
    grid_zone: Text
    grid_intensity_gco2_per_kwh: Figure
    grid_source: Text
    grid_as_of: Text
    grid_is_estimated: bool
    usd_per_kwh: Figure
    price_version: Text
    attempts: Annotated[tuple[Attempt, ...], json_array(max_length=64)]
    placement: PlacementContext | None = None
    api_key_id: ApiKeyId | None = None
    workload_name: WorkloadName | None = None
    idempotency_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _runs_as_placed(self) -> Self:
        """Now, and not when its receipt waits for signatures that no signer gives."""
        if self.placement is not None:
            served = ServedBy(
                model=self.model,
                operator=self.operator_name,
                region=self.region,
                country=self.country,
                failed_attempts=len(self.attempts),
            )
            try:
                check_placement(self.placement, served)
            except InvalidDocument as error:
                raise ValueError(str(error)) from error
        return self

    def to_json(self) -> bytes:
        """One line of JSON; `from_json` gives an equal context back."""
        members = self.model_dump()
        return canonical_bytes({name: members[name] for name in members if name not in _NEWER or members[name]})

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse what `to_json` wrote.

        Raises:
            InvalidDocument: anything else.
        """
        try:
            return cls.model_validate(parse_strict(data))
        except ValidationError as error:
            raise InvalidDocument(f"not a request's context: {first_fault(error)}") from error


def draft_receipt(
    context: RequestContext, settlement: Settlement, *, key_id: str, seq: int, prev_sha256: str | None
) -> Receipt:
    """The receipt of a settled request, its signature null.

    ``key_id`` names the group key that is to sign it; ``seq`` and ``prev_sha256`` (64 hex digits, None for the
    first) are its place in the account's chain.

    Raises:
        SettlementRefused: context and settlement are of different requests, or a figure is outside the schema.
    """
    if context.receipt_id != f"rcpt_{settlement.request_id}":
        raise SettlementRefused(settlement.request_id, f"its context is that of {context.receipt_id}")
    end_unix_ns = settlement.start_unix_ns + settlement.duration_ns
    carbon, price = _carbon_and_price(context, settlement.energy.total_microjoules)
    value: dict[str, object] = {
        "typ": RECEIPT_TYP,
        "receipt_id": context.receipt_id,
        "workload": _workload(context, settlement),
        "silicon": {
            "vendor": settlement.silicon.vendor,
            "model": settlement.silicon.model,
            "operator": context.operator_name,
            "region": context.region,
            "node": settlement.silicon.node,
            "device_ids": settlement.silicon.device_ids,
            "simulated": context.simulated,
        },
        "execution": {
            "start_unix_ns": settlement.start_unix_ns,
            "end_unix_ns": end_unix_ns,
            "duration_ms": duration_milliseconds(settlement.start_unix_ns, end_unix_ns),
            "retries": len(context.attempts),
            "attempts": [
                {"pool": each.pool, "outcome": each.outcome, "joules": _joules(each.energy_microjoules)}
                for each in context.attempts
            ],
        },
        "energy": _energy(settlement.energy),
        "carbon": carbon,
        "operator": {
            "legal_entity": context.legal_entity,
            "country": context.country,
            "dc_pue": context.dc_pue,
            "dc_ref_renewable_share": context.dc_ref_renewable_share,
            "hardware_attestation": None,
            "hardware_attestation_reason": NO_ATTESTATION,
        },
        "price": price,
        **_placement(context, settlement.start_unix_ns),
        "chain": {"seq": seq, "prev_sha256": prev_sha256},
        "verification": {"signature_algo": "ed25519", "key_id": key_id, "tier": context.tier, "signature": None},
    }
    try:
        return Receipt.model_validate(value)
    except ValidationError as error:
        raise SettlementRefused(settlement.request_id, first_fault(error)) from error


def _placement(context: RequestContext, start_unix_ns: int) -> dict[str, object]:
    """The member, where the context has one."""
    placement = context.placement
    if placement is None:
        return {}
    waited_ms = waited_milliseconds(placement.accepted_unix_ns, start_unix_ns)
    return {"placement": {**placement.model_dump(), "waited_ms": waited_ms}}


def _workload(context: RequestContext, settlement: Settlement) -> dict[str, object]:
    tokens = settlement.tokens
    named = {"api_key_id": context.api_key_id, "name": context.workload_name}
    return {
        "id": context.workload_id,
        "kind": context.kind,
        "model": context.model,
        "model_revision": context.model_revision,
        "tokens": {"input": tokens.input, "cached": tokens.cached, "output": tokens.output},
        "customer_tag": context.customer_tag,
        "account": context.account,
        **{name: value for name, value in named.items() if value is not None},
    }


def _energy(energy: EnergyFigures) -> dict[str, object]:
    return {
        "total_joules": _joules(energy.total_microjoules),
        "active_joules": _joules(energy.active_microjoules),
        "floor_joules": _joules(energy.floor_microjoules),
        "estimated_joules": _joules(energy.estimated_microjoules),
        "unavailable_reason": energy.unavailable_reason,
        "peak_watts": _scaled(energy.peak_power_milliwatts, _MILLIWATTS_PER_WATT),
        "method": energy.method,
        "method_confidence": energy.method_confidence,
        "scope": energy.scope,
        "counter_period_ms": _scaled(energy.counter_period_ns, _NS_PER_MS),
        "mean_batch": _scaled(energy.mean_batch_thousandths, _THOUSANDTHS),
        "errors": {
            "conservation_percent": energy.errors.conservation_percent,
            "counter_percent": energy.errors.counter_percent,
            "allocation_percent": energy.errors.allocation_percent,
            "allocation_reason": energy.errors.allocation_reason,
        },
    }


def _carbon_and_price(
    context: RequestContext, total_microjoules: int | None
) -> tuple[dict[str, object], dict[str, object]]:
    """Energy that is not known has no carbon, and costs nothing."""
    facility = picograms = None
    usd_picos = 0
    if total_microjoules is not None:
        facility = facility_microjoules(total_microjoules, context.dc_pue)
        picograms = carbon_picograms(facility, context.grid_intensity_gco2_per_kwh)
        usd_picos = price_usd_picos(total_microjoules, context.usd_per_kwh)
    carbon: dict[str, object] = {
        "gco2eq_total": _scaled(picograms, PICOGRAMS_PER_GRAM),
        "grid_intensity_gco2_per_kwh": context.grid_intensity_gco2_per_kwh,
        "zone": context.grid_zone,
        "source": context.grid_source,
        "as_of": context.grid_as_of,
        "is_estimated": context.grid_is_estimated,
        "facility_joules": _joules(facility),
    }
    return carbon, {"usd_picos": usd_picos, "usd_per_kwh": context.usd_per_kwh, "version": context.price_version}


def _joules(energy_microjoules: int | None) -> float | None:
    return _scaled(energy_microjoules, MICROJOULES_PER_JOULE)


def _scaled(count: int | None, units_per_whole: int) -> float | None:
    return None if count is None else as_double(count, units_per_whole)
