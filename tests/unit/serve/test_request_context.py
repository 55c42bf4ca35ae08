"""What an attempt carries to its receipt."""

from dataclasses import replace

import pytest
from made_pool import make_pool

from clusters.grid import GridIntensity
from placement.pins import Pins
from placement.plan import Candidate, ExchangeRates, Plan, Rejection
from placement.tiers import Tier
from receipts.draft import Attempt, RequestContext
from receipts.holds import Admission
from serve.request_context import AskedRequest, Placed
from serve.shapes import Shape

_POOL = make_pool(
    "m@nordic/eu-fi/epyc",
    model_revision="r1",
    legal_entity="Nordic Oy",
    country="FI",
    grid_zone="FI",
    dc_ref_renewable_share=0.9,
    usd_per_kwh=0.3,
    simulated=True,
)


class Feed:
    """One that says more with each time it is asked."""

    def __init__(self) -> None:
        self.grams = 0.0

    def intensity(self, zone: str) -> GridIntensity:
        self.grams += 100
        return GridIntensity(zone=zone, gco2_per_kwh=self.grams, source="s", as_of="now", is_estimated=False)


def _candidate(pool: str) -> Candidate:
    return Candidate(
        pool=pool,
        expected_microjoules=10.4,
        energy_usd=1e-9,
        facility_usd=2e-9,
        carbon_usd=3e-9,
        wait_usd=4e-9,
        network_usd=5e-9,
        wait_s=0.0,
        is_set_aside=False,
    )


def _asked() -> AskedRequest:
    candidates = [_candidate(_POOL.key), *(_candidate(f"m@o/{index}") for index in range(9))]
    rejections = [Rejection(pool=f"x@o/{index}", reason="serves x", is_for_now=False) for index in range(7)]
    return AskedRequest(
        request_id="0" * 32,
        admission=Admission(account="acme", api_key_id="key_" + "1" * 16, key_sha256=b"k" * 32),
        shape=Shape.CHAT,
        customer_tag="blue",
        tier=Tier.L2,
        placed=Placed.by(
            Plan(candidates=candidates, rejections=rejections),
            Pins(model="m", region="eu", residency=("FI", "eu-de"), operators=frozenset({"nordic", "alpha"})),
            ExchangeRates(usd_per_kgco2=0.2, usd_per_hour_waited=0.01),
            accepted_unix_ns=123,
        ),
        price_version="v1",
        carbon=Feed(),
    )


def test_an_attempt_carries_the_site_the_price_and_the_label_of_its_own_pool():
    context = _asked().context(_POOL, (), 0)
    assert (context.operator_name, context.region, context.country) == ("nordic", "eu-fi", "FI")
    assert (context.model, context.model_revision, context.simulated) == ("m", "r1", True)
    assert (context.usd_per_kwh, context.price_version) == (0.3, "v1")
    assert (context.receipt_id, context.workload_id) == ("rcpt_" + "0" * 32, "chatcmpl-" + "0" * 32)
    assert (context.tier, context.account, context.customer_tag) == ("L2", "acme", "blue")


def test_each_attempt_carries_the_grid_of_its_own_moment():
    asked = _asked()
    contexts = [asked.context(_POOL, (), 0), asked.context(_POOL, (), 0)]
    assert [context.grid_intensity_gco2_per_kwh for context in contexts] == [100.0, 200.0]


def test_it_keeps_the_top_of_the_plan_and_counts_all_that_was_rejected():
    placement = _asked().context(_POOL, (), 0).placement
    assert placement is not None
    assert [each.pool for each in placement.candidates] == [_POOL.key, "m@o/0", "m@o/1"]
    first = placement.candidates[0].model_dump()
    assert first.pop("pool") == _POOL.key
    assert first == {
        "expected_joules": 0.00001,
        "energy_usd_picos": 1000,
        "facility_usd_picos": 2000,
        "carbon_usd_picos": 3000,
        "wait_usd_picos": 4000,
        "network_usd_picos": 5000,
    }
    assert [each.reason for each in placement.rejected] == ["serves x"] * 5
    assert placement.rejected_total == 7


def test_it_keeps_what_was_asked_of_the_ranking():
    placement = _asked().context(_POOL, (), 0).placement
    assert placement is not None
    assert placement.accepted_unix_ns == 123
    assert placement.pins.model_dump() == {
        "model": "m",
        "region": "eu",
        "residency": ("FI", "eu-de"),
        "operators": ("alpha", "nordic"),
    }
    assert placement.rates.model_dump() == {"usd_per_kgco2": 0.2, "usd_per_hour_waited": 0.01}


def test_it_carries_the_attempts_before_and_what_they_had_sent_and_survives_the_journey():
    failed = Attempt(pool="m@o/0", outcome="timeout", energy_microjoules=None)
    context = _asked().context(_POOL, [failed], 12)
    assert context.attempts == (failed,)
    assert context.placement is not None
    assert (context.placement.pool, context.placement.resumed_after_tokens) == (_POOL.key, 12)
    assert RequestContext.from_json(context.to_json()) == context


@pytest.mark.parametrize(
    ("shape", "begins"),
    [(Shape.CHAT, "chatcmpl-"), (Shape.COMPLETION, "cmpl-"), (Shape.EMBEDDING, "embd-"), (Shape.MESSAGES, "msg_")],
)
def test_the_workload_is_called_as_its_answer_is(shape, begins):
    assert replace(_asked(), shape=shape).context(_POOL, (), 0).workload_id == begins + "0" * 32


def test_the_key_and_the_labels_travel_to_the_receipt():
    admission = Admission(
        account="acme",
        api_key_id="key_" + "1" * 16,
        key_sha256=b"k" * 32,
        workload="etl",
        idempotency_sha256="c" * 64,
    )
    context = replace(_asked(), admission=admission).context(_POOL, (), 0)
    assert (context.api_key_id, context.workload_name) == ("key_" + "1" * 16, "etl")
    assert context.idempotency_sha256 == "c" * 64
