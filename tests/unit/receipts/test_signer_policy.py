"""What no signer puts its name to."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metering.counters.counter import CounterFacts, Reading, difference
from metering.power_gauge import PowerGauge
from metering.statements import ChainHead, MeterKey, SignedStatement, StatementChain
from receipts.canonical import canonical_bytes
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer_policy import MAX_OPEN_NS, ReceiptRules
from receipts.signer_store import ChainClaim, StatementNumber
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


METER = MeterKey(bytes(range(32)))
ENROLLED = MeterEnrolment(public_key=METER.public_key, node="host-1", maximum_power_milliwatts=100_000)
REQUEST_ID = TEMPLATE["receipt_id"].removeprefix("rcpt_")
ENERGY_MICROJOULES = round(TEMPLATE["energy"]["total_joules"] * 10**6)


def statement(head: ChainHead | None = None, key: MeterKey = METER, **changes: Any) -> SignedStatement:
    figures: dict[str, Any] = {
        "request_id": REQUEST_ID,
        "outcome": "finished",
        "microjoules": ENERGY_MICROJOULES,
        "counted_microjoules": 10**9,
        "open_ns": 0,
    }
    return StatementChain(key, head).state(**{**figures, **changes})


def billed_before(charged_microjoules: int) -> ChainHead:
    """So much will have been billed when this receipt's request is."""
    return ChainHead(sequence=7, sha256="ab" * 32, charged_microjoules=charged_microjoules - ENERGY_MICROJOULES)


def examine(evidence: SignedStatement | None, *enrolled: MeterEnrolment, message: bytes | None = None) -> ChainClaim:
    meters = {each.public_key: each for each in enrolled or (ENROLLED,)}
    message = canonical_bytes(receipt()) if message is None else message
    return rules().examine_stated(message, evidence, key_id=KEY_ID, meters=meters)


def unmetered_receipt() -> bytes:
    document = receipt()
    for name in ("total_joules", "active_joules", "floor_joules", "estimated_joules"):
        document["energy"][name] = None
    document["energy"] |= {"unavailable_reason": "the meter was restarted", "method_confidence": "unavailable"}
    document["energy"] |= {"method": None, "scope": []}
    document["carbon"] |= {"gco2eq_total": None, "facility_joules": None}
    document["price"]["usd_picos"] = 0
    return canonical_bytes(document)


