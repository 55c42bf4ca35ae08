"""Money in the ledger that no receipt moves: top-ups, refunds of them, and credits; in the books and in their table.

A balance is used up credits first, so what may go back to a customer is at most what came from them and wasn't
refunded, and never more than is left.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, insert, literal, select, update

from receipts.errors import LedgerError
from receipts.ledger_books import EntryRow, balance, exact_total, reverse, transfer
from receipts.ledger_rows import customer_book
from receipts.ledger_schema import USD_PICOS, accounts, entries, payments, recharges, reversals
from receipts.payments import MOST_USD_PICOS, CreditKind, Payment, PaymentKind, Recharge

_PREFIXES: Final[dict[PaymentKind, str]] = {
    "top-up": "topup_",
    "refund": "refund_",
    "sla-credit": "sla_",
    "goodwill-credit": "goodwill_",
}
_CREDITS: Final[dict[CreditKind, PaymentKind]] = {"sla": "sla-credit", "goodwill": "goodwill-credit"}
_ID_HEX_DIGITS: Final = 32
_MOST_PROVIDER: Final = 32
_MOST_TEXT: Final = 256
_MOST_LISTED: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """A payment, and the entries that it made just now; none where it was there already."""

    payment: Payment
    entries: tuple[EntryRow, ...]


def top_up(connection: Connection, account: str, usd_picos: int, provider: str, reference: str, now_ns: int) -> Entered:
    """Enter money that a provider took from the customer; told again, nothing happens.

    Raises:
        LedgerError: no such account, an amount or text that isn't one, or the reference is another payment's.
    """
    _line("a provider", provider, _MOST_PROVIDER)
    _line("a reference", reference, _MOST_TEXT)
    payment = Payment(
        payment_id=_named("top-up", provider, reference),
        account=account,
        kind="top-up",
        usd_picos=_amount(usd_picos),
        provider=provider,
        reference=reference,
        refunds=None,
        reason=None,
        created_unix_ns=now_ns,
    )
    return _enter_once(connection, payment)


def credit(
    connection: Connection, account: str, usd_picos: int, kind: CreditKind, reason: str, reference: str, now_ns: int
) -> Entered:
    """Give the account credit, which is never paid out; the same ``reference`` again is the same credit.

    Raises:
        LedgerError: no such account, a kind, amount or text that isn't one, or the reference is another credit's.
    """
    _line("a credit's reason", reason, _MOST_TEXT)
    _line("a reference", reference, _MOST_TEXT)
    its_kind = _CREDITS.get(kind)
    if its_kind is None:
        raise LedgerError(f"there is no kind of credit {str(kind)[:64]!r}; known are {', '.join(_CREDITS)}")
    payment = Payment(
        payment_id=_named(its_kind, reference),
        account=account,
        kind=its_kind,
        usd_picos=_amount(usd_picos),
        provider=None,
        reference=reference,
        refunds=None,
        reason=reason,
        created_unix_ns=now_ns,
    )
    return _enter_once(connection, payment)


def begin_refund(
    connection: Connection,
    account: str,
    payment_id: str,
    usd_picos: int,
    reference: str | None,
    now_ns: int,
    random_bytes: Callable[[int], bytes],
) -> Entered:
    """Take so much of a top-up off the balance, before its provider is asked to send it back.

    With its ``reference`` it was sent back already: it is finished, and told again nothing happens. Else it is the
    only one of its top-up that is under way: what is tried again while it isn't known how it ended is no second one.

    Raises:
        LedgerError: no such top-up of the account, it is more than may go back of it, another of its refunds is
            under way, or the reference is another refund's.
    """
    paid = _top_up_of(connection, account, payment_id)
    name = _PREFIXES["refund"] + random_bytes(_ID_HEX_DIGITS // 2).hex()
    if reference is not None:
        _line("a reference", reference, _MOST_TEXT)
        name = _named("refund", paid.provider or "", reference)
    elif _is_being_refunded(connection, payment_id):
        raise LedgerError(f"a refund of {payment_id} is under way: see how it ends before you begin another")
    known = _find(connection, name)
    if known is not None:
        if (known.account, known.refunds, known.usd_picos) != (account, payment_id, usd_picos):
            raise LedgerError("the reference is that of another refund: of another payment, or another amount")
        return Entered(payment=known, entries=())
    left = refundable(connection, account, payment_id)
    if _amount(usd_picos) > left:
        raise LedgerError(f"of {payment_id} no more than {left} pico-USD can be refunded")
    refund = Payment(
        payment_id=name,
        account=account,
        kind="refund",
        usd_picos=usd_picos,
        provider=paid.provider,
        reference=reference,
        refunds=payment_id,
        reason=None,
        created_unix_ns=now_ns,
    )
    return _enter(connection, refund)


def finish_refund(connection: Connection, refund_id: str, reference: str) -> Payment:
    """The provider took the refund, and knows it by ``reference``; told again, nothing happens.

    Raises:
        LedgerError: no such refund, it is cancelled, or known by another reference.
    """
    _line("a reference", reference, _MOST_TEXT)
    refund = _refund(connection, refund_id)
    if refund.is_cancelled:
        raise LedgerError(f"{refund_id} is cancelled")
    if refund.reference is None:
        connection.execute(update(payments).where(payments.c.payment_id == refund_id).values(reference=reference))
        return _refund(connection, refund_id)
    if refund.reference != reference:
        raise LedgerError(f"{refund_id} has another reference already")
    return refund


def cancel_refund(connection: Connection, refund_id: str, reason: str, now_ns: int) -> Entered:
    """The provider refused the refund, at once or later: its amount is the balance's again. Told again, nothing
    happens.

    Raises:
        LedgerError: no such refund, or the reason is no line of text.
    """
    refund = _refund(connection, refund_id)
    if refund.is_cancelled:
        return Entered(payment=refund, entries=())
    undone = reverse(connection, refund_id, reason, now_ns)
    return Entered(payment=_refund(connection, refund_id), entries=tuple(undone))


def refundable(connection: Connection, account: str, payment_id: str) -> int:
    """How much of a top-up may go back to whom it came from, in pico-USD: 0 or more.

    What requests under way may still cost isn't known here, and has to be set aside before.

    Raises:
        LedgerError: no such top-up of the account.
    """
    paid = _top_up_of(connection, account, payment_id)
    if paid.is_cancelled:
        return 0
    stands = (payments.c.account == account) & _is_not_reversed()
    in_all = [
        exact_total(connection, payments.c.usd_picos, stands & (payments.c.kind == kind))
        for kind in ("top-up", "refund")
    ]
    left = balance(connection, customer_book(account), USD_PICOS)
    return max(0, min(left, in_all[0] - in_all[1], paid.usd_picos - paid.refunded_usd_picos))


def payments_of(connection: Connection, account: str) -> Sequence[Payment]:
    """The account's payments, the newest first; at most the newest ten thousand."""
    order = (payments.c.created_unix_ns.desc(), payments.c.payment_id)
    query = _query(payments.c.account == account).order_by(*order).limit(_MOST_LISTED)
    return tuple(map(_payment, connection.execute(query)))


