"""Brings a ledger of an earlier schema up to date: Alembic's revisions, run from within the package.

A fresh database doesn't come this way: it is made from `receipts.ledger_schema` as it stands, which a test holds to be
what the revisions lead to. Nothing here needs a configuration file, and there is no way back: what is stored stays.
"""

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from receipts.errors import LedgerUnusable
from receipts.ledger_schema import FIRST_REVISION, NEWEST_REVISION


def upgrade(connection: Connection, found: str | None, *, to: str = NEWEST_REVISION) -> None:
    """Run the revisions after ``found`` within the connection's transaction, which the caller commits.

    ``found`` is None for a ledger that was made before revisions had names.

    Raises:
        LedgerUnusable: ``found`` is no revision that this program knows.
    """
    config = Config()
    config.set_main_option("script_location", "receipts:ledger_migrations")
    config.attributes["connection"] = connection
    try:
        if found is None:
            command.stamp(config, FIRST_REVISION)
        command.upgrade(config, to)
    except CommandError as error:
        raise LedgerUnusable(
            f"the ledger has schema revision {found!r}; this program knows them up to {NEWEST_REVISION!r}"
        ) from error
