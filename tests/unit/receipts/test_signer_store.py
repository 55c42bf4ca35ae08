"""Marks: a signer vouches for one receipt per place in an account's chain, and never forgets which."""

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.signer_messages import HeadWanted, Refusal, ShareRefused
from receipts.signer_store import (
    _FIRST_SCHEMA,
    ChainClaim,
    HeadClaim,
    Mark,
    MarkStore,
    StatementNumber,
    judge,
    judge_head,
)
from receipts.signing_errors import ShareUnusable, SigningError

KEY = bytes(32)


def digest(account: str, seq: int, version: str = "a") -> bytes:
    return hashlib.sha256(f"{account}/{seq}/{version}".encode()).digest()


def claim(seq: int, *, account: str = "acme", version: str = "a", prev_version: str = "a") -> ChainClaim:
    previous = None if seq == 1 else digest(account, seq - 1, prev_version)
    return ChainClaim(account=account, seq=seq, prev_sha256=previous, sha256=digest(account, seq, version))


def reasons(outcomes: list[ShareRefused | None]) -> list[Refusal | None]:
    return [None if each is None else each.reason for each in outcomes]


def stated(seq: int, sequence: int, *, meter: int = 1, **which: str) -> ChainClaim:
    """A claim that rests on a meter's statement."""
    return replace(claim(seq, **which), stated=StatementNumber(meter=bytes([meter]) * 32, sequence=sequence))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "marks.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[MarkStore]:
    store = MarkStore.open(path, public_key=KEY)
    yield store
    store.close()


def test_a_chain_is_followed_within_and_across_batches(store: MarkStore) -> None:
    assert store.admit([claim(1), claim(1, account="other"), claim(2)]) == [None, None, None]
    assert store.admit([claim(3), claim(4)]) == [None, None]
    assert store.mark("acme") == Mark(seq=4, sha256=digest("acme", 4))
    assert store.mark("other") == Mark(seq=1, sha256=digest("other", 1))
    assert store.mark("nobody") is None


def test_the_very_same_receipt_may_be_signed_again_at_any_place(store: MarkStore) -> None:
    chain = [claim(seq) for seq in range(1, 6)]
    store.admit(chain)
    assert store.admit(chain) == [None] * 5
    assert store.admit([claim(2)]) == [None]
    assert store.mark("acme") == Mark(seq=5, sha256=digest("acme", 5))


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_a_different_receipt_in_a_place_that_was_vouched_for_is_refused(store: MarkStore, seq: int) -> None:
    store.admit([claim(1), claim(2), claim(3)])
    assert reasons(store.admit([claim(seq, version="b")])) == [Refusal.CHAIN]
    assert store.mark("acme") == Mark(seq=3, sha256=digest("acme", 3))


def test_a_receipt_must_follow_the_mark(store: MarkStore) -> None:
    store.admit([claim(1)])
    assert reasons(store.admit([claim(2, prev_version="b")])) == [Refusal.CHAIN]
    second_first = ChainClaim(account="acme", seq=2, prev_sha256=None, sha256=digest("acme", 2))
    assert reasons(store.admit([second_first])) == [Refusal.CHAIN]


def test_a_fork_within_one_batch_is_refused(store: MarkStore) -> None:
    assert reasons(store.admit([claim(1), claim(1, version="b")])) == [None, Refusal.CHAIN]


def test_a_signer_that_is_behind_says_what_it_wants_and_the_rest_of_the_account_waits(store: MarkStore) -> None:
    store.admit([claim(1)])
    outcomes = store.admit([claim(5), claim(1, account="other"), claim(6), claim(7)])
    assert reasons(outcomes) == [Refusal.BEHIND, None, Refusal.WAITING, Refusal.WAITING]
    behind, waiting = outcomes[0], outcomes[2]
    assert behind is not None
    assert behind.head_wanted == HeadWanted(account="acme", seq=4, sha256=digest("acme", 4))
    assert waiting is not None
    assert waiting.waits_for == 0


def test_an_account_never_seen_starts_at_its_first_receipt_or_a_proved_head(store: MarkStore) -> None:
    assert reasons(store.admit([claim(9)])) == [Refusal.BEHIND]
    assert store.admit([claim(9)], heads=[claim(8)]) == [None]


def test_a_head_moves_a_mark_up_and_never_down(store: MarkStore) -> None:
    store.admit([claim(1)])
    assert store.admit([claim(5), claim(6)], heads=[claim(4)]) == [None, None]
    store.admit([], heads=[claim(2), claim(3, version="b")])
    assert store.mark("acme") == Mark(seq=6, sha256=digest("acme", 6))


