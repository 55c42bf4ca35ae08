"""Reading beside the writer: every receipt that was asked for once and in order, and not a row more looked at."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from past_the_ledger import tampering
from sqlalchemy import insert, update

from receipts.canonical import parse_strict
from receipts.document import document_from
from receipts.draft import Attempt
from receipts.errors import DamagedReceipt, LedgerUnavailable
from receipts.ledger import OPENING_CREDIT_USD_PICOS, Ledger
from receipts.ledger_books import transfer
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_reader import (
    LedgerLine,
    LedgerPosition,
    LedgerReader,
    entries_statement,
    last_signed_statement,
    newest_statement,
    page_statement,
    place_statement,
)
from receipts.ledger_schema import USD_PICOS, entries, receipts
from receipts.line_service import LineService
from receipts.placement_section import Pins
from receipts.receipt_query import ReceiptQuery

KEY_ID = "0123456789abcdef"
SECOND_NS = 10**9
CHARGE_USD_PICOS = 43_056
BEGAN_NS = 1_782_219_834_000_123_456


@dataclass
class Clock:
    now_ns: int = BEGAN_NS
    keys: int = field(default=0)

    def __call__(self) -> int:
        return self.now_ns

    def random(self, size: int) -> bytes:
        self.keys += 1
        return hashlib.sha256(str(self.keys).encode()).digest()[:size]


@dataclass
class Written:
    """A ledger that is being written, and its reader."""

    ledger: Ledger
    reader: LedgerReader
    clock: Clock
    make_settlement: object

    def settle(self, *numbers: int, account: str = "acme", ended_s: dict[int, int] | None = None, **changes) -> None:
        """A receipt each, a second apart unless told when (in seconds after the first); each its own commit."""
        for number in numbers:
            self.clock.now_ns += SECOND_NS
            start = BEGAN_NS + (ended_s or {}).get(number, number) * SECOND_NS
            one = self.make_settlement(number, account, start_unix_ns=start, duration_ns=0, **changes)
            self.ledger.settle([one])

    def sign(self, *numbers: int) -> None:
        self.ledger.attach_signatures({f"rcpt_{number:032x}": bytes([number % 256]) * 64 for number in numbers})

    def seqs(self, after_seq: int = 0, limit: int = 100, *, newest_first: bool = False, **wanted) -> list[int]:
        query = ReceiptQuery(**{"account": "acme", **wanted})
        page = self.reader.page_lines(query, after_seq=after_seq, limit=limit, newest_first=newest_first)
        return [json.loads(line)["chain"]["seq"] for line in page.lines.splitlines()]

    def walk(self, query: ReceiptQuery, limit: int, *, newest_first: bool) -> list[int]:
        """The whole query by pages of lines, as the ingress walks it."""
        seqs: list[int] = []
        after_seq = 0
        while True:
            page = self.reader.page_lines(query, after_seq=after_seq, limit=limit, newest_first=newest_first)
            taken = [json.loads(line)["chain"]["seq"] for line in page.lines.splitlines()]
            assert len(taken) <= limit
            seqs += taken
            if page.next_after_seq is None:
                return seqs
            is_walk_along_an_index = query.model is None and query.region is None
            assert len(taken) == limit or not is_walk_along_an_index
            after_seq = page.next_after_seq
            query = dataclasses.replace(query, first_seq=page.first_seq, last_seq=page.last_seq)

    def lines(self, account: str = "acme", *, since_unix_ns: int = 0, limit: int = 100) -> list[LedgerLine]:
        position: LedgerPosition | None = LedgerPosition(since_unix_ns=since_unix_ns)
        lines: list[LedgerLine] = []
        while position is not None:
            page = self.reader.entries_page(account, position, limit)
            assert len(page.lines) <= limit
            lines += page.lines
            position = page.next
        return lines


@pytest.fixture
def written(ledger_url: str, make_settlement) -> Iterator[Written]:
    clock = Clock()
    ledger = Ledger.open(ledger_url, wall_clock_ns=clock, random_bytes=clock.random, key_id=KEY_ID)
    ledger.create_key("acme", "test")
    ledger.create_key("other", "test")
    reader = LedgerReader.open(ledger_url)
    yield Written(ledger, reader, clock, make_settlement)
    reader.close()
    ledger.close()


class TestPages:
    def test_a_walk_takes_each_receipt_once_in_either_order(self, written: Written) -> None:
        written.settle(*range(1, 8))
        written.settle(*range(100, 104), account="other")
        assert written.seqs() == [1, 2, 3, 4, 5, 6, 7]
        assert written.seqs(newest_first=True) == [7, 6, 5, 4, 3, 2, 1]
        assert written.seqs(2, 3) == [3, 4, 5]
        assert written.seqs(5, 3, newest_first=True) == [4, 3, 2]
        assert written.seqs(7) == []
        assert written.seqs(account="nobody") == []

    def test_what_it_gives_is_what_the_ledger_has(self, written: Written) -> None:
        written.settle(1, 2)
        written.sign(1)
        stored = [written.ledger.receipt_at("acme", seq) for seq in (1, 2)]
        page = written.reader.page_lines(ReceiptQuery(account="acme"), after_seq=0, limit=5)
        assert page.lines == b"".join(each.document_bytes() + b"\n" for each in stored)
        signed, pending = (document_from(parse_strict(line)) for line in page.lines.splitlines())
        assert signed.verification.signature == "01" * 64
        assert pending.verification.signature is None

    def test_what_is_stored_meanwhile_is_read_next(self, written: Written) -> None:
        assert written.seqs() == []
        written.settle(1)
        assert written.seqs() == [1]

    def test_every_filter_selects_and_all_hold_at_once(self, written: Written) -> None:
        written.settle(1, 2)
        written.settle(3, 4, customer_tag="blue")
        written.settle(5, customer_tag="blue", model="large")
        written.settle(6, region="north", customer_tag="Blue")
        assert written.seqs(customer_tag="blue") == [3, 4, 5]
        assert written.seqs(model="large") == [5]
        assert written.seqs(region="north") == [6]
        assert written.seqs(customer_tag="blue", model="SmolLM2-135M-Instruct") == [3, 4]
        assert written.seqs(first_seq=2, last_seq=4) == [2, 3, 4]
        assert written.seqs(customer_tag="blue", last_seq=3) == [3]
        assert written.seqs(customer_tag="' OR 1=1 --") == []
        assert written.seqs(customer_tag="blue", account="other") == []

    def test_since_is_in_and_until_is_not(self, written: Written) -> None:
        written.settle(1, 2, 3, 4)
        at = [BEGAN_NS + number * SECOND_NS for number in range(6)]
        assert written.seqs(since_unix_ns=at[2], until_unix_ns=at[4]) == [2, 3]
        assert written.seqs(since_unix_ns=at[2] + 1) == [3, 4]
        assert written.seqs(since_unix_ns=at[5]) == []
        assert written.seqs(until_unix_ns=at[1]) == []
        assert written.seqs(since_unix_ns=at[5], newest_first=True) == []
        assert written.seqs(until_unix_ns=at[1], newest_first=True) == []

    def test_the_end_counts_even_where_receipts_were_stored_in_another_order(self, written: Written) -> None:
        written.settle(1, 2, 3, 4, 5, ended_s={1: 10, 2: 50, 3: 20, 4: 60, 5: 30})
        wanted = {"since_unix_ns": BEGAN_NS + 30 * SECOND_NS, "until_unix_ns": BEGAN_NS + 60 * SECOND_NS}
        assert written.seqs(**wanted) == [2, 5]
        assert written.seqs(**wanted, newest_first=True) == [5, 2]
        assert written.seqs(1, 1, **wanted) == [2]

    def test_a_walk_with_a_bound_stays_within_it_while_more_are_stored(self, written: Written) -> None:
        written.settle(1, 2, 3, 4)
        until = ReceiptQuery(account="acme", until_unix_ns=BEGAN_NS + 4 * SECOND_NS)
        page = written.reader.page_lines(until, after_seq=0, limit=2)
        assert (page.next_after_seq, page.last_seq) == (2, 3)
        assert written.walk(until, 1, newest_first=False) == [1, 2, 3]

    def test_the_last_page_says_so_even_when_it_is_full(self, written: Written) -> None:
        written.settle(1, 2)
        assert written.reader.page_lines(ReceiptQuery(account="acme"), after_seq=0, limit=2).next_after_seq is None
        assert written.reader.page_lines(ReceiptQuery(account="acme"), after_seq=0, limit=1).next_after_seq == 1


@pytest.fixture(scope="module")
def scattered(tmp_path_factory, make_settlement) -> Iterator[Written]:
    """Forty receipts that ended in no order, of two tags and two models; on SQLite."""
    clock = Clock()
    url = f"sqlite:///{tmp_path_factory.mktemp('scattered')}/ledger.sqlite3"
    ledger = Ledger.open(url, wall_clock_ns=clock, random_bytes=clock.random, key_id=KEY_ID)
    ledger.create_key("acme", "test")
    reader = LedgerReader(ReadingDatabase.open(url), most_looked_at=7)
    written = Written(ledger, reader, clock, make_settlement)
    for number in range(1, 41):
        tag, model = (None, "a", "b")[number % 3], ("small", "large")[number % 2]
        written.settle(number, ended_s={number: number * 17 % 41}, customer_tag=tag, model=model)
    yield written
    reader.close()
    ledger.close()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    since=st.none() | st.integers(0, 45),
    until=st.none() | st.integers(0, 45),
    tag=st.sampled_from([None, "a", "b", "c"]),
    model=st.sampled_from([None, "small"]),
    first=st.none() | st.integers(1, 45),
    last=st.none() | st.integers(1, 45),
    limit=st.integers(1, 50),
    newest_first=st.booleans(),
)
def test_a_walk_by_pages_gives_exactly_what_was_asked_for(
    scattered: Written, since, until, tag, model, first, last, limit, newest_first
) -> None:
    query = ReceiptQuery(
        account="acme",
        since_unix_ns=None if since is None else BEGAN_NS + since * SECOND_NS,
        until_unix_ns=None if until is None else BEGAN_NS + until * SECOND_NS,
        customer_tag=tag,
        model=model,
        first_seq=first,
        last_seq=last,
    )
    expected = [
        seq
        for seq in range(1, 41)
        if (since is None or seq * 17 % 41 >= since)
        and (until is None or seq * 17 % 41 < until)
        and (tag is None or (None, "a", "b")[seq % 3] == tag)
        and (model is None or ("small", "large")[seq % 2] == model)
        and (first is None or seq >= first)
        and (last is None or seq <= last)
    ]
    assert scattered.walk(query, limit, newest_first=newest_first) == (expected[::-1] if newest_first else expected)


@pytest.mark.parametrize(
    ("newest_first", "ends"), [(False, [7, 14, 21, 28, 35, None]), (True, [34, 27, 20, 13, 6, None])]
)
@pytest.mark.parametrize("wanted", [{"model": "nope"}, {"region": "nope", "customer_tag": "a"}])
def test_a_page_looks_at_so_many_receipts_and_no_more(scattered: Written, wanted, newest_first, ends) -> None:
    query, after_seq, found = ReceiptQuery(account="acme", **wanted), 0, []
    while after_seq is not None:
        page = scattered.reader.page_lines(query, after_seq=after_seq, limit=5, newest_first=newest_first)
        assert page.lines == b""
        after_seq = page.next_after_seq
        found.append(after_seq)
    assert found == ends


class TestBounds:
    def test_from_the_first_since_then_to_the_end_of_what_is_signed(self, written: Written) -> None:
        written.settle(1, 2, 3, 4, 5)
        written.settle(100, account="other")
        written.sign(1, 2, 3, 5)
        assert written.reader.first_seq_since("acme", BEGAN_NS + 2 * SECOND_NS) == 2
        first, last = written.reader.bounds("acme", 2)
        assert (first.seq, last.seq) == (2, 3)
        assert last.signature == b"\x03" * 64
        first, last = written.reader.bounds("acme", 1)
        assert (first.seq, last.seq) == (1, 3)

    def test_the_first_is_the_one_of_smallest_seq(self, written: Written) -> None:
        written.settle(1, 2, 3, ended_s={1: 50, 2: 10, 3: 60})
        assert written.reader.first_seq_since("acme", BEGAN_NS + 40 * SECOND_NS) == 1
        assert written.reader.first_seq_since("acme", BEGAN_NS + 55 * SECOND_NS) == 3
        assert written.reader.first_seq_since("acme", BEGAN_NS + 61 * SECOND_NS) is None

    def test_there_are_none_without_a_signed_receipt_since_then(self, written: Written) -> None:
        assert written.reader.bounds("acme", 1) is None
        written.settle(1, 2)
        assert written.reader.bounds("acme", 1) is None
        written.sign(2)
        assert written.reader.bounds("acme", 1) is None, "the first one is not signed"
        written.sign(1)
        assert written.reader.bounds("acme", 3) is None
        written.settle(3)
        assert written.reader.bounds("acme", 3) is None, "it is there, but not signed"
        assert written.reader.bounds("nobody", 1) is None
        assert written.reader.first_seq_since("nobody", 0) is None


class TestEntries:
    def test_a_line_for_each_transaction_with_the_balance_after_it(self, written: Written) -> None:
        written.settle(1, customer_tag="blue")
        written.settle(2)
        written.settle(3, account="other")
        opening, first, second = written.lines()
        assert (opening.kind, opening.usd_picos, opening.receipt_id) == ("opening-credit", 5 * 10**12, None)
        assert (first.kind, first.microjoules, first.usd_picos) == ("receipt", 310_000, -CHARGE_USD_PICOS)
        assert (first.receipt_id, first.model, first.region) == (f"rcpt_{1:032x}", "SmolLM2-135M-Instruct", "local")
        assert (first.customer_tag, second.customer_tag) == ("blue", None)
        assert second.balance_usd_picos == written.ledger.balance_usd_picos("acme")

    def test_a_line_says_how_its_request_was_served(self, written: Written, make_placement) -> None:
        pool = "SmolLM2-135M-Instruct@this-machine/local"
        placed = make_placement(
            pool,
            resumed_after_tokens=7,
            pins=Pins(model=None, region="DE", residency=(), operators=None),
        )
        failed = (Attempt(pool="p", outcome="timeout", energy_microjoules=None),)
        written.settle(1, placement=placed, attempts=failed)
        written.settle(2, placement=None)
        opening, first, second = written.lines()
        assert opening.service is None
        assert first.service == LineService(
            retries=1, pool=pool, region_pin="DE", waited_ms=first.service.waited_ms, resumed_after_tokens=7
        )
        page = written.reader.page_lines(ReceiptQuery(account="acme"), after_seq=0, limit=1)
        assert first.service.waited_ms == json.loads(page.lines)["placement"]["waited_ms"] > 0
        assert second.service == LineService(
            retries=0, pool=None, region_pin=None, waited_ms=None, resumed_after_tokens=None
        )

    @pytest.mark.parametrize("damaged", [b"{}", b"[]", b"no JSON", b'{"execution":{"retries":0},"placement":1}'])
    def test_a_line_about_a_damaged_receipt_is_refused_with_its_place(
        self, written: Written, ledger_url: str, damaged: bytes
    ) -> None:
        written.settle(1)
        with tampering(ledger_url) as connection:
            connection.execute(update(receipts).values(signed_bytes=damaged))
        with pytest.raises(DamagedReceipt, match="receipt 1 of account acme is damaged"):
            written.lines()

    def test_a_reversal_names_the_receipt_that_it_undoes(self, written: Written) -> None:
        written.settle(1, customer_tag="blue")
        written.clock.now_ns += SECOND_NS
        undone = written.ledger.reverse(f"rcpt_{1:032x}", "billed by mistake")
        *_, line = written.lines()
        assert (line.transaction_id, line.kind) == (undone, "reversal")
        assert (line.receipt_id, line.customer_tag) == (f"rcpt_{1:032x}", "blue")
        assert (line.microjoules, line.usd_picos) == (-310_000, CHARGE_USD_PICOS)
        assert line.balance_usd_picos == OPENING_CREDIT_USD_PICOS

    def test_unknown_energy_is_in_no_book(self, written: Written, make_unavailable) -> None:
        written.ledger.settle([make_unavailable(1)])
        assert [line.kind for line in written.lines()] == ["opening-credit"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
    def test_pages_end_between_transactions(self, written: Written, limit: int) -> None:
        written.ledger.settle([written.make_settlement(number) for number in range(1, 5)])  # all at one moment
        written.settle(5)
        lines = written.lines(limit=limit)
        assert len({line.transaction_id for line in lines}) == len(lines) == 6
        assert sum(line.usd_picos for line in lines) == written.ledger.balance_usd_picos("acme")
        assert lines[-1].balance_usd_picos == written.ledger.balance_usd_picos("acme")

    def test_since_then_the_balance_goes_on_from_what_was_there(self, written: Written) -> None:
        written.settle(1, 2, 3)
        whole = written.lines()
        assert written.lines(since_unix_ns=whole[2].created_unix_ns) == whole[2:]
        assert written.lines(since_unix_ns=written.clock.now_ns + 1) == []

    def test_what_is_entered_meanwhile_is_not_in_it(self, written: Written) -> None:
        written.settle(1, 2)
        page = written.reader.entries_page("acme", LedgerPosition(), 2)
        written.settle(3)
        rest = written.reader.entries_page("acme", page.next, 100)
        assert [line.receipt_id for line in rest.lines] == [f"rcpt_{2:032x}"]
        assert rest.next is None

    def test_an_entry_that_a_clock_put_behind_us_is_no_silent_hole(self, written: Written) -> None:
        written.settle(1, 2)
        page = written.reader.entries_page("acme", LedgerPosition(), 2)
        written.clock.now_ns -= 3 * SECOND_NS
        written.settle(3)
        with pytest.raises(LedgerUnavailable, match="clock went back"):
            written.reader.entries_page("acme", page.next, 100)

    def test_an_account_without_entries_has_no_lines(self, written: Written) -> None:
        assert written.lines("nobody") == []

    def test_sums_past_64_bits_are_exact(self, written: Written) -> None:
        picos = 2**62
        with written.ledger._database.transaction() as connection:
            for number in range(4):
                gift = transfer(f"gift:{number}", USD_PICOS, "gifts", "customer:acme", picos, BEGAN_NS + number)
                connection.execute(insert(entries), gift)
        *_, last = written.lines(limit=2)
        assert last.balance_usd_picos == 4 * picos + OPENING_CREDIT_USD_PICOS
        assert (last.kind, last.usd_picos) == ("other", picos)
        (one,) = written.lines(since_unix_ns=BEGAN_NS + 3)
        assert Decimal(one.balance_usd_picos) == 4 * picos + OPENING_CREDIT_USD_PICOS


class TestPlans:
    """On SQLite, whose plans don't depend on how much there is: no scan of a table, no sorting."""

    @pytest.fixture
    def plan(self, scattered: Written):
        def plan_of(statement) -> str:
            sql = str(statement.compile(compile_kwargs={"literal_binds": True}))
            with scattered.reader._database.snapshot() as connection:
                steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()
            return " | ".join(str(step[3]) for step in steps)

        return plan_of

    @pytest.mark.parametrize("newest_first", [False, True])
    @pytest.mark.parametrize(
        ("wanted", "index"),
        [
            ({}, "sqlite_autoindex_receipts"),
            ({"first_seq": 3, "last_seq": 9}, "sqlite_autoindex_receipts"),
            ({"since_unix_ns": 5, "until_unix_ns": 9, "first_seq": 1}, "sqlite_autoindex_receipts"),
            ({"model": "m", "region": "r"}, "sqlite_autoindex_receipts"),
            ({"customer_tag": "t"}, "receipts_by_tag"),
            ({"customer_tag": "t", "model": "m", "since_unix_ns": 5, "first_seq": 3}, "receipts_by_tag"),
        ],
    )
    def test_a_page_is_a_walk_along_an_index(self, plan, wanted, index, newest_first) -> None:
        query = ReceiptQuery(account="acme", **wanted)
        for after_seq in (0, 7):
            steps = plan(page_statement(query, after_seq=after_seq, limit=9, newest_first=newest_first))
            assert steps.startswith(f"SEARCH receipts USING INDEX {index}")
            assert "SCAN" not in steps
            assert "TEMP B-TREE" not in steps

    def test_places_in_time_come_from_the_index_alone(self, plan) -> None:
        for bound in ({"since_unix_ns": 5}, {"until_unix_ns": 5}):
            assert "COVERING INDEX receipts_by_end" in plan(place_statement("acme", **bound))

    def test_the_signed_prefix_is_found_among_the_unsigned(self, plan) -> None:
        steps = plan(last_signed_statement("acme"))
        assert "USING INDEX receipts_unsigned" in steps
        assert "TEMP B-TREE" not in steps

    def test_the_newest_is_found_at_the_end_of_an_index(self, plan) -> None:
        assert plan(newest_statement("acme")).startswith("SEARCH receipts USING COVERING INDEX sqlite_autoindex")

    def test_entries_are_read_in_the_order_of_their_index(self, plan) -> None:
        position = LedgerPosition(last_unix_ns=9, created_unix_ns=5, transaction_id="rcpt_1")
        steps = plan(entries_statement("acme", position, 10))
        assert "SEARCH entries USING COVERING INDEX entries_in_order (book_account=? AND created_unix_ns>" in steps
        assert "SCAN entries" not in steps
