"""The member ``placement``: what it may hold, what it must agree with, and receipts of before there was one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.arithmetic import check_arithmetic
from receipts.canonical import canonical_bytes, parse_strict
from receipts.document import Receipt, document_from, receipt_from_signed_bytes, signed_bytes, with_signature
from receipts.draft import Attempt, RequestContext, draft_receipt
from receipts.errors import InvalidDocument
from receipts.placement_section import MOST_REJECTED, CandidatePool, Pins, RejectedPool
from receipts.signer_policy import ReceiptRules
from receipts.signing_errors import PolicyViolation
from receipts.verify import verify_paths

DATA = Path(__file__).with_name("data")
OLD_RECEIPTS = DATA / "receipts-before-placement.ndjson"
OLD_CONTEXT = DATA / "context-before-placement.json"
KEY_ID = "0123456789abcdef"
POOL = "SmolLM2-135M-Instruct@this-machine/local"
ELSEWHERE = ("larger@elsewhere/eu-fi", "larger@this-machine/local")
Change = Callable[[dict[str, Any]], object]


def drafted(context: RequestContext, settlement) -> Receipt:
    return draft_receipt(context, settlement, key_id=KEY_ID, seq=1, prev_sha256=None)


@pytest.fixture(scope="session")
def document(group, make_placement) -> dict[str, Any]:
    """A receipt of the second attempt, which went on after 40 tokens, with every pin set."""
    pins = Pins(
        model="SmolLM2-135M-Instruct", region="local", residency=("eu", "DE"), operators=("acme", "this-machine")
    )
    attempts = (Attempt(pool="larger@this-machine/local", outcome="replica died", energy_microjoules=7),)
    placement = make_placement(POOL, pins=pins, resumed_after_tokens=40)
    return json.loads(group.receipt(1, 1, None, attempts=attempts, placement=placement))


class TestOlderReceipts:
    def test_they_verify_as_they_did(self, group) -> None:
        report = verify_paths([OLD_RECEIPTS], group.public_key)
        assert [str(each) for each in report] == []
        assert report.summary == "Verified: 3 passed, 0 failed"

    def test_they_are_written_as_they_were(self) -> None:
        for line in OLD_RECEIPTS.read_bytes().splitlines():
            document = document_from(parse_strict(line))
            assert canonical_bytes(document.model_dump()) == line
            if isinstance(document, Receipt):
                assert document.placement is None
                assert receipt_from_signed_bytes(signed_bytes(document)).placement is None

    def test_null_is_not_absent(self) -> None:
        line, *_ = OLD_RECEIPTS.read_bytes().splitlines()
        with pytest.raises(InvalidDocument, match="placement: absent where there is none, never null"):
            document_from({**json.loads(line), "placement": None})

    def test_taking_it_off_a_newer_one_breaks_its_signature(self, group, tmp_path: Path) -> None:
        document = json.loads(group.receipt(1, 1, None))
        del document["placement"]
        path = tmp_path / "receipt.json"
        path.write_bytes(canonical_bytes(document))
        assert ["the signature is not the group's" in str(each) for each in verify_paths([path], group.public_key)] == [
            True
        ]

    def test_a_context_that_waited_in_a_journal_makes_such_a_receipt(self, make_settlement) -> None:
        data = OLD_CONTEXT.read_bytes().strip()
        context = RequestContext.from_json(data)
        assert context.to_json() == data
        receipt = drafted(context, make_settlement(7))
        assert b'"placement"' not in signed_bytes(receipt)
        check_arithmetic(receipt)

    def test_a_contexts_null_is_not_absent_either(self) -> None:
        with pytest.raises(InvalidDocument, match="never null"):
            RequestContext.from_json(canonical_bytes({**json.loads(OLD_CONTEXT.read_bytes()), "placement": None}))


TEXTS = st.text(st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
# Past 2^53 microjoules a double is not exact, and none is expected to be that large.
FIGURES = st.floats(0, 2**51)
USD = st.floats(0, 1000)


class TestMaking:
    @settings(deadline=None)
    @given(
        accepted=st.integers(0, 2**61),
        resumed=st.integers(0, 2**31),
        microjoules=FIGURES,
        usd=st.tuples(USD, USD, USD, USD, USD),
        reasons=st.lists(st.text(max_size=400), max_size=9),
        residency=st.lists(TEXTS.filter(str.strip), max_size=5),
    )
    def test_what_the_door_says_survives_to_the_receipt_and_back(
        self, make_context, make_settlement, make_placement, accepted, resumed, microjoules, usd, reasons, residency
    ) -> None:
        candidate = CandidatePool.expecting(
            pool=POOL,
            expected_microjoules=microjoules,
            energy_usd=usd[0],
            facility_usd=usd[1],
            carbon_usd=usd[2],
            wait_usd=usd[3],
            network_usd=usd[4],
        )
        assert round(candidate.expected_joules * 10**6) == round(microjoules)
        assert (candidate.energy_usd_picos, candidate.network_usd_picos) == (round(usd[0] * 1e12), round(usd[4] * 1e12))
        rejected = [RejectedPool.because(f"pool-{place}", reason) for place, reason in enumerate(reasons)]
        pins = Pins(model=None, region="LOCAL", residency=(*residency, "de"), operators=("this-machine",))
        placement = make_placement(
            POOL,
            accepted_unix_ns=accepted,
            resumed_after_tokens=resumed,
            pins=pins,
            candidates=(candidate,),
            rejected=tuple(rejected[:MOST_REJECTED]),
            rejected_total=len(rejected),
        )
        attempts = (Attempt(pool="p", outcome="timeout", energy_microjoules=None),)
        context = make_context(7, placement=placement, attempts=attempts)
        assert RequestContext.from_json(context.to_json()) == context
        receipt = drafted(context, make_settlement(7))
        assert receipt.placement is not None
        assert receipt.placement.model_dump(exclude={"waited_ms"}) == placement.model_dump()
        check_arithmetic(receipt)
        read = document_from(parse_strict(with_signature(signed_bytes(receipt), None)))
        assert (read, signed_bytes(read)) == (receipt, signed_bytes(receipt))

    @pytest.mark.parametrize(
        ("before_start_ns", "waited_ms"),
        [(0, 0), (999_999, 0), (1_000_000, 1), (-1, 0), (-(10**9), 0), (61_000_999_999, 61_000)],
    )
    def test_the_wait_is_whole_milliseconds_and_never_negative(
        self, make_context, make_settlement, make_placement, before_start_ns: int, waited_ms: int
    ) -> None:
        settlement = make_settlement(7)
        accepted = settlement.start_unix_ns - before_start_ns
        receipt = drafted(make_context(7, placement=make_placement(POOL, accepted_unix_ns=accepted)), settlement)
        assert receipt.placement is not None
        assert receipt.placement.waited_ms == waited_ms
        check_arithmetic(receipt)

    def test_a_long_or_odd_reason_is_made_to_fit(self) -> None:
        assert RejectedPool.because("p", "a\nb\x7fc\0").reason == "a b c "
        assert RejectedPool.because("p", "").reason == "no reason was given"
        assert RejectedPool.because("p", "x" * 256).reason == "x" * 256
        assert RejectedPool.because("p", "x" * 257).reason == "x" * 255 + "…"

    def test_a_negative_part_is_refused(self, make_candidate) -> None:
        with pytest.raises(ValueError, match="greater than or equal to 0"):
            CandidatePool.expecting(
                pool="p",
                expected_microjoules=1,
                energy_usd=0,
                facility_usd=0,
                carbon_usd=0,
                wait_usd=-1e-9,
                network_usd=0,
            )

    def test_a_pool_with_its_silicon_is_of_its_site(self, make_context, make_placement) -> None:
        make_context(7, placement=make_placement(f"{POOL}/epyc"))
        with pytest.raises(ValueError, match="but SmolLM2-135M-Instruct@this-machine/local answered"):
            make_context(7, placement=make_placement(f"{POOL}-2"))


def of(*path: Any, to: object) -> Change:
    def change(placement: dict[str, Any]) -> None:
        inner: Any = placement
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = to

    return change


def twice(name: str) -> Change:
    return lambda placement: placement[name].append(copy.deepcopy(placement[name][0]))


REFUSED: dict[str, tuple[Change, str]] = {
    "no pin list": (of("pins", "residency", to=None), "tuple"),
    "too many pins": (of("pins", "residency", to=["local"] * 33), "32 items"),
    "no candidates": (of("candidates", to=[]), "at least 1 item"),
    "four candidates": (lambda placement: placement["candidates"].append({}), "candidates"),
    "six rejected": (of("rejected", to=[{"pool": f"p{n}", "reason": "r"} for n in range(6)]), "5 items"),
    "negative joules": (of("candidates", 0, "expected_joules", to=-0.1), "greater than or equal to 0"),
    "parts of microjoules": (of("candidates", 0, "expected_joules", to=1e-7), "whole number of microjoules"),
    "negative part": (of("candidates", 1, "wait_usd_picos", to=-1), "greater than or equal to 0"),
    "broken part": (of("candidates", 1, "wait_usd_picos", to=1.5), "integer"),
    "negative rate": (of("rates", "usd_per_kgco2", to=-1), "greater than or equal to 0"),
    "empty reason": (of("rejected", 0, "reason", to=""), "at least 1 character"),
    "long reason": (of("rejected", 0, "reason", to="x" * 257), "at most 256"),
    "more rejected than all": (of("rejected_total", to=0), "not the first five"),
    "fewer rejected than there were": (of("rejected_total", to=2), "not the first five"),
    "a candidate twice": (of("candidates", 1, "pool", to=POOL), "is there twice"),
    "a candidate rejected": (of("rejected", 0, "pool", to=ELSEWHERE[0]), "is there twice"),
    "its pool rejected": (
        lambda placement: (
            of("candidates", 0, "pool", to="other")(placement),
            of("rejected", 0, "pool", to=POOL)(placement),
        ),
        "one that was rejected",
    ),
    "its pool no candidate of all": (
        lambda placement: placement["candidates"].pop(0),
        "pool is no candidate, and these are all of the plan",
    ),
    "a member more": (of("waited_us", to=1), "Extra inputs"),
    "a wait that does not follow": (of("waited_ms", to=501), "placement.waited_ms is 501, but the other figures make"),
    "accepted earlier": (of("accepted_unix_ns", to=1), "placement.waited_ms is 500"),
    "another pool": (of("pool", to=ELSEWHERE[1]), "placement.pool is 'larger@this-machine/local', but SmolLM2"),
    "another region's pool": (of("pool", to="SmolLM2-135M-Instruct@this-machine/locality"), "but SmolLM2"),
    "a pinned model that did not answer": (of("pins", "model", to="larger"), "pinned to larger"),
    "a pinned region that it is not in": (of("pins", "region", to="eu"), "pinned to eu"),
    "the beginning of a region's name": (of("pins", "region", to="loc"), "pinned to loc"),
    "a blank region": (of("pins", "region", to=" "), "must not be empty"),
    "residency elsewhere": (of("pins", "residency", to=["eu", "fi"]), "must stay in eu or fi"),
    "an operator that is not allowed": (of("pins", "operators", to=["acme"]), "the account allows acme"),
    "no operator allowed": (of("pins", "operators", to=[]), "no operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_placement_that_breaks_a_rule_passes_neither_auditor_nor_signer(document: dict[str, Any], name: str) -> None:
    change, says = REFUSED[name]
    changed = copy.deepcopy(document)
    change(changed["placement"])
    with pytest.raises(InvalidDocument, match=says):
        check_arithmetic(_receipt(changed))
    del changed["verification"]["signature"]
    rules = ReceiptRules(wall_clock_ns=lambda: changed["execution"]["end_unix_ns"])
    with pytest.raises(PolicyViolation, match=says):
        rules.examine(canonical_bytes(changed), key_id=changed["verification"]["key_id"])


@pytest.mark.parametrize(
    ("section", "name", "value", "says"),
    [
        ("execution", "attempts", [], "nothing to resume, for no attempt failed"),
        ("workload", "model", "larger", "placement.pool is"),
        ("silicon", "operator", "acme", "placement.pool is"),
        ("silicon", "region", "eu-de", "placement.pool is"),
        ("operator", "country", "FI", "must stay in eu or DE"),
        ("operator", "country", None, "must stay in eu or DE"),
    ],
)
def test_what_ran_elsewhere_is_not_what_was_placed(
    document: dict[str, Any], section: str, name: str, value: object, says: str
) -> None:
    changed = copy.deepcopy(document)
    changed[section][name] = value
    if name == "attempts":
        changed[section]["retries"] = 0
    with pytest.raises(InvalidDocument, match=says):
        check_arithmetic(_receipt(changed))


def test_beyond_the_third_candidate_any_pool_of_the_plan_may_answer(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    changed["placement"]["candidates"][0]["pool"] = "another@elsewhere/eu-fi"
    check_arithmetic(_receipt(changed))


def test_the_door_hears_at_once_of_a_context_that_no_signer_would_sign(make_context, make_placement) -> None:
    pinned = Pins(model=None, region="eu", residency=(), operators=None)
    for changes, says in (
        ({"placement": make_placement("another@this-machine/local")}, "placement.pool is"),
        ({"placement": make_placement(POOL, pins=pinned)}, "pinned to eu"),
        ({"placement": make_placement(POOL, resumed_after_tokens=1)}, "nothing to resume"),
    ):
        with pytest.raises(ValueError, match=says):
            make_context(7, **changes)


def _receipt(document: dict[str, Any]) -> Receipt:
    receipt = document_from(document)
    assert isinstance(receipt, Receipt)
    return receipt


@given(st.floats(0, 1e30), st.floats(0, 1e30))
def test_any_forecast_has_a_place_on_a_receipt(microjoules: float, usd: float):
    candidate = CandidatePool.expecting(
        pool="m@o/r",
        expected_microjoules=microjoules,
        energy_usd=usd,
        facility_usd=usd,
        carbon_usd=usd,
        wait_usd=usd,
        network_usd=usd,
    )
    assert CandidatePool.model_validate_json(candidate.model_dump_json()) == candidate
    if microjoules < 2**51:
        assert round(candidate.expected_joules * 10**6) == round(microjoules)
    assert candidate.wait_usd_picos == min(round(usd * 10**12), 2**63 - 1)
