"""The ledger: chains without gaps, books that balance, nothing twice, nothing half. On both databases."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opened_ledger import CHARGE_USD_PICOS, KEY_ID, NOW_NS, book, imbalance, opened, rows, settle
from sqlalchemy import text

from metering.settlement import EnergyErrors, no_figures
from metering.statements import SignedStatement
from receipts.api_keys import API_KEY_PREFIX
from receipts.canonical import MAX_BYTES, parse_strict
from receipts.document import document_from, receipt_from_signed_bytes
from receipts.draft import Attempt
from receipts.errors import LedgerError, LedgerUnavailable, LedgerUnusable, SettlementRefused
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_schema import accounts, api_keys, entries, failed_attempts, receipts, reversals
from receipts.placement_section import Pins
from receipts.stored_receipt import StoredReceipt
from receipts.verify import verify_paths

ERRORS = EnergyErrors(
    conservation_percent=0.0, counter_percent=None, allocation_percent=None, allocation_reason="not calibrated"
)
NO_ENERGY = no_figures("the meter was restarted", ERRORS)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = opened(ledger_url)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


class TestKeys:
    def test_a_key_opens_its_account(self, ledger: Ledger) -> None:
        key = ledger.create_key("acme", "second").secret
        assert key.startswith(API_KEY_PREFIX)
        assert len(key) == len(API_KEY_PREFIX) + 43
        assert ledger.key_of(key).account == "acme"

    @pytest.mark.parametrize("key", ["", "jc_LIVE_", "jc_LIVE_" + "A" * 43, "\ud800", "x" * 100_000])
    def test_another_text_opens_none(self, ledger: Ledger, key: str) -> None:
        assert ledger.key_of(key) is None

    def test_only_the_hash_is_kept(self, ledger: Ledger) -> None:
        key = ledger.create_key("acme", "secret one").secret
        (kept,) = (row for row in rows(ledger, api_keys) if "secret one" in row)
        assert key[len(API_KEY_PREFIX) :] not in str(kept)
        assert hashlib.sha256(key.encode()).digest() in kept

    def test_a_fresh_ledger_has_no_keys(self, ledger_url: str) -> None:
        ledger = opened(ledger_url)
        assert not ledger.has_keys()
        ledger.create_key("acme", "")
        assert ledger.has_keys()
        ledger.close()

    @pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800", "x" * 257])
    def test_a_key_needs_a_proper_name(self, ledger: Ledger, name: str) -> None:
        before = rows(ledger, api_keys)
        with pytest.raises(LedgerError, match="a key's name is a line of at most 256 characters"):
            ledger.create_key("acme", name)
        assert rows(ledger, api_keys) == before

    @pytest.mark.parametrize("account", ["", "-x", "a b", "a" * 129, "é", "a\n"])
    def test_an_account_needs_a_proper_name(self, ledger: Ledger, account: str) -> None:
        with pytest.raises(LedgerError, match="an account's name is"):
            ledger.create_key(account, "test")

    def test_an_account_begins_with_five_dollars_once(self, ledger: Ledger) -> None:
        ledger.create_key("acme", "again")
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS == 5 * 10**12
        assert ledger.balance_usd_picos("nobody") == 0


class TestSettle:
    def test_a_settlement_becomes_the_accounts_next_receipt(self, ledger: Ledger, make_settlement) -> None:
        first, second = settle(ledger, make_settlement(1), make_settlement(2))
        (third,) = settle(ledger, make_settlement(3))
        (elsewhere,) = settle(ledger, make_settlement(4, "other"))
        assert [each.seq for each in (first, second, third, elsewhere)] == [1, 2, 3, 1]
        assert first.receipt_id == f"rcpt_{1:032x}"
        previous = None
        for each in (first, second, third):
            receipt = receipt_from_signed_bytes(each.signed_bytes)
            assert receipt.chain.prev_sha256 == previous
            assert receipt.verification.key_id == KEY_ID
            previous = hashlib.sha256(each.signed_bytes).hexdigest()

    def test_results_are_in_the_order_asked(self, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(2))
        stored = settle(ledger, make_settlement(3), make_settlement(2), make_settlement(1), make_settlement(3))
        assert [int(each.receipt_id[5:], 16) for each in stored] == [3, 2, 1, 3]
        assert [each.seq for each in stored] == [2, 1, 3, 2]

    def test_a_redelivered_settlement_gets_the_same_receipt(self, ledger: Ledger, make_settlement) -> None:
        (first,) = settle(ledger, make_settlement(1))
        before = ledger.balance_usd_picos("acme")
        assert settle(ledger, make_settlement(1), make_settlement(1)) == [first, first]
        assert settle(ledger, make_settlement(1, duration_ns=1)) == [first]
        assert ledger.balance_usd_picos("acme") == before

    def test_the_charge_is_entered_twice(self, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(1), make_settlement(2), make_settlement(3, "other"))
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - 2 * CHARGE_USD_PICOS
        assert book(ledger, "microjoules") == {
            "meter": -930_000,
            "customer:acme": 620_000,
            "customer:other": 310_000,
        }
        assert book(ledger, "usd_picos") == {
            "customer:acme": OPENING_CREDIT_USD_PICOS - 2 * CHARGE_USD_PICOS,
            "customer:other": OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS,
            "opening-credits": -2 * OPENING_CREDIT_USD_PICOS,
            "revenue": 3 * CHARGE_USD_PICOS,
        }
        assert imbalance(ledger) == []

    def test_unknown_energy_is_on_no_book(self, ledger: Ledger, make_unavailable) -> None:
        before = rows(ledger, entries)
        (stored,) = settle(ledger, make_unavailable(1))
        assert receipt_from_signed_bytes(stored.signed_bytes).energy.total_joules is None
        assert rows(ledger, entries) == before

    def test_an_aborted_request_has_its_receipt(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1, outcome="aborted"))
        assert stored.seq == 1
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS

    def test_a_failed_attempt_is_the_meshs_cost_and_no_receipt(self, ledger: Ledger, make_settlement) -> None:
        failed = make_settlement(1, outcome="failed")
        assert ledger.settle([failed, failed]) == [None, None]
        assert ledger.settle([failed]) == [None]
        assert book(ledger, "microjoules") == {"meter": -310_000, "overhead": 310_000}
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS
        (stored,) = settle(ledger, make_settlement(1))
        assert stored.seq == 1
        late = make_settlement(1, outcome="failed", duration_ns=5)
        assert ledger.settle([failed, late]) == [stored, stored]
        assert book(ledger, "microjoules") == {"meter": -930_000, "overhead": 620_000, "customer:acme": 310_000}
        assert len(rows(ledger, failed_attempts)) == 2

    def test_a_failed_attempts_statement_is_kept(self, ledger: Ledger, make_settlement) -> None:
        failed = make_settlement(1, outcome="failed")
        ledger.settle([failed, make_settlement(1)])
        columns = failed_attempts.c.statement, failed_attempts.c.statement_signature
        assert rows(ledger, *columns) == [(failed.statement.statement, failed.statement.signature)]

    @pytest.mark.parametrize("outcome", ["finished", "aborted"])
    @pytest.mark.parametrize("is_one_commit", [True, False])
    def test_another_attempt_at_a_request_that_has_its_receipt_is_the_meshs_cost(
        self, ledger: Ledger, make_settlement, outcome: str, is_one_commit: bool
    ) -> None:
        """Two hosts ran it and each stated so: the first to come is charged, and no energy is in no book."""
        first = make_settlement(1, outcome="aborted")
        other = make_settlement(1, outcome=outcome, statement=make_settlement(2).statement)
        batches = [[first, other, other]] if is_one_commit else [[first], [other], [other]]
        outcomes = [each for batch in batches for each in settle(ledger, *batch)]
        assert outcomes == [outcomes[0]] * 3
        assert settle(ledger, other, first) == outcomes[:2]
        assert book(ledger, "microjoules") == {"meter": -620_000, "overhead": 310_000, "customer:acme": 310_000}
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS
        assert rows(ledger, failed_attempts.c.statement) == [(other.statement.statement,)]

    def test_without_a_statement_there_is_no_receipt(self, ledger: Ledger, make_settlement) -> None:
        """As the journal of a meter that didn't sign yet may still deliver it: an account must not wait for ever."""
        (stored,) = settle(ledger, make_settlement(1))
        for outcome in ("finished", "aborted"):
            with pytest.raises(SettlementRefused, match="without a statement of its meter") as refused:
                ledger.settle([make_settlement(2, statement=None, outcome=outcome)])
            assert refused.value.request_id == f"{2:032x}"
        assert ledger.receipt_at("acme", 2) is None
        assert ledger.settle([make_settlement(1, statement=None)]) == [stored], "what is settled stays settled"
        assert ledger.settle([make_settlement(3, statement=None, outcome="failed")]) == [None], "nothing waits for it"
        assert rows(ledger, failed_attempts.c.statement, failed_attempts.c.energy_microjoules) == [(None, 310_000)]

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"account": "nobody"}, "there is no account 'nobody'"),
            ({"context": b"{}"}, "not a request's context"),
            ({"start_unix_ns": 2**63}, "execution.start_unix_ns"),
            ({"receipt_id": f"rcpt_{9:032x}"}, "its context is that of rcpt_"),
            ({"receipt_id": f"rcpt_{9:032x}", "outcome": "failed"}, "its context is that of rcpt_"),
            ({"outcome": "failed", "energy": dataclasses.replace(NO_ENERGY, total_microjoules=2**63)}, "its energy"),
            ({"outcome": "failed", "energy": dataclasses.replace(NO_ENERGY, total_microjoules=-1)}, "its energy"),
            ({"outcome": "failed", "energy": dataclasses.replace(NO_ENERGY, total_microjoules=1.5)}, "its energy"),
            ({"outcome": "failed", "energy": dataclasses.replace(NO_ENERGY, total_microjoules=True)}, "its energy"),
            ({"statement": SignedStatement(statement="\0", signature="ab" * 64)}, "statement is not text"),
            ({"statement": SignedStatement(statement="\ud800", signature="ab" * 64)}, "statement is not text"),
            ({"statement": SignedStatement(statement="{}", signature="ab" * 65)}, "statement is not text"),
            ({"statement": SignedStatement(statement="{}", signature="\0")}, "statement is not text"),
        ],
    )
    def test_a_settlement_that_cannot_be_stored_is_named_and_stores_nothing(
        self, ledger: Ledger, make_settlement, wrong: dict, says: str
    ) -> None:
        before = rows(ledger, entries)
        with pytest.raises(SettlementRefused, match=says) as refused:
            ledger.settle([make_settlement(1), make_settlement(2, **wrong)])
        assert refused.value.request_id == f"{2:032x}"
        assert ledger.receipt(f"rcpt_{1:032x}", "acme") is None
        assert rows(ledger, entries) == before
        assert settle(ledger, make_settlement(1))[0].seq == 1

    def test_a_receipt_that_nobody_could_read_is_not_made(
        self, ledger: Ledger, make_settlement, make_placement
    ) -> None:
        """Its context just fits into a document; the receipt has more members, and no signer would take it."""
        pool = "SmolLM2-135M-Instruct@this-machine/local"
        residency = ("local", *("\N{SNOWMAN}" * 256,) * 31)
        pins = Pins(model=None, region=None, residency=residency, operators=("this-machine", *residency[1:]))
        attempts = (Attempt(pool="p" * 256, outcome="o" * 256, energy_microjoules=None),) * 28
        whole = make_settlement(1, placement=make_placement(pool, pins=pins), attempts=attempts)
        assert MAX_BYTES - 1500 < len(whole.context) <= MAX_BYTES
        with pytest.raises(SettlementRefused, match=r"its receipt has 6[56]\d{3} bytes"):
            ledger.settle([whole])

    def test_a_request_is_of_one_account(self, ledger: Ledger, make_settlement) -> None:
        settle(ledger, make_settlement(1))
        with pytest.raises(SettlementRefused, match="another account has a receipt of that id"):
            ledger.settle([make_settlement(1, "other")])

    def test_nothing_is_settled_by_nobody(self, ledger: Ledger) -> None:
        assert ledger.settle([]) == []