def test_a_place_that_was_skipped_by_a_head_is_not_vouched_for_later(store: MarkStore) -> None:
    store.admit([claim(1)])
    store.admit([], heads=[claim(4)])
    assert reasons(store.admit([claim(3)])) == [Refusal.CHAIN]


def test_a_refused_message_takes_no_place(store: MarkStore) -> None:
    assert reasons(store.admit([None, claim(1), None])) == [None, None, None]
    assert store.mark("acme") == Mark(seq=1, sha256=digest("acme", 1))


def test_a_meters_statement_bears_one_receipt_only(store: MarkStore) -> None:
    assert store.admit([stated(1, 5), stated(1, 6, account="other")]) == [None, None]
    assert store.admit([stated(1, 5)]) == [None], "the same receipt again, as often as it takes"
    outcomes = store.admit([stated(2, 5), stated(2, 7, account="other"), stated(3, 8)])
    assert reasons(outcomes) == [Refusal.CHAIN, None, Refusal.WAITING]
    assert outcomes[0] is not None
    assert outcomes[0].detail == "another receipt rests on statement 5 of the meter 0101010101010101…"
    assert store.mark("acme") == Mark(seq=1, sha256=digest("acme", 1))


def test_a_statement_is_taken_within_one_batch_too_and_by_meter(store: MarkStore) -> None:
    outcomes = store.admit([stated(1, 5), stated(1, 5, account="b"), stated(1, 5, account="c", meter=2)])
    assert reasons(outcomes) == [None, Refusal.CHAIN, None]


def test_a_refused_receipt_takes_no_statement(store: MarkStore) -> None:
    assert reasons(store.admit([stated(9, 5)])) == [Refusal.BEHIND]
    assert store.admit([stated(1, 5, account="other")]) == [None]


def test_statements_may_come_in_any_order_and_are_never_forgotten(path: Path) -> None:
    store = MarkStore.open(path, public_key=KEY, window=3)
    numbers = [2**63 - 1, *range(100, 90, -1)]
    assert store.admit([stated(seq, number) for seq, number in enumerate(numbers, start=1)]) == [None] * 11
    store.close()
    again = MarkStore.open(path, public_key=KEY, window=3)
    for number in numbers:
        assert reasons(again.admit([stated(1, number, account=f"b{number}")])) == [Refusal.CHAIN]
    again.close()


def test_the_marks_of_a_signer_from_before_statements_go_on(path: Path) -> None:
    old = sqlite3.connect(path)
    for statement in _FIRST_SCHEMA:
        old.execute(statement)
    old.execute("INSERT INTO bound_to VALUES (?)", (KEY,))
    old.execute("INSERT INTO account VALUES (1, 'acme', 1, ?)", (digest("acme", 1),))
    old.execute("INSERT INTO vouched VALUES (1, 1, ?)", (digest("acme", 1),))
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    store = MarkStore.open(path, public_key=KEY)
    assert reasons(store.admit([stated(1, 5, version="b")])) == [Refusal.CHAIN]
    assert store.admit([stated(1, 5), stated(2, 6)]) == [None, None]
    store.close()
    MarkStore.open(path, public_key=KEY).close()


def test_marks_outlive_the_process(path: Path) -> None:
    store = MarkStore.open(path, public_key=KEY)
    store.admit([claim(1), claim(2)])
    store.close()
    again = MarkStore.open(path, public_key=KEY)
    assert reasons(again.admit([claim(2, version="b")])) == [Refusal.CHAIN]
    assert again.admit([claim(3)]) == [None]
    again.close()


def test_a_mark_is_committed_when_admit_returns(store: MarkStore, path: Path) -> None:
    """Another connection sees it: nothing waits for a later commit."""
    store.admit([claim(1)])
    other = sqlite3.connect(path)
    assert other.execute("SELECT name, seq FROM account").fetchall() == [("acme", 1)]
    other.close()


def test_each_commit_is_synced(store: MarkStore) -> None:
    """A power cut cannot be had in a unit test; the setting that survives one can be read back."""
    (synchronous,) = store._connection.execute("PRAGMA synchronous").fetchone()
    assert synchronous == 2  # FULL


def test_a_batch_that_cannot_be_written_changes_nothing(store: MarkStore, path: Path) -> None:
    store.admit([claim(1)])
    blocker = sqlite3.connect(path)
    blocker.executescript(
        "CREATE TRIGGER full BEFORE INSERT ON vouched WHEN new.seq = 3 BEGIN SELECT RAISE(ABORT, 'disk full'); END;"
    )
    with pytest.raises(SigningError, match="disk full"):
        store.admit([claim(2), claim(3)])
    assert store.mark("acme") == Mark(seq=1, sha256=digest("acme", 1))
    blocker.executescript("DROP TRIGGER full")
    blocker.close()
    assert store.admit([claim(2), claim(3)]) == [None, None]


