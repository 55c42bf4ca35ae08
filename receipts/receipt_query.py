"""Which of an account's receipts are asked for, and a page of them as bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptQuery:
    """Receipts of one account, all that is given holding at once; None asks for no such thing.

    Times are those at which execution ended: ``since_unix_ns`` itself is in, ``until_unix_ns`` is not.
    ``first_seq`` and ``last_seq`` are both in.
    """

    account: str
    since_unix_ns: int | None = None
    until_unix_ns: int | None = None
    model: str | None = None
    region: str | None = None
    customer_tag: str | None = None
    first_seq: int | None = None
    last_seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptsPage:
    """Receipts in their order: ``lines`` are their canonical bytes, each with a newline behind it.

    A receipt that waits for its signature is there with ``"signature":null``. ``next_after_seq`` is what the next
    page comes after, or None at the end; more may come after a page without any. ``first_seq`` and ``last_seq`` are
    where in the chain the query's receipts lie, as far as the first page found out: the next page's query takes them,
    and need not look for them again.
    """

    lines: bytes
    next_after_seq: int | None
    first_seq: int | None
    last_seq: int | None