@given(
    batches=st.lists(
        st.lists(
            st.tuples(st.integers(1, 12), st.sampled_from(["finished", "aborted", "failed"])), min_size=1, max_size=6
        ),
        max_size=8,
    )
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_how_often_it_may_the_books_balance_and_chains_have_no_gap(
    ledger_url: str, make_settlement, batches: list[list[tuple[int, str]]]
) -> None:
    """Each example has accounts and requests of its own, in the same ledger."""
    with closing(opened(ledger_url)) as ledger:
        check_books_and_chains(ledger, make_settlement, batches)


def check_books_and_chains(ledger: Ledger, make_settlement, batches: list[list[tuple[int, str]]]) -> None:
    example = len(rows(ledger, accounts))
    names = f"a{example}", f"b{example}"
    for account in names:
        ledger.create_key(account, "")
    booked_before = len(rows(ledger, failed_attempts))
    served: dict[int, StoredReceipt] = {}
    for batch in batches:
        offered = [
            make_settlement(1000 * example + number, names[number % 2], outcome=outcome) for number, outcome in batch
        ]
        for (number, outcome), stored in zip(batch, ledger.settle(offered), strict=True):
            assert stored is None or served.setdefault(number, stored) == stored
            assert (stored is None) <= (outcome == "failed")
    assert imbalance(ledger) == []
    for account in names:
        chain = [each for number, each in served.items() if names[number % 2] == account]
        assert sorted(each.seq for each in chain) == list(range(1, len(chain) + 1))
        assert ledger.balance_usd_picos(account) == OPENING_CREDIT_USD_PICOS - len(chain) * CHARGE_USD_PICOS
        hashes = {each.seq: hashlib.sha256(each.signed_bytes).hexdigest() for each in chain}
        for each in chain:
            assert receipt_from_signed_bytes(each.signed_bytes).chain.prev_sha256 == hashes.get(each.seq - 1)
    failures = {number for batch in batches for number, outcome in batch if outcome == "failed"}
    assert len(rows(ledger, failed_attempts)) - booked_before == len(failures)


class TestSignatures:
    def test_receipts_wait_for_their_signature_in_order(self, ledger: Ledger, make_settlement) -> None:
        stored = settle(ledger, *(make_settlement(n, "acme" if n % 3 else "other") for n in range(1, 8)))
        assert ledger.unsigned(100) == stored
        assert ledger.unsigned(3) == stored[:3]
        assert ledger.unsigned(100, excluding=["other"]) == [each for each in stored if each.account == "acme"]
        assert len(ledger.waiting()) == 7
        ledger.attach_signatures({stored[1].receipt_id: bytes(64), stored[4].receipt_id: bytes(64)})
        assert ledger.unsigned(100) == [stored[n] for n in (0, 2, 3, 5, 6)]
        assert len(ledger.waiting()) == 5

    def test_the_first_signature_stays(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1))
        ledger.attach_signatures({stored.receipt_id: b"\x01" * 64})
        ledger.attach_signatures({stored.receipt_id: b"\x02" * 64, "rcpt_unknown": b"\x03" * 64})
        ledger.attach_signatures({})
        found = ledger.receipt(stored.receipt_id, "acme")
        assert found is not None
        assert found.signature == b"\x01" * 64

    def test_a_receipt_is_read_by_its_account_only(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1))
        assert ledger.receipt(stored.receipt_id, "acme") == stored
        assert ledger.receipt(stored.receipt_id, "other") is None
        for asked in ("rcpt_none", "", "\0", "\ud800", stored.receipt_id + "\n"):
            assert ledger.receipt(asked, "acme") is None
        assert ledger.receipt_at("acme", 1) == stored
        assert ledger.receipt_at("acme", 2) is None

    def test_what_is_served_verifies(self, group, ledger_url: str, make_settlement, tmp_path: Path) -> None:
        ledger = opened(ledger_url, group.key_id)
        ledger.create_key("acme", "")
        stored = settle(ledger, *(make_settlement(n) for n in range(1, 5)))
        pending = document_from(parse_strict(stored[0].document_bytes()))
        assert pending.verification.signature is None
        ledger.attach_signatures({each.receipt_id: group.sign(each.signed_bytes) for each in stored})
        served = [ledger.receipt(each.receipt_id, "acme") for each in stored]
        export = tmp_path / "r.ndjson"
        export.write_bytes(b"".join(each.document_bytes() + b"\n" for each in served if each is not None))
        report = verify_paths([export], group.public_key)
        assert list(report) == []
        assert report.passed == 4
        ledger.close()


