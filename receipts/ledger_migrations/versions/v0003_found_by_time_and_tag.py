"""Receipts can be found by time, model, region and tag; entries in order; reversals; PostgreSQL's triggers."""

import json

import sqlalchemy as sa
from alembic import op

from receipts.errors import LedgerUnusable

revision = "0003"
down_revision = "0002"

_BATCH = 1000
_TABLES = ("accounts", "api_keys", "receipts", "failed_attempts", "entries", "reversals")
_NEVER_CHANGED = ("entries", "failed_attempts", "reversals")
_UNCHANGING = (
    "position",
    "receipt_id",
    "account",
    "request_id",
    "seq",
    "signed_bytes",
    "signed_sha256",
    "statement",
    "statement_signature",
    "end_unix_ns",
    "model",
    "region",
    "customer_tag",
)
_ONCE = "a stored receipt gets its signature once and nothing else"


def upgrade() -> None:
    """Add the columns and fill them from the signed bytes; the indexes come after, in one go each.

    Raises:
        LedgerUnusable: a receipt's bytes are damaged; names its place.
    """
    dialect = op.get_context().dialect.name
    if dialect == "sqlite":
        op.execute("DROP TRIGGER receipts_update")
    op.add_column("receipts", sa.Column("end_unix_ns", sa.BigInteger))
    for name in ("model", "region", "customer_tag"):
        op.add_column("receipts", sa.Column(name, sa.Text))
    if not op.get_context().as_sql:
        _fill_in(op.get_bind())
    op.create_index("receipts_by_end", "receipts", ["account", "end_unix_ns"])
    is_tagged = sa.text("customer_tag IS NOT NULL")
    op.create_index(
        "receipts_by_tag",
        "receipts",
        ["account", "customer_tag", "seq"],
        sqlite_where=is_tagged,
        postgresql_where=is_tagged,
    )
    op.drop_index("entries_of_book_account", "entries")
    op.create_index(
        "entries_in_order", "entries", ["book_account", "created_unix_ns", "transaction_id", "unit", "amount"]
    )
    op.create_table(
        "reversals",
        sa.Column("transaction_id", sa.String(160), primary_key=True),
        sa.Column("reverses", sa.String(160), nullable=False, unique=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_unix_ns", sa.BigInteger, nullable=False),
    )
    if dialect == "sqlite":
        _forbid_on_sqlite()
    else:
        _forbid_on_postgresql()


def _fill_in(connection: sa.Connection) -> None:
    """A bounded number of receipts at a time, however many there are."""
    some = sa.text(
        "SELECT position, account, seq, signed_bytes FROM receipts WHERE position > :after "
        "ORDER BY position LIMIT :most"
    )
    fill = sa.text(
        "UPDATE receipts SET end_unix_ns = :end_unix_ns, model = :model, region = :region, "
        "customer_tag = :customer_tag WHERE position = :position"
    )
    after = -1
    while rows := connection.execute(some, {"after": after, "most": _BATCH}).all():
        connection.execute(fill, [_members(row) for row in rows])
        after = rows[-1].position


def _members(row: "sa.Row[tuple[int, str, int, bytes]]") -> dict[str, object]:
    try:
        receipt = json.loads(row.signed_bytes)
        return {
            "position": row.position,
            "end_unix_ns": receipt["execution"]["end_unix_ns"],
            "model": receipt["workload"]["model"],
            "region": receipt["silicon"]["region"],
            "customer_tag": receipt["workload"]["customer_tag"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerUnusable(
            f"receipt {row.seq} of account {row.account} is damaged: its bytes are no receipt. The ledger was left as "
            "it is: restore it from a copy"
        ) from error


def _forbid_on_sqlite() -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER reversals_{change.lower()} BEFORE {change} ON reversals WHEN 1 "
            "BEGIN SELECT RAISE(ABORT, 'reversals are append-only'); END"
        )
    changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _UNCHANGING)
    op.execute(
        f"CREATE TRIGGER receipts_update BEFORE UPDATE ON receipts WHEN OLD.signature IS NOT NULL OR {changed} "
        f"BEGIN SELECT RAISE(ABORT, '{_ONCE}'); END"
    )


def _forbid_on_postgresql() -> None:
    """Earlier revisions made no triggers there."""
    op.execute(
        "CREATE OR REPLACE FUNCTION ledger_forbid() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in _TABLES:
        refuse = f"EXECUTE FUNCTION ledger_forbid('{table} are append-only')"
        op.execute(f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}")
        op.execute(f"CREATE TRIGGER {table}_delete BEFORE DELETE ON {table} FOR EACH ROW WHEN (true) {refuse}")
    for table in _NEVER_CHANGED:
        op.execute(
            f"CREATE TRIGGER {table}_update BEFORE UPDATE ON {table} FOR EACH ROW WHEN (true) "
            f"EXECUTE FUNCTION ledger_forbid('{table} are append-only')"
        )
    changed = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in _UNCHANGING)
    op.execute(
        "CREATE TRIGGER receipts_update BEFORE UPDATE ON receipts FOR EACH ROW "
        f"WHEN (OLD.signature IS NOT NULL OR {changed}) EXECUTE FUNCTION ledger_forbid('{_ONCE}')"
    )
