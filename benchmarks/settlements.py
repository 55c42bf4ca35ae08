"""Settlements as a meter hands them to the ledger, each with its true statement, as many as are wanted."""

from collections.abc import Iterator
from itertools import count

from metering.settlement import EnergyErrors, EnergyFigures, MeteredSilicon, Settlement, TokenCounts
from metering.statements import MeterKey, StatementChain
from receipts.draft import RequestContext
from receipts.placement_section import CandidatePool, Pins, PlacementContext, Rates, RejectedPool

_NS_PER_S = 10**9
METER = MeterKey(bytes(range(32)))
_BEGAN_NS = 1_782_219_834 * _NS_PER_S
_POOLS = ("SmolLM2-135M-Instruct@this-machine/local", "SmolLM2-360M@lab/eu-fi", "SmolLM2-1.7B-Instruct@lab/eu-de")
_TOO_SMALL = ("tiny@this-machine/local", "tiny@lab/eu-fi", "tiny@lab/eu-de")


def settlements(accounts: list[str]) -> Iterator[Settlement]:
    """Requests of these accounts in turn, one meter's, ten a second by the wall clock on them."""
    statements = StatementChain(METER, None)
    for number in count(1):
        request_id = f"{number:032x}"
        energy = _energy(active_microjoules=295_001 + number % 1000, floor_microjoules=14_999)
        statement = statements.state(
            request_id=request_id,
            outcome="finished",
            microjoules=energy.total_microjoules,
            counted_microjoules=number * 10**6,
            open_ns=0,
        )
        yield Settlement(
            request_id=request_id,
            replica="replica-1",
            outcome="finished",
            start_unix_ns=_BEGAN_NS + number * _NS_PER_S // 10,
            duration_ns=312_400_000,
            energy=energy,
            tokens=TokenCounts(input=34, cached=16, output=128),
            silicon=MeteredSilicon(vendor="amd", model="AMD EPYC", device_ids=("cpu-package-0",), node="host-1"),
            context=_context(request_id, accounts[number % len(accounts)], number).to_json(),
            statement=statement,
        )


def _energy(*, active_microjoules: int, floor_microjoules: int) -> EnergyFigures:
    return EnergyFigures(
        total_microjoules=active_microjoules + floor_microjoules,
        active_microjoules=active_microjoules,
        floor_microjoules=floor_microjoules,
        estimated_microjoules=0,
        unavailable_reason=None,
        method="util-tdp",
        method_confidence="derived",
        scope=("cpu",),
        counter_period_ns=10_000_000,
        mean_batch_thousandths=1500,
        peak_power_milliwatts=5470,
        errors=EnergyErrors(
            conservation_percent=0.0, counter_percent=30.0, allocation_percent=None, allocation_reason="not calibrated"
        ),
    )


def _context(request_id: str, account: str, number: int) -> RequestContext:
    return RequestContext(
        receipt_id=f"rcpt_{request_id}",
        workload_id=f"chatcmpl-{request_id}",
        kind="ml-inference",
        model="SmolLM2-135M-Instruct",
        model_revision=None,
        customer_tag=None,
        account=account,
        tier="L0",
        operator_name="this-machine",
        region="local",
        simulated=False,
        legal_entity=None,
        country="DE",
        dc_pue=1.15,
        dc_ref_renewable_share=None,
        grid_zone="DE",
        grid_intensity_gco2_per_kwh=313.4,
        grid_source="Wiesner et al., Middleware 2021",
        grid_as_of="2020",
        grid_is_estimated=True,
        usd_per_kwh=0.5,
        price_version="2026-01",
        attempts=(),
        placement=_placement(number),
    )


def _placement(number: int) -> PlacementContext:
    """As full as most are: three candidates, and as many pools that could not serve it."""
    return PlacementContext(
        pool=_POOLS[0],
        accepted_unix_ns=_BEGAN_NS + number * _NS_PER_S // 10 - 500_000,
        resumed_after_tokens=0,
        pins=Pins(model=None, region=None, residency=(), operators=None),
        rates=Rates(usd_per_kgco2=0.2, usd_per_hour_waited=0.01),
        candidates=tuple(map(_candidate, _POOLS)),
        rejected=tuple(RejectedPool(pool=pool, reason="can answer up to L1, the request is L2") for pool in _TOO_SMALL),
        rejected_total=len(_TOO_SMALL),
    )


def _candidate(pool: str) -> CandidatePool:
    return CandidatePool.expecting(
        pool=pool,
        expected_microjoules=310_000,
        energy_usd=4.3056e-8,
        facility_usd=6.458e-9,
        carbon_usd=6.2e-9,
        wait_usd=1.4e-8,
        network_usd=0,
    )
