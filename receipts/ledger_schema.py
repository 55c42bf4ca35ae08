"""The ledger's tables as they are now; `receipts.ledger_migrations` leads here from what they were.

Integers only: microjoules and pico-USD. What was entered stays as it is: a correction is another transaction.
On SQLite triggers hold to that, whoever opens the file.
"""

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

FIRST_REVISION: Final = "0001"
NEWEST_REVISION: Final = "0002"
MICROJOULES: Final = "microjoules"
USD_PICOS: Final = "usd_picos"

# SQLite numbers rows by itself only where the column's type is exactly INTEGER.
_RowNumber = BigInteger().with_variant(Integer(), "sqlite")

metadata: Final = MetaData()

# Alembic's own table, one row: which revision the schema is.
ledger_revision: Final = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), primary_key=True),
)

accounts: Final = Table(
    "accounts",
    metadata,
    Column("account", String(128), primary_key=True),
    Column("created_unix_ns", BigInteger, nullable=False),
)

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("sha256", LargeBinary(32), primary_key=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("revoked_unix_ns", BigInteger),
)

# ``position`` is the order of storing, over all accounts: the order in which receipts get signed. ``statement`` and
# ``statement_signature`` are the meter's signed statement, for the signers: null only in receipts of the first schema.
receipts: Final = Table(
    "receipts",
    metadata,
    Column("position", _RowNumber, primary_key=True),
    Column("receipt_id", String(37), nullable=False, unique=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False),
    Column("request_id", String(32), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("signed_bytes", LargeBinary, nullable=False),
    Column("signed_sha256", LargeBinary(32), nullable=False),
    Column("signature", LargeBinary(64)),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("statement", Text),
    Column("statement_signature", String(128)),
    UniqueConstraint("account", "seq"),
    UniqueConstraint("account", "request_id"),
    CheckConstraint("seq >= 1"),
)
_is_unsigned = receipts.c.signature.is_(None)
Index("receipts_unsigned", receipts.c.position, sqlite_where=_is_unsigned, postgresql_where=_is_unsigned)

# An attempt that failed has no receipt. Its settlement's hash tells a second delivery from a second failure. Its
# statement is kept for auditors: without it the meter's chain would have a gap.
failed_attempts: Final = Table(
    "failed_attempts",
    metadata,
    Column("settlement_sha256", LargeBinary(32), primary_key=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False),
    Column("request_id", String(32), nullable=False, index=True),
    Column("energy_microjoules", BigInteger),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("statement", Text),
    Column("statement_signature", String(128)),
)

# A transaction's amounts sum to zero in each unit. Energy goes from ``meter`` to whom it was delivered, money from
# whom it is owed to what it was earned or given for; a book account's balance is the sum of its amounts.
entries: Final = Table(
    "entries",
    metadata,
    Column("transaction_id", String(160), primary_key=True),
    Column("unit", String(16), primary_key=True),
    Column("book_account", String(160), primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("created_unix_ns", BigInteger, nullable=False),
    CheckConstraint(f"unit IN ('{MICROJOULES}', '{USD_PICOS}')"),
    CheckConstraint("amount <> 0"),
    Index("entries_of_book_account", "book_account", "unit"),
)


def _forbid(table: Table, change: str, condition: str, reason: str) -> None:
    trigger = DDL(  # type: ignore[no-untyped-call]
        f"CREATE TRIGGER {table.name}_{change.lower()} BEFORE {change} ON {table.name} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
    )
    event.listen(table, "after_create", trigger.execute_if(dialect="sqlite"))


for _table in (entries, failed_attempts):
    _forbid(_table, "UPDATE", "1", f"{_table.name} are append-only")
for _table in (entries, failed_attempts, receipts, accounts, api_keys):
    _forbid(_table, "DELETE", "1", f"{_table.name} are append-only")
_UNCHANGING: Final = (
    "position",
    "receipt_id",
    "account",
    "request_id",
    "seq",
    "signed_bytes",
    "signed_sha256",
    "statement",
    "statement_signature",
)
_forbid(
    receipts,
    "UPDATE",
    "OLD.signature IS NOT NULL OR " + " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _UNCHANGING),
    "a stored receipt gets its signature once and nothing else",
)
