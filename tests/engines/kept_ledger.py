"""A ledger's tables on PostgreSQL, emptied for each test and made anew only after one that changed them."""

from typing import Any

import psycopg
from opened_ledger import opened
from postgres import PostgresServer

# Which tables, columns, indexes, triggers and revision there are: whatever changes one of them is a later transaction.
_SHAPE = """
    WITH ours AS (SELECT oid, xmin FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    SELECT count(*), max(xmin::text::bigint) FROM (
        SELECT xmin FROM ours
        UNION ALL SELECT xmin FROM pg_attribute WHERE attrelid IN (SELECT oid FROM ours)
        UNION ALL SELECT xmin FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM ours)
        UNION ALL SELECT xmin FROM alembic_version
    ) AS parts
"""
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
_COUNT_FROM_ONE = "SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'"


class KeptLedger:
    """One database; making a ledger in it takes several times as long as emptying the one that is there."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._name = server.new_database()
        self._url = server.url(self._name)
        self._shape: tuple[object, ...] | None = None

    def emptied(self) -> str:
        """Its URL, now that a ledger without a row is there, as its first opening makes it, and nobody uses it."""
        with self._server.alone(self._name) as connection:
            if self._shape is not None and _shape(connection) == self._shape:
                _empty(connection)
                return self._url
        self._server.empty_database(self._name)
        opened(self._url).close()
        with self._server.connect(self._name) as connection:
            self._shape = _shape(connection)
        return self._url


def _shape(connection: psycopg.Connection[Any]) -> tuple[object, ...] | None:
    try:
        return connection.execute(_SHAPE).fetchone()
    except psycopg.errors.UndefinedTable:
        return None


def _empty(connection: psycopg.Connection[Any]) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # no trigger stops this
        for (table,) in connection.execute(_TABLES).fetchall():
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - the server named it
        connection.execute(_COUNT_FROM_ONE)