def test_a_balance_past_64_bits_is_exact(ledger: Ledger) -> None:
    """SQLite's own SUM raises there, and others go on in floating point."""
    amounts = [2**62 + 7, 2**62 + 7, 2**62 + 7, -(2**62) + 1, -3]
    with ledger._database.transaction() as connection:
        for number, amount in enumerate(amounts):
            connection.execute(
                entries.insert().values(
                    transaction_id=f"t{number}",
                    unit="usd_picos",
                    book_account="customer:whale",
                    amount=amount,
                    created_unix_ns=0,
                )
            )
    assert ledger.balance_usd_picos("whale") == sum(amounts) > 2**63


def test_a_stored_receipt_is_its_document(ledger: Ledger, make_settlement) -> None:
    (stored,) = settle(ledger, make_settlement(1))
    document = json.loads(stored.document_bytes())
    assert document["verification"]["signature"] is None
    signed = StoredReceipt(
        **{name: getattr(stored, name) for name in ("receipt_id", "account", "seq", "signed_bytes")},
        signature=b"\xab" * 64,
        statement=None,
    )
    assert json.loads(signed.document_bytes())["verification"]["signature"] == "ab" * 64


def test_what_receipts_are_found_by_is_beside_them(ledger: Ledger, make_settlement) -> None:
    settle(ledger, make_settlement(1), make_settlement(2, customer_tag="büro 7", model="other", region="eu"))
    found_by = receipts.c.end_unix_ns, receipts.c.model, receipts.c.region, receipts.c.customer_tag
    documents = [receipt_from_signed_bytes(signed) for (signed,) in rows(ledger, receipts.c.signed_bytes)]
    assert rows(ledger, *found_by) == [
        (each.execution.end_unix_ns, each.workload.model, each.silicon.region, each.workload.customer_tag)
        for each in documents
    ]
    assert [row[1:] for row in rows(ledger, *found_by)] == [
        ("SmolLM2-135M-Instruct", "local", None),
        ("other", "eu", "büro 7"),
    ]


