"""A request of three attempts over two hosts in the books: failed ones are the mesh's overhead once, the last is paid.

Whatever the order in which the hosts' meters deliver them, and however often.
"""

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opened_ledger import CHARGE_USD_PICOS, book, imbalance, opened, rows

from metering.settlement import EnergyFigures, Settlement
from metering.statements import MeterKey, StatementChain
from receipts.draft import Attempt
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_check import check_ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_schema import failed_attempts
from receipts.stored_receipt import StoredReceipt

WASTED = (120_000, 45_001)
PAID = 310_000
HOSTS = ("host-1", "host-2")


def attempts(make_settlement: Callable[..., Settlement], number: int = 1) -> list[Settlement]:
    """Failed on the first host, failed on the second, finished on the first again; each with its meter's statement."""
    chains = {host: StatementChain(MeterKey(bytes([place]) * 32), None) for place, host in enumerate(HOSTS, start=1)}
    failed: tuple[Attempt, ...] = ()
    made = []
    for host, microjoules in zip((*HOSTS, HOSTS[0]), (*WASTED, PAID), strict=True):
        outcome = "finished" if microjoules == PAID else "failed"
        whole = make_settlement(number, attempts=failed)
        made.append(
            dataclasses.replace(
                whole,
                outcome=outcome,
                replica=f"replica-of-{host}",
                silicon=dataclasses.replace(whole.silicon, node=host),
                energy=of_microjoules(whole.energy, microjoules),
                statement=chains[host].state(
                    request_id=whole.request_id,
                    outcome=outcome,
                    microjoules=microjoules if outcome == "finished" else None,
                    counted_microjoules=10**9,
                    open_ns=0,
                ),
            )
        )
        failed += (Attempt(pool=f"pool-{host}", outcome="timeout", energy_microjoules=microjoules),)
    return made


def of_microjoules(energy: EnergyFigures, microjoules: int) -> EnergyFigures:
    floor = min(energy.floor_microjoules or 0, microjoules)
    return dataclasses.replace(
        energy, total_microjoules=microjoules, active_microjoules=microjoules - floor, floor_microjoules=floor
    )


def assert_booked(ledger: Ledger, url: str) -> None:
    assert book(ledger, "microjoules") == {
        "meter": -sum(WASTED) - PAID,
        "overhead": sum(WASTED),
        "customer:acme": PAID,
    }
    assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS
    assert sorted(row[0] for row in rows(ledger, failed_attempts.c.energy_microjoules)) == sorted(WASTED)
    assert imbalance(ledger) == []
    database = ReadingDatabase.open(url)
    try:
        report = check_ledger(database, None)
    finally:
        database.close()
    assert report.findings == ()
    assert (report.receipts, report.failed_attempts, report.meters, report.statements) == (1, 2, 2, 3)
    assert [tally.missing for tally in report.tallies] == [0, 0], "no meter's statement is missing"


def assert_receipt(stored: StoredReceipt | None, settlement: Settlement) -> None:
    assert stored is not None
    receipt = json.loads(stored.signed_bytes)
    assert stored.statement == settlement.statement
    assert (receipt["energy"]["total_joules"], receipt["execution"]["retries"]) == (0.31, 2)
    assert [each["joules"] for each in receipt["execution"]["attempts"]] == [0.12, 0.045001]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_in_any_order(ledger_url: str, make_settlement, order: Sequence[int]) -> None:
    made = attempts(make_settlement)
    ledger = opened(ledger_url)
    ledger.create_key("acme", "test")
    for place in order:
        ledger.settle([made[place]])
    assert_receipt(ledger.receipt(f"rcpt_{1:032x}", "acme"), made[2])
    assert_booked(ledger, ledger_url)
    ledger.close()


@settings(max_examples=25, deadline=None)
@given(
    deliveries=st.lists(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4), max_size=6),
    rest=st.permutations([0, 1, 2]),
)
def test_however_often_and_together_they_are_delivered(
    make_settlement, deliveries: list[list[int]], rest: list[int]
) -> None:
    made = attempts(make_settlement)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder)}/ledger.sqlite3"
        ledger = opened(url)
        ledger.create_key("acme", "test")
        for batch in [*deliveries, *([place] for place in rest)]:
            for place, stored in zip(batch, ledger.settle([made[each] for each in batch]), strict=True):
                if place == 2:
                    assert_receipt(stored, made[2])
        assert_booked(ledger, url)
        ledger.close()
