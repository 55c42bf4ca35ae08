"""The ledger's tables as they are now; `receipts.ledger_migrations` leads here from what they were.

Integers only: microjoules and pico-USD. What was entered stays as it is: a correction is another transaction.
Triggers hold to that, on SQLite and on PostgreSQL, whoever opens the database.
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
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

FIRST_REVISION: Final = "0001"
NEWEST_REVISION: Final = "0003"
MICROJOULES: Final = "microjoules"
USD_PICOS: Final = "usd_picos"
_SIGNATURE_BYTES: Final = 64

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
# The last four columns are copies of the receipt's own members, to find receipts by; the signed bytes are what counts.
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
    Column("signature", LargeBinary(_SIGNATURE_BYTES)),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("statement", Text),
    Column("statement_signature", String(128)),
    Column("end_unix_ns", BigInteger),
    Column("model", Text),
    Column("region", Text),
    Column("customer_tag", Text),
    UniqueConstraint("account", "seq"),
    UniqueConstraint("account", "request_id"),
    CheckConstraint("seq >= 1"),
    Index("receipts_by_end", "account", "end_unix_ns", "seq"),
)
_is_unsigned = receipts.c.signature.is_(None)
Index("receipts_unsigned", receipts.c.position, sqlite_where=_is_unsigned, postgresql_where=_is_unsigned)
_is_tagged = receipts.c.customer_tag.is_not(None)
Index(
    "receipts_by_tag",
    receipts.c.account,
    receipts.c.customer_tag,
    receipts.c.seq,
    sqlite_where=_is_tagged,
    postgresql_where=_is_tagged,
)

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
    Index("entries_in_order", "book_account", "created_unix_ns", "transaction_id", "unit", "amount"),
)

# A correction: ``transaction_id`` names the entries that undo those of the transaction that it ``reverses``.
reversals: Final = Table(
    "reversals",
    metadata,
    Column("transaction_id", String(160), primary_key=True),
    Column("reverses", String(160), nullable=False, unique=True),
    Column("reason", Text, nullable=False),
    Column("created_unix_ns", BigInteger, nullable=False),
)

_FORBID_ON_POSTGRESQL: Final = """
CREATE OR REPLACE FUNCTION ledger_forbid() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation'; END $$
"""
event.listen(
    metadata,
    "before_create",
    DDL(_FORBID_ON_POSTGRESQL).execute_if(dialect="postgresql"),  # type: ignore[no-untyped-call]
)


def _on(table: Table, dialect: str, statement: str) -> None:
    event.listen(table, "after_create", DDL(statement).execute_if(dialect=dialect))  # type: ignore[no-untyped-call]


def _forbid(table: Table, change: str, reason: str, *, on_sqlite: str = "1", on_postgresql: str = "true") -> None:
    """Let no row be changed so, where the condition holds."""
    start = f"CREATE TRIGGER {table.name}_{change.lower()} BEFORE {change} ON {table.name}"
    _on(table, "sqlite", f"{start} WHEN {on_sqlite} BEGIN SELECT RAISE(ABORT, '{reason}'); END")
    _on(table, "postgresql", f"{start} FOR EACH ROW WHEN ({on_postgresql}) EXECUTE FUNCTION ledger_forbid('{reason}')")


def _allow_once(table: Table, column: str, reason: str, *, unless: tuple[str, ...] = ()) -> None:
    """Let a row get its value in the one column, where it has none, and no other change."""
    changed = [f"OLD.{each.name} {{differs}} NEW.{each.name}" for each in table.columns if each.name != column]
    condition = " OR ".join([f"OLD.{column} IS NOT NULL", *unless, *changed])
    _forbid(
        table,
        "UPDATE",
        reason,
        # UPDATE OR REPLACE with another row's number would delete that row past the trigger on DELETE.
        on_sqlite=f"OLD.rowid IS NOT NEW.rowid OR {condition.format(differs='IS NOT')}",
        on_postgresql=condition.format(differs="IS DISTINCT FROM"),
    )


def _forbid_replacement(table: Table) -> None:
    """SQLite's INSERT OR REPLACE deletes the rows in its way past the trigger on DELETE.

    A row's number, which every table has, is looked for only where it is given: before it is allotted it reads as -1.
    """
    unique = [each for each in table.constraints if isinstance(each, PrimaryKeyConstraint | UniqueConstraint)]
    keys = sorted([column.name for column in each.columns] for each in unique)
    same_key = [" AND ".join(f"{column} = NEW.{column}" for column in key) for key in keys if key != ["position"]]
    taken = [f"EXISTS (SELECT 1 FROM {table.name} WHERE {each})" for each in ("rowid = NEW.rowid", *same_key)]  # noqa: S608 - our own names
    condition = " OR ".join([f"NEW.rowid <> -1 AND {taken[0]}", *taken[1:]])
    start = f"CREATE TRIGGER {table.name}_insert BEFORE INSERT ON {table.name} WHEN {condition}"
    _on(table, "sqlite", f"{start} BEGIN SELECT RAISE(ABORT, '{table.name} are append-only'); END")


def _forbid_truncation(table: Table) -> None:
    """PostgreSQL's TRUNCATE is no DELETE to a trigger."""
    start = f"CREATE TRIGGER {table.name}_truncate BEFORE TRUNCATE ON {table.name} FOR EACH STATEMENT"
    _on(table, "postgresql", f"{start} EXECUTE FUNCTION ledger_forbid('{table.name} are append-only')")


for _table in metadata.sorted_tables:
    _forbid(_table, "DELETE", f"{_table.name} are append-only")
    _forbid_replacement(_table)
    _forbid_truncation(_table)
for _table in (accounts, entries, failed_attempts, reversals):
    _forbid(_table, "UPDATE", f"{_table.name} are append-only")
_allow_once(api_keys, "revoked_unix_ns", "an API key is revoked once and otherwise stays as it is")
_allow_once(
    receipts,
    "signature",
    "a stored receipt gets its signature once and nothing else",
    unless=(f"length(NEW.signature) <> {_SIGNATURE_BYTES}",),
)
