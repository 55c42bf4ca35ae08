"""A meter's statements in their order: what an honest meter leaves, and what none does."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.statements import ChainHead, MeterKey, MeterStatement, SignedStatement, StatementChain, check_statement
from receipts.meter_audit import check_statements

KEY = MeterKey(bytes(range(32)))
BILLED = (310_000, None, 0, 5, 7_000_000)


def made(billed: Sequence[int | None], chain: StatementChain | None = None, counted: int = 0) -> list[SignedStatement]:
    """Statements of requests that were billed so much, None for one that was not; the count rises by 1 J each."""
    chain = chain or StatementChain(KEY, None)
    return [
        chain.state(
            request_id=f"{number}",
            outcome="failed" if microjoules is None else "finished",
            microjoules=microjoules,
            counted_microjoules=counted + 10**6 * number,
            open_ns=0,
        )
        for number, microjoules in enumerate(billed, start=1)
    ]


def restated(signed: SignedStatement, **changes: object) -> SignedStatement:
    """Another statement in its place, signed by the meter itself."""
    statement = dataclasses.replace(check_statement(signed, KEY.public_key), **changes)  # type: ignore[arg-type]
    signed_bytes = statement.signed_bytes()
    return SignedStatement(statement=signed_bytes.decode(), signature=KEY.sign(signed_bytes).hex())


def found(statements: Sequence[SignedStatement]) -> list[str]:
    return [str(each) for each in check_statements(statements, KEY.public_key)]


def parsed(signed: SignedStatement) -> MeterStatement:
    return check_statement(signed, KEY.public_key)


@given(
    billed=st.lists(st.none() | st.integers(0, 10**12), max_size=12),
    kept=st.sets(st.integers(0, 11)),
)
def test_an_honest_meters_statements_fit_whichever_are_missing(billed: list[int | None], kept: set[int]) -> None:
    statements = made(billed)
    assert found(statements) == []
    assert found([each for place, each in enumerate(statements) if place in kept]) == []


def test_a_reboot_that_cost_nothing_is_no_finding() -> None:
    statements = made(BILLED)
    last = parsed(statements[-1])
    head = ChainHead(sequence=5, sha256=last.sha256, charged_microjoules=last.charged_microjoules)
    more = made(BILLED, StatementChain(KEY, head.after_a_loss()), counted=10**8)
    assert parsed(more[0]).sequence == 2**20 + 6
    assert found([*statements, *more]) == []
    assert found([*statements[:3], *more[2:]]) == []


def test_a_meter_that_lost_the_end_of_its_journal_is_shown() -> None:
    statements = made(BILLED)
    third = parsed(statements[2])
    head = ChainHead(sequence=3, sha256=third.sha256, charged_microjoules=third.charged_microjoules)
    more = made(BILLED, StatementChain(KEY, head.after_a_loss()), counted=10**8)
    (only,) = found([*statements, *more])
    assert only == f"statement {2**20 + 4}: it goes on from statement 3, as if none had been made since; 5 was"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all_: [*all_[:2], all_[3], all_[2], all_[4]], ["statement 3: it comes after statement 4"]),
        (lambda all_: [*all_[:3], all_[2], *all_[3:]], ["statement 3: it comes after statement 3"]),
        (
            lambda all_: [*all_[:2], dataclasses.replace(all_[2], signature="00" * 64), *all_[3:]],
            ["item 3: it is not signed by the meter"],
        ),
        (
            lambda all_: [*all_[:2], dataclasses.replace(all_[2], statement="{}"), *all_[3:]],
            ["item 3: it is not signed by the meter"],
        ),
        (
            lambda all_: [*all_[:2], restated(all_[2], open_ns=1), *all_[3:]],
            ["statement 4: its previous_sha256 is not the hash of statement 3"],
        ),
        (
            lambda all_: [*all_[:4], restated(all_[4], charged_microjoules=7_310_006)],
            ["statement 5: it says that 7310006 microjoules were billed so far; it must be 7310005"],
        ),
        (
            lambda all_: [*all_[:4], restated(all_[4], microjoules=6_999_999)],
            ["statement 5: it says that 7310005 microjoules were billed so far; it must be 7310004"],
        ),
        (
            lambda all_: [all_[0], restated(all_[4], charged_microjoules=7_309_999)],
            ["statement 5: it says that 7309999 microjoules were billed so far; it must be at least 7310000"],
        ),
        (
            lambda all_: [restated(all_[0], charged_microjoules=310_001)],
            ["statement 1: it says that 310001 microjoules were billed so far; it must be 310000"],
        ),
        (
            lambda all_: [*all_[:4], restated(all_[4], counted_microjoules=3_999_999)],
            ["statement 5: its count fell from 4000000 to 3999999 microjoules"],
        ),
        (
            lambda all_: [all_[1], restated(all_[4], counted_microjoules=1_999_999)],
            ["statement 5: its count fell from 2000000 to 1999999 microjoules"],
        ),
    ],
    ids=range(11),
)
def test_what_does_not_fit_is_named(
    change: Callable[[list[SignedStatement]], list[SignedStatement]], says: list[str]
) -> None:
    findings = found(change(made(BILLED)))
    assert len(findings) == len(says)
    for finding, start in zip(findings, says, strict=True):
        assert finding.startswith(start)


def test_another_meters_statement_is_not_its_own() -> None:
    assert len(check_statements(made(BILLED), MeterKey(bytes(32)).public_key)) == len(BILLED)
