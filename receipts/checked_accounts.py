"""What has to hold of keys, payments, budgets and recharges, each row by itself and with what it names."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from receipts.api_keys import SCOPES, key_id_of_hash
from receipts.budgets import BUDGET_KINDS, BUDGET_WINDOWS
from receipts.checked_books import Entry, transferred
from receipts.checked_rows import shown
from receipts.ledger_payments import payment_kind, payment_sides
from receipts.ledger_schema import USD_PICOS, payments


def key_faults(row: Any) -> Iterator[str]:  # noqa: ANN401 - checked
    """What is wrong with an API key."""
    if row.key_id != key_id_of_hash(row.sha256):
        yield f"its id is {shown(row.key_id)}, its hash makes it {key_id_of_hash(row.sha256)}"
    if tuple(row.scopes.split(",")) != tuple(each for each in SCOPES if each in row.scopes.split(",")):
        yield f"its scopes are {shown(row.scopes)}"


def budget_faults(row: Any) -> Iterator[str]:  # noqa: ANN401 - checked
    """What is wrong with an energy budget."""
    if row.kind not in BUDGET_KINDS or row.period not in BUDGET_WINDOWS or (row.microjoules or 0) < 0:
        yield f"it is of {shown(row.microjoules)} microjoules for a {shown(row.kind)} and {shown(row.period)}"


def recharge_faults(row: Any) -> Iterator[str]:  # noqa: ANN401 - checked
    """What is wrong with how an account is recharged: all of it is said, or nothing."""
    parts = (row.threshold_usd_picos, row.amount_usd_picos, row.provider, row.customer_reference)
    if len({each is None for each in parts}) > 1:
        yield "a part of it is missing"


def payment_faults(row: Any, paid: "Row[*tuple[Any, ...]] | None") -> Iterator[str]:  # noqa: ANN401
    """What is wrong with a payment; ``paid`` is the row of the one that it refunds."""
    if payment_kind(row.payment_id) != row.kind:
        yield f"it is a {shown(row.kind)} by its column, and not by its id"
    if (row.kind == "refund") != (row.refunds is not None):
        yield "a refund names what it refunds, and nothing else does"
    elif row.refunds is not None and (
        paid is None or (paid.account, paid.kind, paid.provider) != (row.account, "top-up", row.provider)
    ):
        yield f"it refunds {shown(row.refunds)}, which is no top-up of its account and provider"


def paid(row: Any) -> Sequence[Entry]:  # noqa: ANN401 - checked
    """The entries of a payment."""
    giver, taker = payment_sides(row.kind, row.account, row.provider)
    return transferred(USD_PICOS, giver, taker, row.usd_picos, row.created_unix_ns)


def refunded(connection: Connection, rows: Sequence[Any]) -> "dict[str, Row[*tuple[Any, ...]]]":
    """The payments that these refund, by id."""
    names = [row.refunds for row in rows if isinstance(row.refunds, str)]
    query = select(payments.c.payment_id, payments.c.account, payments.c.kind, payments.c.provider)
    return {each.payment_id: each for each in connection.execute(query.where(payments.c.payment_id.in_(names)))}
