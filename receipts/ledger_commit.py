"""What one commit of settlements stores: read what is there, take each settlement in, write table by table."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, insert, select

from metering.settlement import Settlement
from receipts.canonical import MAX_BYTES
from receipts.document import Receipt, signed_bytes
from receipts.draft import RequestContext, draft_receipt
from receipts.errors import DamagedReceipt, InvalidDocument, SettlementRefused
from receipts.ledger_books import METER, OVERHEAD, REVENUE, EntryRow, transfer
from receipts.ledger_chains import ExaminedHeads, Head, heads
from receipts.ledger_rows import STORED, customer_book, stored_receipt
from receipts.ledger_schema import MICROJOULES, USD_PICOS, entries, failed_attempts, receipts
from receipts.receipt_columns import receipt_columns
from receipts.stored_receipt import StoredReceipt

_MOST: Final = 2**63 - 1
_MOST_SIGNATURE_CHARACTERS: Final = 128
# With its signature, a member of 145 bytes, it has to be a document that can be read.
_MOST_SIGNED_BYTES: Final = MAX_BYTES - 256

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class SettlementCommit:
    """What one transaction stores."""

    now_ns: int
    key_id: str
    heads: dict[str, Head]
    damaged: Mapping[str, str]
    known: dict[str, StoredReceipt]
    failures: set[bytes]
    taken: set[tuple[str, str]]
    entry_rows: list[EntryRow] = field(default_factory=list)
    receipt_rows: list[dict[str, object]] = field(default_factory=list)
    _failure_rows: list[dict[str, object]] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        connection: Connection,
        settlements: Sequence[Settlement],
        contexts: Sequence[RequestContext],
        examined: ExaminedHeads,
        *,
        now_ns: int,
        key_id: str,
    ) -> Self:
        """Read what is already there for these settlements: a query per table, not per settlement."""
        ids = [_receipt_id(each) for each in settlements]
        found = connection.execute(select(*STORED).where(receipts.c.receipt_id.in_(ids)))
        known = {row.receipt_id: _stored(row) for row in found}
        wasted = [
            _settlement_hash(each) for each in settlements if each.outcome == "failed" or _receipt_id(each) in known
        ]
        booked = failed_attempts.c.settlement_sha256
        chains = heads(connection, {each.account for each in contexts})
        return cls(
            now_ns=now_ns,
            key_id=key_id,
            heads=chains,
            damaged=examined.damage(connection, chains),
            known=known,
            failures=set(connection.scalars(select(booked).where(booked.in_(wasted)))) if wasted else set(),
            taken=_taken(connection, contexts),
        )

    def settle(self, context: RequestContext, settlement: Settlement) -> StoredReceipt | None:
        """Take one settlement in; None for an attempt that failed.

        One attempt is charged. Another one that was settled too, by another statement of a meter, is the mesh's
        overhead like one that failed, and gets the receipt that stands.

        Raises:
            SettlementRefused: it cannot be stored.
        """
        if context.account not in self.heads:
            raise SettlementRefused(settlement.request_id, f"there is no account {context.account!r}")
        known = self.known.get(_receipt_id(settlement))
        if known is not None and known.account != context.account:
            raise SettlementRefused(settlement.request_id, "another account has a receipt of that id")
        if settlement.outcome == "failed":
            self._add_failure(context, settlement)
            return known
        if known is None:
            return self._add_receipt(context, settlement)
        if settlement.statement not in (None, known.statement):
            self._add_failure(context, settlement)
        return known

    def write(self, connection: Connection) -> None:
        """Insert all that was taken in."""
        for table, rows in (
            (receipts, self.receipt_rows),
            (failed_attempts, self._failure_rows),
            (entries, self.entry_rows),
        ):
            if rows:
                connection.execute(insert(table), rows)

    def _add_receipt(self, context: RequestContext, settlement: Settlement) -> StoredReceipt:
        statement = settlement.statement
        if statement is None:
            raise SettlementRefused(
                settlement.request_id, "it comes without a statement of its meter, and its receipt could not be signed"
            )
        damage = self.damaged.get(context.account)
        if damage is not None:
            raise SettlementRefused(
                settlement.request_id,
                f"{damage}. Nothing is built on it: restore the ledger from a copy, then it is stored when it is "
                "offered again; `jc ledger check` says what else is damaged",
            )
        head = self.heads[context.account]
        receipt = draft_receipt(
            context,
            settlement,
            key_id=self.key_id,
            seq=head.seq + 1,
            prev_sha256=None if head.sha256 is None else head.sha256.hex(),
        )
        signed = signed_bytes(receipt)
        if len(signed) > _MOST_SIGNED_BYTES:
            raise SettlementRefused(settlement.request_id, f"its receipt has {len(signed)} bytes, which none may have")
        new = StoredReceipt(
            receipt_id=receipt.receipt_id,
            account=context.account,
            seq=receipt.chain.seq,
            signed_bytes=signed,
            signature=None,
            statement=statement,
        )
        digest = hashlib.sha256(signed).digest()
        self.known[new.receipt_id] = new
        self.heads[new.account] = Head(seq=new.seq, sha256=digest)
        self.receipt_rows.append(self._row(new, digest, receipt, context, settlement))
        payer = customer_book(new.account)
        self._enter(new.receipt_id, MICROJOULES, METER, payer, settlement.energy.total_microjoules or 0)
        self._enter(new.receipt_id, USD_PICOS, payer, REVENUE, receipt.price.usd_picos)
        return new

    def _row(
        self, new: StoredReceipt, digest: bytes, receipt: Receipt, context: RequestContext, settlement: Settlement
    ) -> dict[str, object]:
        statement = new.statement
        assert statement is not None, "a receipt is made of a statement"
        return {
            **receipt_columns(receipt, settlement.energy.total_microjoules),
            "signed_bytes": new.signed_bytes,
            "signed_sha256": digest,
            "created_unix_ns": self.now_ns,
            "statement": statement.statement,
            "statement_signature": statement.signature,
            "idempotency_sha256": self._first_use(context),
        }

    def _first_use(self, context: RequestContext) -> str | None:
        """The hash of the request's idempotency key; None where another receipt of the account has it.

        Only where the other request's hold had lapsed did both run, and then both are charged.
        """
        use = context.idempotency_sha256 and (context.account, context.idempotency_sha256)
        if not use or use in self.taken:
            return None
        self.taken.add(use)
        return context.idempotency_sha256

    def _add_failure(self, context: RequestContext, settlement: Settlement) -> None:
        digest = _settlement_hash(settlement)
        if digest in self.failures:
            return
        self.failures.add(digest)
        if settlement.outcome != "failed":
            _LOG.warning(
                "request %s has its receipt: its other attempt, %s on %s, is the mesh's overhead",
                settlement.request_id,
                settlement.outcome,
                settlement.replica,
            )
        energy_microjoules = settlement.energy.total_microjoules
        statement = settlement.statement
        self._failure_rows.append(
            {
                "settlement_sha256": digest,
                "account": context.account,
                "request_id": settlement.request_id,
                "energy_microjoules": energy_microjoules,
                "created_unix_ns": self.now_ns,
                "statement": statement and statement.statement,
                "statement_signature": statement and statement.signature,
            }
        )
        self._enter(f"failed:{digest.hex()}", MICROJOULES, METER, OVERHEAD, energy_microjoules or 0)

    def _enter(self, transaction_id: str, unit: str, giver: str, taker: str, amount: int) -> None:
        self.entry_rows += transfer(transaction_id, unit, giver, taker, amount, self.now_ns)


def context_of(settlement: Settlement) -> RequestContext:
    """What the door knew of the request.

    Raises:
        SettlementRefused: there is none, it is another request's, or a figure could not be stored: the others in
            the same commit must not fail with this one.
    """
    try:
        context = RequestContext.from_json(settlement.context)
    except InvalidDocument as error:
        raise SettlementRefused(settlement.request_id, str(error)) from error
    if context.receipt_id != _receipt_id(settlement):
        raise SettlementRefused(settlement.request_id, f"its context is that of {context.receipt_id}")
    energy_microjoules = settlement.energy.total_microjoules
    if energy_microjoules is not None and not (type(energy_microjoules) is int and 0 <= energy_microjoules <= _MOST):
        raise SettlementRefused(settlement.request_id, "its energy is not a whole number of 0 to 2^63 - 1 microjoules")
    statement = settlement.statement
    if statement is not None and not (
        statement.statement.isascii()
        and "\0" not in statement.statement
        and statement.signature.isalnum()
        and statement.signature.isascii()
        and len(statement.signature) <= _MOST_SIGNATURE_CHARACTERS
    ):
        raise SettlementRefused(settlement.request_id, "its meter's statement is not text that can be stored")
    return context


def _taken(connection: Connection, contexts: Sequence[RequestContext]) -> set[tuple[str, str]]:
    """Which of the contexts' idempotency keys have their receipts: accounts and hashes."""
    hashes = {each.idempotency_sha256 for each in contexts if each.idempotency_sha256 is not None}
    if not hashes:
        return set()
    query = select(receipts.c.account, receipts.c.idempotency_sha256).where(
        receipts.c.account.in_({each.account for each in contexts}), receipts.c.idempotency_sha256.in_(hashes)
    )
    return {(row.account, row.idempotency_sha256) for row in connection.execute(query)}


def _stored(row: "Row[*tuple[Any, ...]]") -> StoredReceipt:
    """The receipt that a settlement has already; one that cannot be read refuses that settlement and no other."""
    try:
        return stored_receipt(row)
    except DamagedReceipt as damaged:
        raise SettlementRefused(str(row.receipt_id).removeprefix("rcpt_"), str(damaged)) from damaged


def _receipt_id(settlement: Settlement) -> str:
    return f"rcpt_{settlement.request_id}"


def _settlement_hash(settlement: Settlement) -> bytes:
    return hashlib.sha256(settlement.to_json()).digest()