class TestKnownBalance:
    def test_it_is_known_once_it_was_read_and_kept_by_every_commit(
        self, ledger: Ledger, make_settlement, make_unavailable
    ) -> None:
        assert ledger.cached_balance_usd_picos("acme") is None
        read = ledger.balance_usd_picos("acme")
        changes = (
            lambda: ledger.settle([make_settlement(1), make_settlement(2, "other"), make_settlement(3)]),
            lambda: ledger.settle([make_settlement(1), make_settlement(4, outcome="failed"), make_unavailable(5)]),
            lambda: ledger.settle([make_settlement(6, outcome="aborted")]),
            lambda: ledger.reverse(f"rcpt_{1:032x}", "tried out"),
            lambda: ledger.create_key("acme", "another"),
        )
        seen = [read]
        for change in changes:
            change()
            seen.append(ledger.cached_balance_usd_picos("acme"))
            assert seen[-1] == Ledger.balance_usd_picos(ledger, "acme")
        assert seen == [read - n * CHARGE_USD_PICOS for n in (0, 2, 2, 3, 2, 2)]
        assert ledger.cached_balance_usd_picos("other") is None

    def test_an_account_that_was_read_before_it_existed(self, ledger: Ledger) -> None:
        assert ledger.balance_usd_picos("new") == 0
        ledger.create_key("new", "")
        assert ledger.cached_balance_usd_picos("new") == OPENING_CREDIT_USD_PICOS

    def test_a_refused_settlement_changes_none(self, ledger: Ledger, make_settlement) -> None:
        read = ledger.balance_usd_picos("acme")
        with pytest.raises(SettlementRefused):
            ledger.settle([make_settlement(1), make_settlement(2, "nobody")])
        assert ledger.cached_balance_usd_picos("acme") == read

    @pytest.mark.parametrize("transaction_id", ["nothing", f"rcpt_{1:032x}"])
    def test_a_mistyped_or_second_correction_changes_none(
        self, ledger: Ledger, make_settlement, transaction_id: str
    ) -> None:
        ledger.reverse(settle(ledger, make_settlement(1))[0].receipt_id, "because")
        read = ledger.balance_usd_picos("acme")
        with pytest.raises(LedgerError, match=r"no transaction|reversed already"):
            ledger.reverse(transaction_id, "because")
        assert ledger.cached_balance_usd_picos("acme") == read

    def test_after_the_database_failed_none_is_known(self, ledger: Ledger) -> None:
        ledger.balance_usd_picos("acme")
        with pytest.raises((LedgerUnavailable, LedgerUnusable)), ledger._transaction() as connection:
            connection.execute(text("SELECT nothing"))
        assert ledger.cached_balance_usd_picos("acme") is None

    def test_another_thread_reads_it_while_the_writer_writes(self, ledger: Ledger, make_settlement) -> None:
        read = ledger.balance_usd_picos("acme")
        allowed = {read - n * CHARGE_USD_PICOS for n in range(31)}
        seen: set[int | None] = set()
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.0005):
                seen.add(ledger.cached_balance_usd_picos("acme"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(1, 31):
            ledger.settle([make_settlement(number)])
        done.set()
        watcher.join()
        assert seen <= allowed


class TestReversal:
    def test_it_mirrors_what_it_reverses_in_both_books(self, ledger: Ledger, make_settlement) -> None:
        before = book(ledger, "microjoules"), book(ledger, "usd_picos")
        stored, _ = settle(ledger, make_settlement(1), make_settlement(2, "other"))
        undone = ledger.reverse(stored.receipt_id, "the answer was cut off")
        what = entries.c.unit, entries.c.book_account, entries.c.amount
        mine = {row[1:] for row in rows(ledger, entries.c.transaction_id, *what) if row[0] == undone}
        assert mine == {
            (unit, account, -amount)
            for transaction, unit, account, amount in rows(ledger, entries.c.transaction_id, *what)
            if transaction == stored.receipt_id
        }
        assert len(mine) == 4
        assert imbalance(ledger) == []
        assert ledger.balance_usd_picos("acme") == before[1]["customer:acme"]
        assert rows(ledger, reversals) == [(undone, stored.receipt_id, "the answer was cut off", NOW_NS)]
        assert ledger.receipt(stored.receipt_id, "acme") == stored, "the receipt stays"
        assert settle(ledger, make_settlement(3))[0].seq == 2

    def test_once_only_and_that_may_be_reversed_too(self, ledger: Ledger, make_settlement) -> None:
        (stored,) = settle(ledger, make_settlement(1))
        undone = ledger.reverse(stored.receipt_id, "wrong")
        before = rows(ledger, entries)
        with pytest.raises(LedgerError, match=f"{stored.receipt_id} is reversed already, by {undone}"):
            ledger.reverse(stored.receipt_id, "wrong")
        assert rows(ledger, entries) == before
        again = ledger.reverse(undone, "was right")
        assert again != undone
        assert ledger.balance_usd_picos("acme") == OPENING_CREDIT_USD_PICOS - CHARGE_USD_PICOS
        with pytest.raises(LedgerError, match="is reversed already"):
            ledger.reverse(stored.receipt_id, "wrong after all")

    @pytest.mark.parametrize("unknown", ["", "rcpt_none", "x" * 500, "\0", "\ud800", "\u202e"])
    def test_what_is_not_there_is_not_reversed(self, ledger: Ledger, unknown: str) -> None:
        with pytest.raises(LedgerError, match="the books have no transaction"):
            ledger.reverse(unknown, "because")
        assert rows(ledger, reversals) == []

    @pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 257, "\0"])
    def test_it_needs_a_reason(self, ledger: Ledger, make_settlement, reason: str) -> None:
        (stored,) = settle(ledger, make_settlement(1))
        with pytest.raises(LedgerError, match="the reason for a reversal is a line of"):
            ledger.reverse(stored.receipt_id, reason)
        assert rows(ledger, reversals) == []

    def test_a_receipt_that_was_free_has_nothing_to_reverse(self, ledger: Ledger, make_unavailable) -> None:
        (stored,) = settle(ledger, make_unavailable(1))
        with pytest.raises(LedgerError, match="the books have no transaction"):
            ledger.reverse(stored.receipt_id, "because")