def unfinished_refunds(connection: Connection) -> Sequence[Payment]:
    """Refunds, of all accounts, of which the provider's word isn't known: whoever began them died. The oldest first."""
    rows = connection.execute(_query(_is_under_way()).order_by(payments.c.created_unix_ns).limit(_MOST_LISTED))
    return tuple(map(_payment, rows))


def number_of_top_ups(connection: Connection, account: str) -> int:
    """How many the account has had."""
    query = select(func.count()).where(payments.c.account == account, payments.c.kind == "top-up")
    return connection.scalar(query) or 0


def set_recharge(connection: Connection, account: str, recharge: Recharge | None, now_ns: int) -> None:
    """Let the account be recharged so from now on, or not at all.

    Raises:
        LedgerError: no such account, or an amount or text that isn't one.
    """
    _check_account(connection, account)
    row: dict[str, object] = {"account": account, "created_unix_ns": now_ns}
    if recharge is not None:
        _line("a provider", recharge.provider, _MOST_PROVIDER)
        _line("a reference", recharge.customer_reference, _MOST_TEXT)
        row |= {
            "threshold_usd_picos": _amount(recharge.threshold_usd_picos),
            "amount_usd_picos": _amount(recharge.amount_usd_picos),
            "provider": recharge.provider,
            "customer_reference": recharge.customer_reference,
        }
    connection.execute(insert(recharges), row)


def recharges_now(connection: Connection, account: str | None = None) -> Sequence[Recharge]:
    """Which accounts are recharged, and how; or that of one account."""
    newest = select(func.max(recharges.c.position)).group_by(recharges.c.account)
    query = select(recharges).where(recharges.c.position.in_(newest), recharges.c.threshold_usd_picos.is_not(None))
    if account is not None:
        query = query.where(recharges.c.account == account)
    return tuple(
        Recharge(
            account=row.account,
            threshold_usd_picos=row.threshold_usd_picos,
            amount_usd_picos=row.amount_usd_picos,
            provider=row.provider,
            customer_reference=row.customer_reference,
        )
        for row in connection.execute(query.order_by(recharges.c.account))
    )


def payment_sides(kind: str, account: str, provider: str | None) -> tuple[str, str]:
    """Which book accounts give and take in a payment of this kind."""
    customer = customer_book(account)
    if kind == "top-up":
        return f"payments:{provider}", customer
    if kind == "refund":
        return customer, f"payments:{provider}"
    return f"{kind}s", customer


