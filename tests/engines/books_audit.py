"""What a mesh's ledger holds, checked with SQL, hashing and signature library of its own, against what clients saw.

Nothing of the project's code is used here: it is the code under test.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from chat_load import Exchange
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

Connect = Callable[[], Any]
"""Opens the ledger's database anew, read only: any DB-API connection."""

_RECEIPTS = """
    SELECT account, seq, receipt_id, request_id, signed_bytes, signed_sha256, signature
    FROM receipts ORDER BY account, seq"""
_ENTRIES = "SELECT transaction_id, unit, book_account, amount FROM entries"
_FAILED = "SELECT request_id FROM failed_attempts"
_UNITS = ("microjoules", "usd_picos")


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed:
    """A receipt, as far as the bill goes; ``microjoules`` is None where its energy is not known."""

    account: str
    microjoules: int | None
    usd_picos: int
    output_tokens: int


@dataclass(slots=True)
class BooksAudit:
    """Figures by check, and what was found wrong by check."""

    receipts: dict[str, Billed] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    accounts: int = 0
    unsigned: int = 0
    entries: int = 0
    acknowledged: int = 0
    promised: int = 0
    findings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def billed_microjoules(self) -> int:
        return sum(each.microjoules or 0 for each in self.receipts.values())


def audit_books(connect: Connect, public_key: bytes, exchanges: Sequence[Exchange]) -> BooksAudit:
    """Check the whole ledger; to be called while nothing is under way."""
    audit = BooksAudit()
    with closing(connect()) as connection:
        _check_chains(audit, _rows(connection, _RECEIPTS), VerifyKey(public_key))
        _check_entries(audit, _rows(connection, _ENTRIES))
        audit.failed = {request_id for (request_id,) in _rows(connection, _FAILED)}
    _check_clients(audit, exchanges)
    return audit


def count_unsigned(connect: Connect) -> int:
    """How many receipts wait for their signature."""
    with closing(connect()) as connection:
        ((count,),) = _rows(connection, "SELECT count(*) FROM receipts WHERE signature IS NULL")
    return int(count)


def _rows(connection: Any, query: str) -> Iterable[Any]:
    with closing(connection.cursor()) as cursor:
        cursor.execute(query)
        yield from cursor


def _check_chains(audit: BooksAudit, rows: Iterable[Any], key: VerifyKey) -> None:
    account: str | None = None
    seq, previous = 0, None
    for row_account, row_seq, receipt_id, request_id, signed_bytes, signed_sha256, signature in rows:
        if row_account != account:
            account, seq, previous = row_account, 0, None
            audit.accounts += 1
        where = f"{account} {row_seq} ({receipt_id})"
        receipt = json.loads(signed_bytes, parse_float=Decimal)
        seq += 1
        if row_seq != seq:
            audit.findings["chain"].append(f"{where}: seq {seq} was expected")
            seq = row_seq
        if receipt["chain"] != {"seq": row_seq, "prev_sha256": previous}:
            audit.findings["chain"].append(f"{where}: it says {receipt['chain']}, before it is {previous}")
        previous = hashlib.sha256(signed_bytes).hexdigest()
        if bytes(signed_sha256).hex() != previous:
            audit.findings["chain"].append(f"{where}: the column signed_sha256 is of other bytes")
        if (receipt["receipt_id"], receipt["workload"]["account"]) != (receipt_id, account):
            audit.findings["chain"].append(f"{where}: its columns are not what it says itself")
        if receipt_id != f"rcpt_{request_id}" or receipt_id in audit.receipts:
            audit.findings["chain"].append(f"{where}: its id is there twice, or not its request's")
        audit.receipts[receipt_id] = _billed(receipt)
        _check_signature(audit, where, key, bytes(signed_bytes), signature)


def _check_signature(audit: BooksAudit, where: str, key: VerifyKey, message: bytes, signature: Any) -> None:
    if signature is None:
        audit.unsigned += 1
        audit.findings["signatures"].append(f"{where}: not signed")
        return
    try:
        key.verify(message, bytes(signature))
    except (BadSignatureError, ValueError) as wrong:
        audit.findings["signatures"].append(f"{where}: {wrong}")