class TestStatedReceipts:
    def test_one_that_its_meter_bears_out_claims_its_place_and_the_statements_number(self) -> None:
        alone = rules().examine(canonical_bytes(receipt()), key_id=KEY_ID)
        assert alone.stated is None
        number = StatementNumber(meter=METER.public_key, sequence=1)
        assert examine(statement()) == dataclasses.replace(alone, stated=number)
        assert examine(statement(outcome="aborted")).stated == number

    def test_without_a_statement_it_is_refused(self) -> None:
        with pytest.raises(PolicyViolation, match="without a statement of its meter"):
            examine(None)

    def test_the_receipt_itself_must_be_right_too(self) -> None:
        document = receipt()
        document["price"]["usd_picos"] += 1
        with pytest.raises(PolicyViolation, match="usd_picos"):
            examine(statement(), message=canonical_bytes(document))

    def test_a_meter_that_is_not_enrolled_is_not_believed(self) -> None:
        stranger = MeterKey(bytes(32))
        with pytest.raises(PolicyViolation, match="its meter 3b6a27bcceb6a42d… is not enrolled"):
            examine(statement(key=stranger))

    def test_a_stranger_in_an_enrolled_meters_name_is_not_believed(self) -> None:
        theirs = MeterKey(bytes(32)).sign(statement().statement.encode()).hex()
        with pytest.raises(PolicyViolation, match="not valid: it is not signed by the meter 03a107bff3ce10be"):
            examine(dataclasses.replace(statement(), signature=theirs))

    @pytest.mark.parametrize("text", ["", "{}", "null", "[" * 2000, "x" * 10_000])
    def test_what_is_no_statement_is_refused(self, text: str) -> None:
        with pytest.raises(PolicyViolation, match="its meter's statement is not valid"):
            examine(dataclasses.replace(statement(), statement=text))

    def test_a_statement_about_another_request_is_refused(self) -> None:
        with pytest.raises(PolicyViolation, match=f"about the request '{'f' * 32}'"):
            examine(statement(request_id="f" * 32))

    def test_a_failed_attempt_has_no_receipt(self) -> None:
        with pytest.raises(PolicyViolation, match="the attempt failed"):
            examine(statement(outcome="failed", microjoules=None), message=unmetered_receipt())

    @pytest.mark.parametrize("stated", [ENERGY_MICROJOULES - 1, ENERGY_MICROJOULES + 1, 0, None])
    def test_another_figure_than_the_stated_is_refused(self, stated: int | None) -> None:
        with pytest.raises(PolicyViolation, match=f"its energy is {ENERGY_MICROJOULES} microjoules, its meter has"):
            examine(statement(microjoules=stated))

    def test_energy_that_is_not_known_is_stated_as_not_known(self) -> None:
        assert examine(statement(microjoules=None), message=unmetered_receipt()).seq == 1
        with pytest.raises(PolicyViolation, match="its energy is not known, its meter has stated 0 microjoules"):
            examine(statement(microjoules=0), message=unmetered_receipt())

    def test_a_meter_may_bill_ahead_of_its_counters_by_what_can_be_estimates(self) -> None:
        """1.2 times 100 W for 50 ms and a second more are 126 J; then a twentieth of the 200 J that were counted."""
        for ahead, open_ns in ((136_000_000, 50_000_000), (130_000_000, 0), (130_000_001, 1)):
            honest, too_much = (
                statement(billed_before(200_000_000 + each), counted_microjoules=200_000_000, open_ns=open_ns)
                for each in (ahead, ahead + 1)
            )
            examine(honest)
            with pytest.raises(PolicyViolation, match=f"billed {ahead + 1} microjoules more .* most {ahead} can be"):
                examine(too_much)

    @pytest.mark.parametrize(
        ("interval_ns", "period_ns", "open_ns"),
        [
            (10**8, 10**8, 11 * 10**7),
            (10**8, 2 * 10**7, 10**8),
            (10**8, 10**7, 3 * 10**9),
            (10**10, 10**8, 12 * 10**9),
            (10**9, 10**9, 10**9),
            (10**7, 1, 1),
        ],
    )
    @pytest.mark.parametrize("milliwatts", [1, 3, 100_000, 5_600_001])
    def test_what_metering_believes_a_counter_is_never_refused(
        self, interval_ns: int, period_ns: int, open_ns: int, milliwatts: int
    ) -> None:
        """The most that an interval can hold without a quarantine is all billed, and the open one estimated by it."""
        facts = CounterFacts(
            device_id="d",
            method="m",
            scope="s",
            period_ns=period_ns,
            wrap_microjoules=None,
            maximum_power_milliwatts=milliwatts,
            error_percent=5.0,
            best_confidence="measured-direct",
            closes_at_will=False,
        )
        counted = 12 * milliwatts * (interval_ns + period_ns) // 10**7
        moved = [Reading(energy_microjoules=each, at_monotonic_ns=interval_ns) for each in (counted, counted + 1)]
        before = Reading(energy_microjoules=0, at_monotonic_ns=0)
        believed = [difference(before, after, facts).quarantined_microjoules == 0 for after in moved]
        assert believed == [True, False]
        gauge = PowerGauge(window_ns=interval_ns, period_ns=period_ns)
        gauge.add(counted, interval_ns)
        estimate = gauge.milliwatts * open_ns // 10**6
        enrolled = dataclasses.replace(ENROLLED, maximum_power_milliwatts=milliwatts)
        head = ChainHead(sequence=7, sha256="ab" * 32, charged_microjoules=counted + estimate)
        examine(
            statement(head, microjoules=None, counted_microjoules=counted, open_ns=open_ns),
            enrolled,
            message=unmetered_receipt(),
        )

    def test_estimates_that_lean_to_one_side_block_no_account(self) -> None:
        """After weeks at full load: a twenty-fifth of all that was counted, and nothing is open."""
        examine(statement(billed_before(104 * 10**13), counted_microjoules=10**15, open_ns=0))

    def test_no_interval_is_open_for_ever(self) -> None:
        at_most = 120 * (MAX_OPEN_NS + 10**9) // 1000
        for open_ns in (MAX_OPEN_NS, 10 * MAX_OPEN_NS, 2**62):
            examine(statement(billed_before(at_most), counted_microjoules=0, open_ns=open_ns))
            with pytest.raises(PolicyViolation, match=f"at most {at_most} can be"):
                examine(statement(billed_before(at_most + 1), counted_microjoules=0, open_ns=open_ns))

    def test_the_power_is_that_of_the_meter_that_states(self) -> None:
        weak = dataclasses.replace(ENROLLED, maximum_power_milliwatts=0)
        strong = MeterEnrolment(public_key=MeterKey(bytes(32)).public_key, node="h", maximum_power_milliwatts=10**9)
        with pytest.raises(PolicyViolation, match="most 0 can be estimates"):
            examine(statement(counted_microjoules=0, open_ns=10**9), weak, strong)