def is_payment_id(transaction_id: str) -> bool:
    """Whether it is one by its beginning."""
    return transaction_id.startswith(tuple(_PREFIXES.values()))


def payment_kind(transaction_id: str) -> PaymentKind | None:
    """What kind of payment a transaction is, by its id."""
    return next((kind for kind, prefix in _PREFIXES.items() if transaction_id.startswith(prefix)), None)


def _enter_once(connection: Connection, payment: Payment) -> Entered:
    known = _find(connection, payment.payment_id)
    if known is None:
        return _enter(connection, payment)
    if (known.account, known.usd_picos) != (payment.account, payment.usd_picos):
        raise LedgerError("the reference is that of another payment: of another account, or another amount")
    return Entered(payment=known, entries=())


def _enter(connection: Connection, payment: Payment) -> Entered:
    _check_account(connection, payment.account)
    names = [each.name for each in payments.columns]
    connection.execute(insert(payments), {name: getattr(payment, name) for name in names})
    giver, taker = payment_sides(payment.kind, payment.account, payment.provider)
    rows = transfer(payment.payment_id, USD_PICOS, giver, taker, payment.usd_picos, payment.created_unix_ns)
    connection.execute(insert(entries), rows)
    return Entered(payment=payment, entries=tuple(rows))


def _check_account(connection: Connection, account: str) -> None:
    if connection.scalar(select(accounts.c.account).where(accounts.c.account == account)) is None:
        raise LedgerError(f"there is no account {account[:128]!r}")


def _top_up_of(connection: Connection, account: str, payment_id: str) -> Payment:
    found = _find(connection, payment_id)
    if found is None or found.account != account or found.kind != "top-up":
        raise LedgerError(f"the account has no top-up {payment_id[:_MOST_TEXT]!r}")
    return found


def _refund(connection: Connection, refund_id: str) -> Payment:
    found = _find(connection, refund_id)
    if found is None or found.kind != "refund":
        raise LedgerError(f"there is no refund {refund_id[:_MOST_TEXT]!r}")
    return found


def _find(connection: Connection, payment_id: str) -> Payment | None:
    if not (payment_id.isascii() and payment_id.isprintable()):  # not every text can be put to a database
        return None
    row = connection.execute(_query(payments.c.payment_id == payment_id)).first()
    return None if row is None else _payment(row)


def _query(condition: ColumnElement[bool]) -> Any:  # noqa: ANN401 - SQLAlchemy's statement
    back = payments.alias("back")
    undone = reversals.alias("undone")
    refunded = (
        select(func.coalesce(func.sum(back.c.usd_picos), 0))
        .where(
            back.c.refunds == payments.c.payment_id,
            ~select(literal(1)).where(undone.c.reverses == back.c.payment_id).exists(),
        )
        .correlate(payments)
        .scalar_subquery()
    )
    return select(payments, (~_is_not_reversed()).label("is_cancelled"), refunded.label("refunded")).where(condition)


def _is_under_way() -> ColumnElement[bool]:
    return (payments.c.kind == "refund") & payments.c.reference.is_(None) & _is_not_reversed()


def _is_being_refunded(connection: Connection, payment_id: str) -> bool:
    query = select(payments.c.payment_id).where(payments.c.refunds == payment_id, _is_under_way()).limit(1)
    return connection.scalar(query) is not None


def _is_not_reversed() -> ColumnElement[bool]:
    return ~select(literal(1)).where(reversals.c.reverses == payments.c.payment_id).correlate(payments).exists()


def _payment(row: "Row[*tuple[Any, ...]]") -> Payment:
    return Payment(
        payment_id=row.payment_id,
        account=row.account,
        kind=row.kind,
        usd_picos=row.usd_picos,
        provider=row.provider,
        reference=row.reference,
        refunds=row.refunds,
        reason=row.reason,
        created_unix_ns=row.created_unix_ns,
        is_cancelled=bool(row.is_cancelled),
        refunded_usd_picos=int(row.refunded),
    )


def _named(kind: PaymentKind, *parts: str) -> str:
    """The one payment of that reference: whoever enters it, and however often."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return _PREFIXES[kind] + digest[:_ID_HEX_DIGITS]


def _amount(usd_picos: int) -> int:
    if type(usd_picos) is not int or not 1 <= usd_picos <= MOST_USD_PICOS:
        raise LedgerError(f"an amount is a whole number of 1 to {MOST_USD_PICOS} pico-USD")
    return usd_picos


def _line(what: str, text: str, most: int) -> None:
    if not (text.strip() and len(text) <= most and text.isprintable()):
        raise LedgerError(f"{what} is a line of 1 to {most} characters")
