"""The ledger's accounts: their keys, balances, energy budgets and payments, and what of them is remembered."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, insert, select

from receipts import ledger_payments
from receipts.api_keys import (
    SCOPES,
    ApiKey,
    NewKey,
    checked_key_name,
    checked_scopes,
    key_hash,
    key_id_of_hash,
    new_secret,
)
from receipts.budget_book import BudgetBook, check_room, insert_budget
from receipts.budgets import BUDGET_KINDS, BUDGET_WINDOWS, Budget, BudgetKind, BudgetUse, BudgetWindow
from receipts.errors import DamagedReceipt, LedgerError, SettlementRefused
from receipts.ledger_books import (
    OPENING_CREDITS,
    EntryRow,
    KnownBalances,
    balance,
    transfer,
)
from receipts.ledger_database import LedgerDatabase
from receipts.ledger_keys import LiveKeys, end_key, expire_key, find_key, insert_key, keys_of
from receipts.ledger_payments import Entered
from receipts.ledger_rows import customer_book
from receipts.ledger_schema import USD_PICOS, accounts, api_keys, entries, receipts
from receipts.members import MAX_INTEGER, AccountName, WorkloadName
from receipts.payments import CreditKind, DueRecharge, Payment, Recharge
from receipts.standing import Standing

OPENING_CREDIT_USD_PICOS: Final = 5 * 10**12
_ACCOUNT_NAME: Final[TypeAdapter[str]] = TypeAdapter(AccountName)
_WORKLOAD_NAME: Final[TypeAdapter[str]] = TypeAdapter(WorkloadName)
_NS_PER_S: Final = 10**9
_MOST_OVERLAP_S: Final = 366 * 86_400


class LedgerAccounts:
    """What the ledger knows of accounts; the `Ledger` itself adds the receipts, which are charged to them.

    Every method is one transaction, durable when it returns, and raises as a `Ledger`'s.
    """

    def __init__(
        self,
        database: LedgerDatabase,
        *,
        wall_clock_ns: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._database = database
        self._wall_clock_ns = wall_clock_ns
        self._random_bytes = random_bytes
        self._balances = KnownBalances()
        self._keys = LiveKeys()
        self._budgets = BudgetBook()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def create_key(
        self, account: str, name: str, scopes: Collection[str] = SCOPES, expires_unix_ns: int | None = None
    ) -> NewKey:
        """Make an API key; only its hash is kept, so this is the one time that its secret is seen.

        An account that does not exist is made, with the opening credit of $5.

        Raises:
            LedgerError: the account's or the key's name, a scope or the end is not allowed, or there are too many.
        """
        try:
            _ACCOUNT_NAME.validate_python(account, strict=True)
        except ValidationError as error:
            raise LedgerError(
                f"an account's name is 1 to 128 letters, digits and . _ @ - and begins with none of these: {account!r}"
            ) from error
        now_ns = self._wall_clock_ns()
        if expires_unix_ns is not None and not now_ns < expires_unix_ns <= MAX_INTEGER:
            raise LedgerError("a key expires at a moment to come")
        secret = new_secret(self._random_bytes)
        key = ApiKey(
            key_id=key_id_of_hash(key_hash(secret)),
            account=account,
            name=checked_key_name(name),
            scopes=checked_scopes(scopes),
            created_unix_ns=now_ns,
            expires_unix_ns=expires_unix_ns,
            revoked_unix_ns=None,
        )
        opening: list[EntryRow] = []
        with self._transaction() as connection:
            if connection.scalar(select(accounts.c.account).where(accounts.c.account == account)) is None:
                opening = _open_account(connection, account, now_ns)
            insert_key(connection, key_hash(secret), key)
        self._balances.entered(opening)
        self._keys.committed([(key_hash(secret), key)])
        return NewKey(key=key, secret=secret)

    def list_keys(self, account: str) -> Sequence[ApiKey]:
        """The account's keys, live or not, the newest first."""
        with self._transaction() as connection:
            return keys_of(connection, account)

    def revoke_key(self, account: str, key_id: str) -> bool:
        """Let the key open nothing from now on; False when the account has no such key, or it was revoked before."""
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            found = find_key(connection, account, key_id)
            if found is None or found[1].revoked_unix_ns is not None:
                return False
            end_key(connection, found[0], revoked_unix_ns=now_ns)
        self._keys.committed([(found[0], replace(found[1], revoked_unix_ns=now_ns))])
        return True

    def rotate_key(self, account: str, key_id: str, overlap_s: float) -> NewKey:
        """Make a key that takes another's place, with its name, scopes, end and budgets; that one ends after
        ``overlap_s``, or by itself before.

        Of a budget the new key has drawn nothing yet.

        Raises:
            LedgerError: the account has no such live key, or the time is less than nothing or more than a year.
        """
        if not 0 <= overlap_s <= _MOST_OVERLAP_S:
            raise LedgerError(f"a rotated key lives on for 0 to {_MOST_OVERLAP_S} seconds")
        now_ns = self._wall_clock_ns()
        secret = new_secret(self._random_bytes)
        with self._transaction() as connection:
            found = find_key(connection, account, key_id)
            if found is None or not found[1].is_live(now_ns):
                raise LedgerError(f"the account has no live key {key_id[:64]!r}")
            old_sha256, old = found
            end_ns = now_ns + round(overlap_s * _NS_PER_S)
            end_ns = end_ns if old.expires_unix_ns is None else min(end_ns, old.expires_unix_ns)
            new = replace(old, key_id=key_id_of_hash(key_hash(secret)), created_unix_ns=now_ns)
            expire_key(connection, old_sha256, expires_unix_ns=end_ns)
            insert_key(connection, key_hash(secret), new)
            self._budgets.read_budgets(connection)
            known = self._budgets.of_account(account)
            moved = [
                replace(each, subject=new.key_id) for each in known if (each.kind, each.subject) == ("key", key_id)
            ]
            for budget in moved:
                insert_budget(connection, budget, now_ns)
        self._keys.committed([(old_sha256, replace(old, expires_unix_ns=end_ns)), (key_hash(secret), new)])
        for budget in moved:
            self._budgets.entered(budget)
        return NewKey(key=new, secret=secret)

    def key_of(self, secret: str) -> ApiKey | None:
        """The key of that secret; None when there is none, or it was revoked or expired."""
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            self._keys.read(connection, now_ns)
        return self._keys.look_up(key_hash(secret), now_ns)[1]

    def cached_key_of(self, secret: str) -> tuple[bool, ApiKey | None]:
        """Whether it is known without I/O, from any thread, and the key as `key_of` gives it."""
        return self._keys.look_up(key_hash(secret), self._wall_clock_ns())

    def standing(self, account: str, key_sha256: bytes, api_key_id: str, workload: str | None) -> Standing:
        """Whether a request may come in by what the ledger knows; read where it isn't remembered.

        Balances as `balance_usd_picos`; what was drawn of a budget takes about as long, when it is first asked for.
        """
        now_ns = self._wall_clock_ns()
        left = self._balances.of(account)
        with self._transaction() as connection:
            self._keys.read(connection, now_ns)
            self._budgets.read(connection, account, api_key_id, workload, now_ns)
            if left is None:
                left = balance(connection, customer_book(account), USD_PICOS)
        self._balances.set(account, left)
        standing = self.cached_standing(account, key_sha256, api_key_id, workload)
        assert standing is not None, "all of it was just read"
        return standing

    def cached_standing(
        self, account: str, key_sha256: bytes, api_key_id: str, workload: str | None
    ) -> Standing | None:
        """The same without I/O, from any thread; None where something isn't remembered."""
        now_ns = self._wall_clock_ns()
        left = self._balances.of(account)
        keys_are_known, key = self._keys.look_up(key_sha256, now_ns)
        budgets_are_known, overdrawn = self._budgets.overdrawn(account, api_key_id, workload, now_ns)
        if left is None or not keys_are_known or not budgets_are_known:
            return None
        return Standing(
            balance_usd_picos=left,
            has_live_key=key is not None and key.account == account,
            overdrawn=overdrawn,
            now_unix_ns=now_ns,
        )

    def receipt_of_repeat(self, account: str, idempotency_sha256: str) -> str | None:
        """The receipt of the account's request that came with this idempotency key; they are kept for ever."""
        query = select(receipts.c.receipt_id).where(
            receipts.c.account == account, receipts.c.idempotency_sha256 == idempotency_sha256
        )
        with self._transaction() as connection:
            receipt_id: str | None = connection.scalar(query)
        return receipt_id

    def set_budget(self, budget: Budget) -> None:
        """Let the key or workload draw so much in each such window from now on, what it has drawn in this one included.

        Raises:
            LedgerError: no such key of the account, a name or amount that isn't one, or too many budgets.
        """
        _check_budget(budget)
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            if budget.kind == "key" and find_key(connection, budget.account, budget.subject) is None:
                raise LedgerError(f"the account has no key {budget.subject[:64]!r}")
            self._budgets.read_budgets(connection)
            check_room(self._budgets.of_account(budget.account), budget)
            insert_budget(connection, budget, now_ns)
        self._budgets.entered(budget)

    def remove_budget(self, account: str, kind: BudgetKind, subject: str, window: BudgetWindow | None = None) -> bool:
        """Take the subject's budget for such windows away, or all of its; False when there is none."""
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            self._budgets.read_budgets(connection)
            removed = [
                each
                for each in self._budgets.of_account(account)
                if (each.kind, each.subject) == (kind, subject) and window in (None, each.window)
            ]
            for budget in removed:
                insert_budget(connection, budget, now_ns, is_removed=True)
        for budget in removed:
            self._budgets.removed(budget)
        return bool(removed)

    def budgets(self, account: str) -> Sequence[BudgetUse]:
        """The account's budgets, and what was drawn of each."""
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            self._budgets.read_all(connection, account, now_ns)
            return self._budgets.uses(account, now_ns)

    def top_up(self, account: str, usd_picos: int, provider: str, reference: str) -> Payment:
        """As `ledger_payments.top_up`."""
        return self._entered(
            lambda connection, now_ns: ledger_payments.top_up(
                connection, account, usd_picos, provider, reference, now_ns
            )
        )

    def credit(self, account: str, usd_picos: int, kind: CreditKind, reason: str, reference: str) -> Payment:
        """As `ledger_payments.credit`."""
        return self._entered(
            lambda connection, now_ns: ledger_payments.credit(
                connection, account, usd_picos, kind, reason, reference, now_ns
            )
        )

    def begin_refund(self, account: str, payment_id: str, usd_picos: int, reference: str | None = None) -> Payment:
        """As `ledger_payments.begin_refund`."""
        return self._entered(
            lambda connection, now_ns: ledger_payments.begin_refund(
                connection, account, payment_id, usd_picos, reference, now_ns, self._random_bytes
            )
        )

    def finish_refund(self, refund_id: str, reference: str) -> Payment:
        """As `ledger_payments.finish_refund`."""
        with self._transaction() as connection:
            return ledger_payments.finish_refund(connection, refund_id, reference)

    def cancel_refund(self, refund_id: str, reason: str) -> Payment:
        """As `ledger_payments.cancel_refund`."""
        return self._entered(
            lambda connection, now_ns: ledger_payments.cancel_refund(connection, refund_id, reason, now_ns)
        )

    def refundable_usd_picos(self, account: str, payment_id: str) -> int:
        """As `ledger_payments.refundable`."""
        with self._transaction() as connection:
            return ledger_payments.refundable(connection, account, payment_id)

    def payments(self, account: str) -> Sequence[Payment]:
        """As `ledger_payments.payments_of`."""
        with self._transaction() as connection:
            return ledger_payments.payments_of(connection, account)

    def unfinished_refunds(self) -> Sequence[Payment]:
        """As `ledger_payments.unfinished_refunds`."""
        with self._transaction() as connection:
            return ledger_payments.unfinished_refunds(connection)

    def set_recharge(self, account: str, recharge: Recharge | None) -> None:
        """As `ledger_payments.set_recharge`; None: not any more."""
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            ledger_payments.set_recharge(connection, account, recharge, now_ns)

    def recharge(self, account: str) -> Recharge | None:
        """How the account is recharged; None when it isn't."""
        with self._transaction() as connection:
            return next(iter(ledger_payments.recharges_now(connection, account)), None)

    def accounts_to_recharge(self) -> Sequence[DueRecharge]:
        """The accounts whose balance is below their threshold now."""
        due = []
        with self._transaction() as connection:
            for recharge in ledger_payments.recharges_now(connection):
                left = self._balances.of(recharge.account)
                if left is None:
                    left = balance(connection, customer_book(recharge.account), USD_PICOS)
                    self._balances.set(recharge.account, left)
                if left < recharge.threshold_usd_picos:
                    top_ups = ledger_payments.number_of_top_ups(connection, recharge.account)
                    due.append(DueRecharge(recharge=recharge, balance_usd_picos=left, top_ups=top_ups))
        return tuple(due)

    def has_keys(self) -> bool:
        """Whether any API key was ever made."""
        with self._transaction() as connection:
            return connection.scalar(select(api_keys.c.sha256).limit(1)) is not None

    def balance_usd_picos(self, account: str) -> int:
        """What the account has left, in pico-USD; negative when it owes. An unknown account has 0.

        It adds up all entries of the account: 0.2 s for a million receipts, in which nothing else is written. It
        is remembered until the database fails.
        """
        with self._transaction() as connection:
            left = balance(connection, customer_book(account), USD_PICOS)
        self._balances.set(account, left)
        return left

    def cached_balance_usd_picos(self, account: str) -> int | None:
        """The same without I/O, from any thread; None until it was read once, and again when the database failed."""
        return self._balances.of(account)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """When the database fails all that is remembered is read anew: what was stored, and by whom, is not certain."""
        try:
            with self._database.transaction() as connection:
                yield connection
        except BaseException as error:
            # Those are this program's own, and nothing was stored.
            if type(error) not in (SettlementRefused, DamagedReceipt, LedgerError):
                self._balances.forget()
                self._keys.forget()
                self._budgets.forget()
            raise

    def _entered(self, enter: Callable[[Connection, int], Entered]) -> Payment:
        now_ns = self._wall_clock_ns()
        with self._transaction() as connection:
            done = enter(connection, now_ns)
        self._balances.entered(done.entries)
        return done.payment


def _open_account(connection: Connection, account: str, now_ns: int) -> list[EntryRow]:
    connection.execute(insert(accounts), {"account": account, "created_unix_ns": now_ns})
    credit = transfer(
        f"opening:{account}", USD_PICOS, OPENING_CREDITS, customer_book(account), OPENING_CREDIT_USD_PICOS, now_ns
    )
    connection.execute(insert(entries), credit)
    return credit


def _check_budget(budget: Budget) -> None:
    if budget.kind not in BUDGET_KINDS or budget.window not in BUDGET_WINDOWS:
        raise LedgerError(f"a budget is of a {' or '.join(BUDGET_KINDS)}, for each {' or '.join(BUDGET_WINDOWS)}")
    if type(budget.microjoules) is not int or not 0 <= budget.microjoules <= MAX_INTEGER:
        raise LedgerError("a budget is a whole number of 0 to 2^63 - 1 microjoules")
    if budget.kind == "workload":
        try:
            _WORKLOAD_NAME.validate_python(budget.subject, strict=True)
        except ValidationError as error:
            raise LedgerError(
                "a workload's name is 1 to 128 letters, digits and . _ : @ / - and begins with a letter or digit"
            ) from error
