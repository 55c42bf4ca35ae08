"""What Alembic runs around the revisions: it is handed the ledger's own connection, in a transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
