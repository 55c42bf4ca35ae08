"""All meters' statements together: what is told of each meter, and how much of that is kept."""

from contextlib import closing

from metering.statements import ChainHead, MeterKey, SignedStatement, StatementChain
from receipts.statement_check import MOST_TALLIES, MeterTally, StatementCheck


def made(count: int, seed: int, head: ChainHead | None = None) -> list[SignedStatement]:
    chain = StatementChain(MeterKey(seed.to_bytes(32)), head)
    return [
        chain.state(request_id=f"{n}", outcome="finished", microjoules=0, counted_microjoules=0, open_ns=0)
        for n in range(count)
    ]


def tallies(*statements: SignedStatement) -> tuple[list[MeterTally], int]:
    with closing(StatementCheck()) as check:
        for each in statements:
            check.add(each)
        assert list(check.findings()) == []
        return check.tallies, check.meters


def test_what_is_missing_is_counted_for_each_meter_and_what_a_reboot_skips_is_not() -> None:
    ones, others = made(10, 1), made(3, 2)
    head = ChainHead(sequence=10, sha256="ab" * 32, charged_microjoules=0).after_a_loss()
    after_the_reboot = made(4, 1, head)
    found, _ = tallies(*others[1:], *after_the_reboot[2:], ones[7], *ones[1:4])
    ones_key, others_key = (MeterKey(seed.to_bytes(32)).public_key.hex() for seed in (1, 2))
    assert sorted(found, key=lambda each: each.statements) == [
        MeterTally(meter=others_key, statements=2, missing=1),
        MeterTally(meter=ones_key, statements=6, missing=1 + 3 + 2 + 2),
    ]


def test_the_meters_that_are_told_are_bounded_and_all_are_counted() -> None:
    found, meters = tallies(*(each for seed in range(MOST_TALLIES + 5) for each in made(1, seed)))
    assert (len(found), meters) == (MOST_TALLIES, MOST_TALLIES + 5)
