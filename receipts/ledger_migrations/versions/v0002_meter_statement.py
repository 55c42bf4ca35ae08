"""The meter's statement beside each receipt and failed attempt; the number of the schema is Alembic's from here on."""

import sqlalchemy as sa
from alembic import op

from receipts.errors import LedgerUnusable

revision = "0002"
down_revision = "0001"

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
)


def upgrade() -> None:
    """Add the columns, empty in rows from before; no row is rewritten, however many there are.

    Raises:
        LedgerUnusable: receipts wait for their signature, which they could never get without a statement.
    """
    if not op.get_context().as_sql:
        _refuse_unsigned(op.get_bind())
    for table in ("receipts", "failed_attempts"):
        op.add_column(table, sa.Column("statement", sa.Text))
        op.add_column(table, sa.Column("statement_signature", sa.String(128)))
    op.drop_table("schema_version")
    if op.get_context().dialect.name == "sqlite":
        changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _UNCHANGING)
        op.execute("DROP TRIGGER receipts_update")
        op.execute(
            f"CREATE TRIGGER receipts_update BEFORE UPDATE ON receipts WHEN OLD.signature IS NOT NULL OR {changed} "
            "BEGIN SELECT RAISE(ABORT, 'a stored receipt gets its signature once and nothing else'); END"
        )


def _refuse_unsigned(connection: sa.Connection) -> None:
    waiting = connection.scalar(sa.text("SELECT count(*) FROM receipts WHERE signature IS NULL"))
    if waiting:
        raise LedgerUnusable(
            f"the ledger is an earlier version's and holds receipts that wait for their signature ({waiting}). Signers "
            "now sign nothing without a statement of its meter, which these lack: they and all later receipts of their "
            "accounts would wait for ever. Run the earlier version on this data folder until it has signed them, then "
            "this one; or start this one with a new data folder. Nothing was changed"
        )
