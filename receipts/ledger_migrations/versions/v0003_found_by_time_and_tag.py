"""Receipts can be found by time, model, region and tag; entries in order; reversals; PostgreSQL's triggers."""

import json

import sqlalchemy as sa
from alembic import op

from receipts.errors import LedgerUnusable

revision = "0003"
down_revision = "0002"

_BATCH = 1000
_NEVER_CHANGED = ("accounts", "entries", "failed_attempts", "reversals")
_UNIQUE = {
    "accounts": (("account",),),
    "api_keys": (("sha256",),),
    "receipts": (("account", "request_id"), ("account", "seq"), ("receipt_id",)),
    "failed_attempts": (("settlement_sha256",),),
    "entries": (("transaction_id", "unit", "book_account"),),
    "reversals": (("reverses",), ("transaction_id",)),
}
_UNCHANGING = (
    "position",
    "receipt_id",
    "account",
    "request_id",
    "seq",
    "signed_bytes",
    "signed_sha256",
    "created_unix_ns",
    "statement",
    "statement_signature",
    "end_unix_ns",
    "model",
    "region",
    "customer_tag",
)
_SIGNED_ONCE = "a stored receipt gets its signature once and nothing else"
_UNCHANGING_IN_A_KEY = ("sha256", "account", "name", "created_unix_ns")
_REVOKED_ONCE = "an API key is revoked once and otherwise stays as it is"


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
    op.create_index("receipts_by_end", "receipts", ["account", "end_unix_ns", "seq"])
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


def _more_than_a_signature(differs: str) -> str:
    changed = " OR ".join(f"OLD.{name} {differs} NEW.{name}" for name in _UNCHANGING)
    return f"OLD.signature IS NOT NULL OR length(NEW.signature) <> 64 OR {changed}"


def _more_than_a_revocation(differs: str) -> str:
    changed = " OR ".join(f"OLD.{name} {differs} NEW.{name}" for name in _UNCHANGING_IN_A_KEY)
    return f"OLD.revoked_unix_ns IS NOT NULL OR {changed}"


def _forbid_on_sqlite() -> None:
    """Earlier revisions let accounts and keys be changed, and rows be replaced."""
    another_row = "OLD.rowid IS NOT NEW.rowid OR "
    _abort("reversals", "DELETE", "1", "reversals are append-only")
    for table in ("accounts", "reversals"):
        _abort(table, "UPDATE", "1", f"{table} are append-only")
    _abort("receipts", "UPDATE", another_row + _more_than_a_signature("IS NOT"), _SIGNED_ONCE)
    _abort("api_keys", "UPDATE", another_row + _more_than_a_revocation("IS NOT"), _REVOKED_ONCE)
    for table, keys in _UNIQUE.items():
        same_key = [" AND ".join(f"{column} = NEW.{column}" for column in key) for key in keys]
        taken = [f"EXISTS (SELECT 1 FROM {table} WHERE {each})" for each in ("rowid = NEW.rowid", *same_key)]  # noqa: S608 - our own names
        condition = " OR ".join([f"NEW.rowid <> -1 AND {taken[0]}", *taken[1:]])
        _abort(table, "INSERT", condition, f"{table} are append-only")


def _abort(table: str, change: str, condition: str, reason: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} WHEN {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{reason}'); END"
    )


def _forbid_on_postgresql() -> None:
    """Earlier revisions made no triggers there."""
    op.execute(
        "CREATE OR REPLACE FUNCTION ledger_forbid() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION USING MESSAGE = TG_ARGV[0], ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in _UNIQUE:
        op.execute(
            f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION ledger_forbid('{table} are append-only')"
        )
        _refuse(table, "DELETE", "true", f"{table} are append-only")
    for table in _NEVER_CHANGED:
        _refuse(table, "UPDATE", "true", f"{table} are append-only")
    _refuse("receipts", "UPDATE", _more_than_a_signature("IS DISTINCT FROM"), _SIGNED_ONCE)
    _refuse("api_keys", "UPDATE", _more_than_a_revocation("IS DISTINCT FROM"), _REVOKED_ONCE)


def _refuse(table: str, change: str, condition: str, reason: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_{change.lower()} BEFORE {change} ON {table} FOR EACH ROW WHEN ({condition}) "
        f"EXECUTE FUNCTION ledger_forbid('{reason}')"
    )