def test_the_window_bounds_what_is_remembered(path: Path) -> None:
    store = MarkStore.open(path, public_key=KEY, window=3)
    store.admit([claim(seq) for seq in range(1, 11)])
    assert store.admit([claim(8), claim(9), claim(10)]) == [None] * 3
    assert reasons(store.admit([claim(7)])) == [Refusal.CHAIN]
    store.close()


def test_the_store_of_another_group_or_version_or_kind_is_refused(path: Path, tmp_path: Path) -> None:
    MarkStore.open(path, public_key=KEY).close()
    with pytest.raises(ShareUnusable, match="another signing group"):
        MarkStore.open(path, public_key=bytes([1]) * 32)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ShareUnusable, match="schema version 9"):
        MarkStore.open(path, public_key=KEY)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not a database" * 100)
    with pytest.raises(ShareUnusable, match="damaged"):
        MarkStore.open(garbage, public_key=KEY)


def test_a_store_that_cannot_be_opened_now_is_not_called_damaged(path: Path, tmp_path: Path) -> None:
    MarkStore.open(path, public_key=KEY).close()
    path.rename(tmp_path / "kept")
    path.mkdir()
    for where in (path, tmp_path / "no folder" / "marks"):
        with pytest.raises(SigningError, match="cannot be opened") as raised:
            MarkStore.open(where, public_key=KEY)
        assert not isinstance(raised.value, ShareUnusable)
    path.rmdir()
    (tmp_path / "kept").rename(path)
    MarkStore.open(path, public_key=KEY).close()


def test_marks_that_cannot_be_read_are_said(store: MarkStore) -> None:
    store._connection.executescript("DROP TABLE life; DROP TABLE vouched; DROP TABLE account")
    for read in (store.counts, lambda: store.mark("acme"), lambda: store.epoch):
        with pytest.raises(SigningError, match=r"marks in .* could not be read"):
            read()


operations = st.lists(
    st.tuples(st.sampled_from(["acme", "other"]), st.integers(1, 6), st.sampled_from("ab"), st.sampled_from("ab")),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(operations, max_size=4))
def test_whatever_is_asked_one_receipt_per_place_is_vouched_for_and_chains_hold(
    batches: list[list[tuple[str, int, str, str]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = MarkStore.open(tmp_path_factory.mktemp("marks") / "m", public_key=KEY)
    admitted: dict[tuple[str, int], ChainClaim] = {}
    for batch in batches:
        claims = [
            claim(seq, account=account, version=version, prev_version=previous)
            for account, seq, version, previous in batch
        ]
        for each, refused in zip(claims, store.admit(claims), strict=True):
            if refused is None:
                first = admitted.setdefault((each.account, each.seq), each)
                assert first.sha256 == each.sha256
    store.close()
    for (account, seq), each in admitted.items():
        if seq > 1:
            assert admitted[account, seq - 1].sha256 == each.prev_sha256


def test_a_head_ends_exactly_at_the_mark() -> None:
    mark = Mark(seq=3, sha256=digest("acme", 3))

    def head(last_seq: int, version: str = "a") -> HeadClaim:
        return HeadClaim(account="acme", last_seq=last_seq, last_sha256=digest("acme", last_seq, version))

    assert judge_head(head(3), mark) is None
    cases = ((head(2), "at least 3"), (head(4), "is not proved"), (head(3, "b"), "names another receipt 3"))
    for claimed, says in cases:
        refused = judge_head(claimed, mark)
        assert refused is not None
        assert (refused.reason, says in refused.detail) == (Refusal.CHAIN, True), refused.detail
    assert judge_head(head(1), None) is not None


def test_a_head_is_judged_after_the_receipts_that_came_with_it(store: MarkStore) -> None:
    ends = HeadClaim(account="acme", last_seq=2, last_sha256=digest("acme", 2))
    assert reasons(store.admit([ends])) == [Refusal.CHAIN]
    assert store.admit([ends], heads=[claim(2)]) == [None]
    assert store.mark("acme") == Mark(seq=2, sha256=digest("acme", 2))
    assert reasons(store.admit([claim(3), ends])) == [None, Refusal.CHAIN]


def test_judging_is_pure() -> None:
    mark = Mark(seq=3, sha256=digest("acme", 3))
    assert judge(claim(4), mark, None) is None
    assert judge(claim(3), mark, digest("acme", 3)) is None
    forgotten = judge(claim(2), mark, None)
    assert forgotten is not None
    assert forgotten.reason is Refusal.CHAIN