def _billed(receipt: dict[str, Any]) -> Billed:
    joules = receipt["energy"]["total_joules"]
    return Billed(
        account=receipt["workload"]["account"],
        microjoules=None if joules is None else int(Decimal(joules) * 10**6),
        usd_picos=receipt["price"]["usd_picos"],
        output_tokens=receipt["workload"]["tokens"]["output"],
    )


def _check_entries(audit: BooksAudit, rows: Iterable[Any]) -> None:
    books = dict.fromkeys(_UNITS, 0)
    transactions: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for transaction_id, unit, book_account, amount in rows:
        audit.entries += 1
        books[unit] += amount
        transactions[transaction_id, unit][book_account] = amount
    for unit, balance in books.items():
        if balance:
            audit.findings["books"].append(f"the book in {unit} sums to {balance}")
    for (transaction_id, unit), sides in transactions.items():
        if sum(sides.values()):
            audit.findings["books"].append(f"{transaction_id} sums to {sum(sides.values())} {unit}")
        if transaction_id.startswith("rcpt_") and transaction_id not in audit.receipts:
            audit.findings["books"].append(f"{transaction_id} is entered and has no receipt")
    for receipt_id, billed in audit.receipts.items():
        customer, energy, money = f"customer:{billed.account}", billed.microjoules or 0, billed.usd_picos
        _expect(audit, transactions, (receipt_id, "microjoules"), {"meter": -energy, customer: energy})
        _expect(audit, transactions, (receipt_id, "usd_picos"), {customer: -money, "revenue": money})
        if billed.microjoules is None and money:
            audit.findings["books"].append(f"{receipt_id} costs {money} pico-USD and does not know its energy")


def _expect(
    audit: BooksAudit,
    transactions: dict[tuple[str, str], dict[str, int]],
    entry: tuple[str, str],
    expected: dict[str, int],
) -> None:
    found = transactions.get(entry, {})
    if found != {side: amount for side, amount in expected.items() if amount}:
        audit.findings["books"].append(f"{entry[0]} in {entry[1]}: entered is {found}, receipted {expected}")


def _check_clients(audit: BooksAudit, exchanges: Sequence[Exchange]) -> None:
    """What a client was told is what it is billed; what it was promised came to something."""
    promised: set[str] = set()
    for exchange in exchanges:
        if exchange.receipt_id is None:
            continue
        if exchange.receipt_id in promised:
            audit.findings["acknowledged"].append(f"{exchange.receipt_id}: promised to two requests")
        promised.add(exchange.receipt_id)
        audit.acknowledged += exchange.outcome == "answered"
        for check, what in _wrongs(audit, exchange, exchange.receipt_id):
            who = f"{exchange.receipt_id} of {exchange.account}, {exchange.kind}, {exchange.outcome}"
            audit.findings[check].append(f"{who}: {what}")
    audit.promised = len(promised)


def _wrongs(audit: BooksAudit, exchange: Exchange, receipt_id: str) -> Iterator[tuple[str, str]]:
    billed = audit.receipts.get(receipt_id)
    if billed is None:
        if exchange.outcome == "answered":
            yield "acknowledged", "acknowledged, and not in the ledger"
        elif receipt_id.removeprefix("rcpt_") not in audit.failed:
            yield "settlements", "neither a receipt nor a failed attempt"
        return
    told = None if exchange.joules is None else int(exchange.joules * 10**6)
    if exchange.outcome == "answered" and billed.microjoules != told:
        yield "acknowledged", f"told {told} µJ, billed {billed.microjoules}"
    if billed.account != exchange.account:
        yield "acknowledged", f"billed to {billed.account}"
    if billed.output_tokens > exchange.words:
        yield "acknowledged", f"{billed.output_tokens} tokens of {exchange.words} billed"
