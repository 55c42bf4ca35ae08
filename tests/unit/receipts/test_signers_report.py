"""What operators read of the signers."""

import json

import pytest

from receipts.ledger_writer import Backlog
from receipts.signer_messages import SignerIdentity, SignerStatus
from receipts.signers_report import MemberReport, SignersReport, SignerState, SigningRate


def member(
    identifier: int, state: SignerState, clock_unix_ns: int | None = None, answered_unix_ns: int = 10_000_000_000
) -> MemberReport:
    status = SignerStatus(
        identity=SignerIdentity(identifier=identifier, identity_key=bytes(32)),
        record=None,
        unused_nonces=384,
        accounts=2,
        vouched=70,
        clock_unix_ns=clock_unix_ns,
    )
    is_away = state is SignerState.AWAY
    return MemberReport(
        identifier=identifier,
        state=state,
        reason="dead" if is_away else None,
        host="host-1",
        last_refusal=None,
        status=None if is_away else status,
        answered_unix_ns=answered_unix_ns,
    )


def report(backlog: Backlog) -> SignersReport:
    return SignersReport(
        public_key=bytes(range(32)),
        key_id="630dcd2966c43366",
        threshold=3,
        members=(
            member(1, SignerState.READY, clock_unix_ns=12_000_000_000),
            member(2, SignerState.AWAY),
            member(3, SignerState.EXCLUDED),
            member(4, SignerState.READY),
        ),
        backlog=backlog,
        signed_per_second=1.5,
        at_unix_ns=10_000_000_000,
    )


def test_who_is_ready_what_waits_and_whose_clock_is_off() -> None:
    whole = report(Backlog(count=3, oldest_unix_ns=8_500_000_000))
    assert whole.ready == 2
    assert whole.oldest_age_s == 1.5
    assert [whole.clock_ahead_s(each) for each in whole.members] == [2.0, None, None, None]
    early = member(1, SignerState.READY, clock_unix_ns=7_000_000_000, answered_unix_ns=6_000_000_000)
    assert whole.clock_ahead_s(early) == 1.0, "whenever the last one answered"
    assert report(Backlog(count=0, oldest_unix_ns=None)).oldest_age_s is None
    assert report(Backlog(count=1, oldest_unix_ns=11_000_000_000)).oldest_age_s == 0, "the clock went back"


def test_it_is_json() -> None:
    shown = json.loads(json.dumps(report(Backlog(count=3, oldest_unix_ns=8_500_000_000)).to_jsonable()))
    assert [each["state"] for each in shown["signers"]] == ["ready", "away", "excluded", "ready"]
    assert (shown["ready"], shown["threshold"], shown["unsigned_receipts"]) == (2, 3, 3)
    assert shown["signers"][0]["vouched"] == 70
    assert shown["signers"][1] == {
        "signer": 2,
        "state": "away",
        "reason": "dead",
        "node": "host-1",
        "unused_nonces": None,
        "accounts": None,
        "vouched": None,
        "clock_ahead_s": None,
        "last_refusal": None,
    }


def test_the_rate_is_the_last_minutes() -> None:
    now_s = 100.0
    rate = SigningRate(lambda: now_s)
    assert rate.per_second() == 0
    now_s = 110.0
    rate.add(20)
    assert rate.per_second() == pytest.approx(2), "over the ten seconds that there were"
    now_s = 165.0
    rate.add(40)
    assert rate.per_second() == pytest.approx(1)
    now_s = 171.0
    assert rate.per_second() == pytest.approx(40 / 60)
    now_s = 300.0
    assert rate.per_second() == 0
