"""The ledger on a real local Ray, signing with a real group of five: killed, and where it left off."""

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from metering.settlement import EnergyErrors, MeteredSilicon, Settlement, TokenCounts, no_figures
from metering.statements import ChainHead, MeterKey, SignedStatement, StatementChain
from receipts.draft import RequestContext
from receipts.errors import LedgerInUse, LedgerUnavailable, SettlementRefused
from receipts.ledger import OPENING_CREDIT_USD_PICOS
from receipts.ledger_actor import LedgerActor, LedgerSettings, ledger_of, signer_group, start_ledger
from receipts.meter_enrolling import enrol_meter
from receipts.meter_enrolment import MeterEnrolment
from receipts.placement_section import CandidatePool, Pins, PlacementContext, Rates
from receipts.share_secret import ShareSecretSource, create_development_secret
from receipts.signer_actors import RaySigner, SignerSettings, start_signers
from receipts.signer_group import HeadSource, SignerGroup
from receipts.signer_policy import ReceiptRules
from receipts.signing_errors import SigningError
from receipts.stored_receipt import StoredReceipt
from receipts.verify import verify_paths

NAMESPACE = "ledger-test"
METER = MeterKey(bytes(range(32)))
ENROLMENT = MeterEnrolment(public_key=METER.public_key, node="host-1", maximum_power_milliwatts=100_000)
PLACEMENT = PlacementContext(
    pool="echo@this-machine/local",
    accepted_unix_ns=1_782_219_833_000_123_456,
    resumed_after_tokens=0,
    pins=Pins(model=None, region="local", residency=(), operators=None),
    rates=Rates(usd_per_kgco2=0.2, usd_per_hour_waited=0.01),
    candidates=(
        CandidatePool.expecting(
            pool="echo@this-machine/local",
            expected_microjoules=1000,
            energy_usd=1e-10,
            facility_usd=1e-11,
            carbon_usd=1e-11,
            wait_usd=0,
            network_usd=0,
        ),
    ),
    rejected=(),
    rejected_total=0,
)


