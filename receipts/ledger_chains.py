"""The ends of the accounts' chains: read fast, and examined before anything is built on them."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, select

from receipts.document import receipt_from_signed_bytes
from receipts.errors import DamagedReceipt, InvalidDocument
from receipts.ledger_rows import STORED, stored_receipt
from receipts.ledger_schema import accounts, receipts

_MOST_REMEMBERED: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of an account's chain; a new account has seq 0 and no hash."""

    seq: int
    sha256: bytes | None


def heads(connection: Connection, names: Collection[str]) -> dict[str, Head]:
    """The heads of those of the accounts that exist."""
    found = connection.execute(heads_statement(names))
    return {row.account: Head(seq=row.seq or 0, sha256=row.signed_sha256) for row in found}


def heads_statement(names: Collection[str]) -> "Select[*tuple[Any, ...]]":
    """The query of `heads`: a subquery per account is one look at the end of an index, on both databases."""
    of_account = receipts.c.account == accounts.c.account
    last = [
        select(column).where(of_account).order_by(receipts.c.seq.desc()).limit(1).scalar_subquery().label(column.name)
        for column in (receipts.c.seq, receipts.c.signed_sha256)
    ]
    return select(accounts.c.account, *last).where(accounts.c.account.in_(names))


class ExaminedHeads:
    """Heads that were read whole and hold what they must: each is examined once, and not at every commit."""

    def __init__(self) -> None:
        self._sha256: dict[str, bytes] = {}

    def damage(self, connection: Connection, found: Mapping[str, Head]) -> dict[str, str]:
        """What is wrong with those of the heads on which nothing may be built, by account."""
        wrong: dict[str, str] = {}
        for account, head in found.items():
            if head.sha256 is None or self._sha256.get(account) == head.sha256:
                continue
            fault = _fault(connection, account, head)
            if fault is None:
                self._remember(account, head.sha256)
            else:
                wrong[account] = f"receipt {head.seq} of account {account}, the last of its chain, is damaged: {fault}"
        return wrong

    def committed(self, found: Mapping[str, Head]) -> None:
        """These were stored by this writer."""
        for account, head in found.items():
            if head.sha256 is not None:
                self._remember(account, head.sha256)

    def _remember(self, account: str, sha256: bytes) -> None:
        if len(self._sha256) >= _MOST_REMEMBERED:
            self._sha256.clear()
        self._sha256[account] = sha256


def _fault(connection: Connection, account: str, head: Head) -> str | None:
    row = connection.execute(select(*STORED).where(receipts.c.account == account, receipts.c.seq == head.seq)).first()
    if row is None:
        return "it is in an index and not in the table"
    try:
        receipt = stored_receipt(row)
    except DamagedReceipt:
        return "its row cannot be read"
    if hashlib.sha256(receipt.signed_bytes).digest() != head.sha256:
        return "its bytes do not have the hash that was stored with them"
    try:
        document = receipt_from_signed_bytes(receipt.signed_bytes)
    except InvalidDocument as error:
        return str(error)
    inside = (document.receipt_id, document.workload.account, document.chain.seq)
    if inside != (receipt.receipt_id, account, head.seq):
        return f"its bytes are those of receipt {document.chain.seq} of account {document.workload.account}"
    return None
