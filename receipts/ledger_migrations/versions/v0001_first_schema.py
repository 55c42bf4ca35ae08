"""The schema as it first was, with a table of its own for the version number."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_UNCHANGING = ("position", "receipt_id", "account", "request_id", "seq", "signed_bytes", "signed_sha256")


def upgrade() -> None:
    """Make the tables, and on SQLite the triggers that keep them append-only."""
    op.create_table(
        "accounts",
        sa.Column("account", sa.String(128), primary_key=True),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("sha256", sa.LargeBinary(32), primary_key=True),
        sa.Column("account", sa.String(128), sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("revoked_unix_ns", sa.BigInteger),
    )
    op.create_table(
        "receipts",
        sa.Column("position", _RowNumber, primary_key=True),
        sa.Column("receipt_id", sa.String(37), nullable=False, unique=True),
        sa.Column("account", sa.String(128), sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("request_id", sa.String(32), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("signed_bytes", sa.LargeBinary, nullable=False),
        sa.Column("signed_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("signature", sa.LargeBinary(64)),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("account", "seq"),
        sa.UniqueConstraint("account", "request_id"),
        sa.CheckConstraint("seq >= 1"),
    )
    is_unsigned = sa.text("signature IS NULL")
    op.create_index(
        "receipts_unsigned", "receipts", ["position"], sqlite_where=is_unsigned, postgresql_where=is_unsigned
    )
    op.create_table(
        "failed_attempts",
        sa.Column("settlement_sha256", sa.LargeBinary(32), primary_key=True),
        sa.Column("account", sa.String(128), sa.ForeignKey("accounts.account"), nullable=False),
        sa.Column("request_id", sa.String(32), nullable=False),
        sa.Column("energy_microjoules", sa.BigInteger),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_failed_attempts_request_id", "failed_attempts", ["request_id"])
    op.create_table(
        "entries",
        sa.Column("transaction_id", sa.String(160), primary_key=True),
        sa.Column("unit", sa.String(16), primary_key=True),
        sa.Column("book_account", sa.String(160), primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
        sa.CheckConstraint("unit IN ('microjoules', 'usd_picos')"),
        sa.CheckConstraint("amount <> 0"),
    )
    op.create_index("entries_of_book_account", "entries", ["book_account", "unit"])
    schema_version = op.create_table(
        "schema_version",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("applied_unix_ns", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(schema_version, [{"version": 1, "applied_unix_ns": time.time_ns()}])
    if op.get_context().dialect.name == "sqlite":
        for table in ("entries", "failed_attempts", "schema_version"):
            _forbid(table, "UPDATE", "1", f"{table} are append-only")
        for table in ("entries", "failed_attempts", "receipts", "accounts", "api_keys", "schema_version"):
            _forbid(table, "DELETE", "1", f"{table} are append-only")
        changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _UNCHANGING)
        _forbid(
            "receipts",
            "UPDATE",
            f"OLD.signature IS NOT NULL OR {changed}",
            "a stored receipt gets its signature once and nothing else",
        )


def _forbid(table: str, change: str, condition: str, reason: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
    )
