"""A receipt's meter statement beside it; the number of the schema is Alembic's from here on."""

import sqlalchemy as sa
from alembic import op

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
    """Add the columns, empty in receipts from before; no row is rewritten, however many there are."""
    op.add_column("receipts", sa.Column("statement", sa.Text))
    op.add_column("receipts", sa.Column("statement_signature", sa.String(128)))
    op.drop_table("schema_version")
    if op.get_context().dialect.name == "sqlite":
        changed = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _UNCHANGING)
        op.execute("DROP TRIGGER receipts_update")
        op.execute(
            f"CREATE TRIGGER receipts_update BEFORE UPDATE ON receipts WHEN OLD.signature IS NOT NULL OR {changed} "
            "BEGIN SELECT RAISE(ABORT, 'a stored receipt gets its signature once and nothing else'); END"
        )
