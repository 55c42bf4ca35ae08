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
NEWEST_REVISION: Final = "0004"
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

# ``scopes`` are separated by commas. A key's end may be set, and come nearer, but not be put off.
api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("sha256", LargeBinary(32), primary_key=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_unix_ns", BigInteger, nullable=False),
    Column("revoked_unix_ns", BigInteger),
    Column("key_id", String(20), nullable=False, unique=True),
    Column("scopes", String(64), nullable=False),
    Column("expires_unix_ns", BigInteger),
)

# ``position`` is the order of storing, over all accounts: the order in which receipts get signed. ``statement`` and
# ``statement_signature`` are the meter's signed statement, for the signers: null only in receipts of the first schema.
# From ``end_unix_ns`` on the columns are copies of the receipt's own members, to find receipts and to sum them up; the
# signed bytes are what counts. But ``idempotency_sha256``, of the key that the request was sent with, is on no receipt.
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
    Column("api_key_id", String(20)),
    Column("workload_name", String(128)),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("energy_microjoules", BigInteger),
    Column("carbon_picograms", BigInteger),
    Column("usd_picos", BigInteger),
    Column("idempotency_sha256", String(64)),
    UniqueConstraint("account", "seq"),
    UniqueConstraint("account", "request_id"),
    CheckConstraint("seq >= 1"),
    Index("receipts_by_end", "account", "end_unix_ns", "seq"),
)
# All that usage is summed up from, but a region, whose length would be too much for an index's row with the others.
Index(
    "receipts_usage",
    *(
        receipts.c[name]
        for name in (
            "account",
            "end_unix_ns",
            "energy_microjoules",
            "usd_picos",
            "carbon_picograms",
            "input_tokens",
            "output_tokens",
            "api_key_id",
            "workload_name",
            "model",
            "customer_tag",
        )
    ),
)
_has_idempotency_key = receipts.c.idempotency_sha256.is_not(None)
Index(
    "receipts_by_idempotency",
    receipts.c.account,
    receipts.c.idempotency_sha256,
    unique=True,
    sqlite_where=_has_idempotency_key,
    postgresql_where=_has_idempotency_key,
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

# A top-up, a refund of one, or a credit; the books have it under ``payment_id``. A refund gets its ``reference`` when
# its provider took it; one that the provider refused is reversed.
payments: Final = Table(
    "payments",
    metadata,
    Column("payment_id", String(64), primary_key=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("usd_picos", BigInteger, nullable=False),
    Column("provider", String(32)),
    Column("reference", String(256)),
    Column("refunds", String(64), index=True),
    Column("reason", Text),
    Column("created_unix_ns", BigInteger, nullable=False),
    CheckConstraint("kind IN ('top-up', 'refund', 'sla-credit', 'goodwill-credit')"),
    CheckConstraint("usd_picos > 0"),
)

# Versions: the last one counts. No microjoules: there is no such budget any more.
budgets: Final = Table(
    "budgets",
    metadata,
    Column("position", _RowNumber, primary_key=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("period", String(16), nullable=False),
    Column("microjoules", BigInteger),
    Column("created_unix_ns", BigInteger, nullable=False),
    CheckConstraint("kind IN ('key', 'workload')"),
    CheckConstraint("period IN ('hour', 'day', 'month')"),
)

# Versions too. No threshold: the account is not recharged.
recharges: Final = Table(
    "recharges",
    metadata,
    Column("position", _RowNumber, primary_key=True),
    Column("account", ForeignKey(accounts.c.account), nullable=False),
    Column("threshold_usd_picos", BigInteger),
    Column("amount_usd_picos", BigInteger),
    Column("provider", String(32)),
    Column("customer_reference", String(256)),
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
    _allow_only(table, (column,), reason, unless=(f"OLD.{column} IS NOT NULL", *unless))


def _allow_only(table: Table, columns: tuple[str, ...], reason: str, *, unless: tuple[str, ...]) -> None:
    """Let a row be changed in these columns and in no other, ``unless`` one of the conditions holds."""
    changed = [f"OLD.{each.name} {{differs}} NEW.{each.name}" for each in table.columns if each.name not in columns]
    condition = " OR ".join([*unless, *changed])
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
    unique = [
        *(each for each in table.constraints if isinstance(each, PrimaryKeyConstraint | UniqueConstraint)),
        *(each for each in table.indexes if each.unique),
    ]
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
for _table in (accounts, entries, failed_attempts, reversals, budgets, recharges):
    _forbid(_table, "UPDATE", f"{_table.name} are append-only")
_allow_only(
    api_keys,
    ("revoked_unix_ns", "expires_unix_ns"),
    "an API key is revoked once, its end comes nearer, and otherwise it stays as it is",
    unless=(
        "OLD.revoked_unix_ns IS NOT NULL",
        (
            "OLD.expires_unix_ns IS NOT NULL AND (NEW.expires_unix_ns IS NULL OR "
            "NEW.expires_unix_ns > OLD.expires_unix_ns)"
        ),
    ),
)
_allow_once(payments, "reference", "a refund gets its reference once, and a payment otherwise stays as it is")
_allow_once(
    receipts,
    "signature",
    "a stored receipt gets its signature once and nothing else",
    unless=(f"length(NEW.signature) <> {_SIGNATURE_BYTES}",),
)