@pytest.fixture(scope="module")
def node_id() -> Iterator[str]:
    ray.init(address="local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().get_node_id()
    ray.shutdown()


def settlement(number: int, account: str = "acme") -> Settlement:
    context = RequestContext(
        receipt_id=f"rcpt_{number:032x}",
        workload_id=f"chatcmpl-{number:032x}",
        kind="ml-inference",
        model="echo",
        model_revision=None,
        customer_tag=None,
        account=account,
        tier="L0",
        operator_name="this-machine",
        region="local",
        simulated=False,
        legal_entity=None,
        country=None,
        dc_pue=1.15,
        dc_ref_renewable_share=None,
        grid_zone="DE",
        grid_intensity_gco2_per_kwh=313.4,
        grid_source="yearly mean",
        grid_as_of="2020",
        grid_is_estimated=True,
        usd_per_kwh=0.5,
        price_version="2026-01",
        attempts=(),
        placement=PLACEMENT,
    )
    errors = EnergyErrors(
        conservation_percent=0.0, counter_percent=None, allocation_percent=None, allocation_reason="not calibrated"
    )
    return Settlement(
        request_id=f"{number:032x}",
        replica="replica-1",
        outcome="finished",
        start_unix_ns=1_782_219_834_000_123_456,
        duration_ns=312_000_000,
        energy=no_figures("no counter here", errors),
        tokens=TokenCounts(input=34, cached=0, output=128),
        silicon=MeteredSilicon(vendor="amd", model="AMD EPYC", device_ids=(), node="host-1"),
        context=context.to_json(),
        statement=statement(number),
    )


def statement(number: int) -> SignedStatement:
    """The meter's for request ``number``, as if it had stated those before."""
    head = ChainHead(sequence=number - 1, sha256="ab" * 32, charged_microjoules=0) if number > 1 else None
    return StatementChain(METER, head).state(
        request_id=f"{number:032x}", outcome="finished", microjoules=None, counted_microjoules=0, open_ns=0
    )


def signers(folder: Path, node_id: str) -> dict[int, RaySigner]:
    secret = folder / "share-secret"
    create_development_secret(secret, os.urandom)
    settings = [
        SignerSettings(
            identifier=each,
            folder=folder / f"signer-{each}",
            share_secret=ShareSecretSource(file=secret),
            make_policy=partial(ReceiptRules, wall_clock_ns=time.time_ns),
        )
        for each in range(1, 6)
    ]
    return start_signers(settings, [node_id])


async def settle_once_back(ledger: ActorHandle[LedgerActor], offered: Settlement) -> StoredReceipt:
    """As the meter does: offer it again until the ledger has it."""
    async with asyncio.timeout(30):
        while True:
            try:
                return (await ledger.settle.remote([offered]))[0]
            except RayActorError:
                await asyncio.sleep(0.1)


async def test_the_life_of_a_ledger(node_id: str, tmp_path: Path) -> None:
    ports = signers(tmp_path, node_id)
    settings = LedgerSettings(
        url=f"sqlite:///{tmp_path}/ledger.sqlite3",
        connect_signers=signer_group(list(ports), NAMESPACE, tmp_path / "group.json"),
    )
    ledger = start_ledger(settings, namespace=NAMESPACE, node_id=node_id)
    assert not await ledger.has_keys.remote()
    key = (await ledger.create_key.remote("acme", "first")).secret
    assert (await ledger_of(NAMESPACE).key_of.remote(key)).account == "acme"
    assert await ledger.key_of.remote("jc_LIVE_other") is None
    public_key = (await ledger.group_record.remote()).public_key

    offered = [settlement(1), settlement(99, "nobody"), *(settlement(n) for n in range(2, 41))]
    first, refused, *others = await ledger.settle.remote(offered)
    stored = [first, *others]
    assert sorted(each.seq for each in stored) == list(range(1, 41))
    assert isinstance(refused, SettlementRefused)
    assert "there is no account 'nobody'" in str(refused)

    ray.kill(ledger, no_restart=False)
    assert (await settle_once_back(ledger, settlement(41))).seq == 41
    # The kill is not waited for: the call before may have run in the life before it.
    assert (await settle_once_back(ledger, settlement(1))).signed_bytes == stored[0].signed_bytes
    assert await ledger.balance_usd_picos.remote("acme") == OPENING_CREDIT_USD_PICOS

    assert (await ledger.signers_report.remote()).backlog.count == 41, "no signer knows the meter yet"
    await enrol_meter(ports, ENROLMENT)
    served = await asyncio.gather(*(ledger.receipt.remote(f"rcpt_{n:032x}", "acme", 20.0) for n in range(1, 42)))
    export = tmp_path / "receipts.ndjson"
    assert await ledger.account_head.remote("nobody", 0) is None
    head = await ledger.account_head.remote("acme", 0)
    assert json.loads(head)["last_seq"] == 41
    lines = [each.document_bytes() for each in sorted(served, key=lambda each: each.seq)]
    export.write_bytes(b"".join(line + b"\n" for line in [*lines, head]))
    report = verify_paths([export], public_key)
    assert [str(each) for each in report] == []
    assert report.passed == 41
    group = await ledger.signers_report.remote()
    assert (group.public_key, group.threshold, group.ready, group.backlog.count) == (public_key, 3, 5, 0)
    assert group.signed_per_second > 0
    with pytest.raises(SigningError, match="signer 2 is not excluded"):
        await ledger.readmit_signer.remote(2)

    impatient = dataclasses.replace(settings, take_over_s=0.5)
    second = start_ledger(impatient, namespace="another-mesh", node_id=node_id)
    with pytest.raises(LedgerInUse, match="it takes one writer"):
        await second.has_keys.remote()
    await ledger.close.remote()
    assert (await second.key_of.remote(key)).account == "acme"


@pytest.mark.parametrize("trouble", [LedgerUnavailable("the database is away"), LedgerInUse("it takes one writer")])
async def test_a_database_that_comes_back_is_opened_even_if_nobody_calls(
    node_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Exception
) -> None:
    troubles = [trouble, trouble]
    is_open = asyncio.Event()

    async def connect(_: HeadSource) -> SignerGroup:
        if troubles:
            raise troubles.pop()
        is_open.set()
        return cast("SignerGroup", SimpleNamespace(key_id="0" * 16, public_key=bytes(32), sign=None))

    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    actor = LedgerActor.__new__(LedgerActor)
    await actor.__init__(LedgerSettings(url=url, connect_signers=connect, open_again_s=0.1))  # type: ignore[misc]
    await asyncio.wait_for(is_open.wait(), 60)
    assert not await actor.has_keys()
    assert [each.message for each in caplog.records] == ["the ledger did not open; it is tried again"], "said once"
    await actor.close()
