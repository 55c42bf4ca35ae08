"""Keys: what they open, until when, and how another takes their place."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from opened_ledger import NOW_NS, opened
from past_the_ledger import direct
from sqlalchemy import text

from receipts.api_keys import MOST_LIVE_KEYS, SCOPES, NewKey, key_hash, key_id_of_hash
from receipts.budgets import Budget
from receipts.errors import LedgerError, LedgerUnusable
from receipts.ledger import Ledger

_S = 10**9


class Clock:
    now_ns = NOW_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url: str, clock: Clock) -> Iterator[Ledger]:
    ledger = opened(ledger_url, wall_clock_ns=clock)
    ledger.create_key("other", "test")
    yield ledger
    ledger.close()


def test_a_key_has_what_it_was_made_with(ledger: Ledger) -> None:
    made = ledger.create_key("acme", "ci", ["read", "inference"], NOW_NS + 5 * _S)
    found = ledger.key_of(made.secret)
    assert found == made.key
    assert (found.account, found.name, found.scopes) == ("acme", "ci", ("inference", "read"))
    assert (found.created_unix_ns, found.expires_unix_ns, found.revoked_unix_ns) == (NOW_NS, NOW_NS + 5 * _S, None)
    assert ledger.create_key("acme", "all").key.scopes == SCOPES


def test_its_id_follows_from_its_hash_and_says_nothing_of_the_secret(ledger: Ledger) -> None:
    made = ledger.create_key("acme", "")
    assert made.key.key_id == key_id_of_hash(key_hash(made.secret))
    assert made.key.key_id.removeprefix("key_") not in key_hash(made.secret).hex()


def test_a_new_keys_secret_is_not_in_what_is_printed_of_it(ledger: Ledger) -> None:
    made = ledger.create_key("acme", "")
    assert made.secret not in f"{made} {made!r}"


def test_all_is_as_it_was_when_the_ledger_is_opened_again(ledger: Ledger, ledger_url: str, clock: Clock) -> None:
    kept, revoked = ledger.create_key("acme", "kept"), ledger.create_key("acme", "revoked")
    ledger.revoke_key("acme", revoked.key.key_id)
    before = ledger.list_keys("acme")
    ledger.close()
    again = opened(ledger_url, wall_clock_ns=clock)
    assert (again.list_keys("acme"), again.key_of(kept.secret)) == (before, kept.key)
    assert again.key_of(revoked.secret) is None
    again.close()


def test_a_revoked_key_opens_nothing_and_is_listed_as_such(ledger: Ledger) -> None:
    made = ledger.create_key("acme", "")
    assert ledger.key_of(made.secret) is not None
    assert ledger.revoke_key("acme", made.key.key_id)
    assert ledger.key_of(made.secret) is None
    assert ledger.list_keys("acme") == (replace(made.key, revoked_unix_ns=NOW_NS),)
    assert not ledger.revoke_key("acme", made.key.key_id), "it was before"


def test_a_key_expires_at_its_moment(ledger: Ledger, clock: Clock) -> None:
    made = ledger.create_key("acme", "", expires_unix_ns=NOW_NS + _S)
    clock.now_ns = NOW_NS + _S - 1
    assert ledger.key_of(made.secret) == made.key
    clock.now_ns += 1
    assert ledger.key_of(made.secret) is None


@pytest.mark.parametrize("end_ns", [0, NOW_NS, 2**63])
def test_a_key_ends_at_a_moment_to_come(ledger: Ledger, end_ns: int) -> None:
    with pytest.raises(LedgerError, match="expires at a moment to come"):
        ledger.create_key("acme", "", expires_unix_ns=end_ns)


@pytest.mark.parametrize("scopes", [[], ["root"], ["read", "READ"]])
def test_scopes_are_known_ones(ledger: Ledger, scopes: list[str]) -> None:
    with pytest.raises(LedgerError, match="known are inference, read, deploy, billing-admin"):
        ledger.create_key("acme", "", scopes)
    assert ledger.list_keys("acme") == ()


class TestRotation:
    def test_both_open_the_account_until_the_overlap_is_over(self, ledger: Ledger, clock: Clock) -> None:
        old = ledger.create_key("acme", "ci", ["read"])
        new = ledger.rotate_key("acme", old.key.key_id, 60)
        assert (new.key.name, new.key.scopes, new.key.expires_unix_ns) == ("ci", ("read",), None)
        assert new.key.key_id != old.key.key_id
        clock.now_ns = NOW_NS + 60 * _S - 1
        assert ledger.key_of(old.secret).key_id == old.key.key_id
        clock.now_ns += 1
        assert ledger.key_of(old.secret) is None
        assert ledger.key_of(new.secret) == new.key

    def test_without_an_overlap_the_old_one_ends_at_once(self, ledger: Ledger) -> None:
        old = ledger.create_key("acme", "")
        ledger.rotate_key("acme", old.key.key_id, 0)
        assert ledger.key_of(old.secret) is None

    def test_an_end_that_is_nearer_stays(self, ledger: Ledger) -> None:
        old = ledger.create_key("acme", "", expires_unix_ns=NOW_NS + _S)
        new = ledger.rotate_key("acme", old.key.key_id, 60)
        assert [each.expires_unix_ns for each in ledger.list_keys("acme")] == [NOW_NS + _S] * 2
        assert new.key.expires_unix_ns == NOW_NS + _S

    def test_the_new_key_has_the_budgets_of_the_old(self, ledger: Ledger) -> None:
        old = ledger.create_key("acme", "")
        budget = Budget(account="acme", kind="key", subject=old.key.key_id, window="day", microjoules=7)
        ledger.set_budget(budget)
        new = ledger.rotate_key("acme", old.key.key_id, 60)
        assert {each.budget for each in ledger.budgets("acme")} == {budget, replace(budget, subject=new.key.key_id)}

    @pytest.mark.parametrize("overlap_s", [-1, 1e9, float("nan")])
    def test_an_overlap_has_its_bounds(self, ledger: Ledger, overlap_s: float) -> None:
        old = ledger.create_key("acme", "")
        with pytest.raises(LedgerError, match="lives on for 0 to"):
            ledger.rotate_key("acme", old.key.key_id, overlap_s)

    def test_only_a_live_key_is_rotated(self, ledger: Ledger) -> None:
        old = ledger.create_key("acme", "")
        ledger.revoke_key("acme", old.key.key_id)
        with pytest.raises(LedgerError, match="no live key"):
            ledger.rotate_key("acme", old.key.key_id, 60)


@pytest.mark.parametrize("key_id", ["", "key_0", "key_" + "0" * 16, "\0", "\ud800", "x" * 10_000])
def test_a_key_that_isnt_there_is_neither_revoked_nor_rotated(ledger: Ledger, key_id: str) -> None:
    assert not ledger.revoke_key("acme", key_id)
    with pytest.raises(LedgerError, match="no live key"):
        ledger.rotate_key("acme", key_id, 1)


def test_nobody_touches_another_accounts_keys(ledger: Ledger) -> None:
    made = ledger.create_key("acme", "")
    assert made.key not in ledger.list_keys("other")
    assert not ledger.revoke_key("other", made.key.key_id)
    with pytest.raises(LedgerError, match="no live key"):
        ledger.rotate_key("other", made.key.key_id, 1)
    assert ledger.key_of(made.secret) == made.key


def test_an_account_has_only_so_many_live_keys(ledger: Ledger, ledger_url: str) -> None:
    first = ledger.create_key("acme", "")
    with direct(ledger_url) as other:
        row = "INSERT INTO api_keys (account, name, created_unix_ns, scopes, sha256, key_id) "
        for number in range(MOST_LIVE_KEYS - 1):
            values = {"sha256": number.to_bytes(32), "key_id": f"key_{number:016x}"}
            other.execute(text(row + "VALUES ('acme', '', 1, 'read', :sha256, :key_id)"), values)
    with pytest.raises(LedgerError, match="1000 live keys"):
        ledger.create_key("acme", "")
    ledger.revoke_key("acme", first.key.key_id)
    ledger.create_key("acme", "")


def test_what_is_remembered_is_read_anew_when_the_database_failed(ledger: Ledger, ledger_url: str) -> None:
    made: NewKey = ledger.create_key("acme", "")
    assert ledger.cached_key_of(made.secret) == (False, None), "nothing was read yet"
    assert ledger.key_of(made.secret) == made.key
    assert ledger.cached_key_of(made.secret) == (True, made.key)
    with direct(ledger_url) as other:
        other.execute(text("ALTER TABLE reversals RENAME TO gone"))
    with pytest.raises(LedgerUnusable if "postgresql" in ledger_url else Exception):
        ledger.payments("acme")
    assert ledger.cached_key_of(made.secret) == (False, None)
    assert ledger.key_of(made.secret) == made.key
