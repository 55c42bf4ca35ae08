"""A ledger on PostgreSQL: one database, one writer held by an advisory lock of its session.

The lock is the connection's: where the connection is gone the lock is too, and nothing is written before a new
connection has taken it again. Transactions never share it with a pooler that hands out another session each time.
"""

import os
import socket
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, Row, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from receipts.errors import LedgerError, LedgerInUse, LedgerUnavailable, LedgerUnusable

WRITER_LOCK: Final = int.from_bytes(b"jmledger")
"""The advisory lock's number, which is each database's own."""

_DRIVER: Final = "postgresql+psycopg"
_CONNECT_TIMEOUT_S: Final = 10
_DEAD_AFTER_S: Final = 30
# What libpq is told unless the URL says otherwise: a server that is gone without a word is noticed in half a minute.
_LIBPQ_DEFAULTS: Final = {
    "connect_timeout": str(_CONNECT_TIMEOUT_S),
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": str(_DEAD_AFTER_S * 1000),
}
_LOCK_WAIT_MS: Final = 5000
# The server in its turn notices that a writer's machine is gone, and lets another have the lock.
_SESSION_SETTINGS: Final = {
    "lock_timeout": str(_LOCK_WAIT_MS),
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": str(_DEAD_AFTER_S * 1000),
}
# A commit is acknowledged once it is on the disk; a server that waits for its standbys too goes on doing so.
_DURABLE_COMMITS: Final = ("on", "remote_apply")
_MOST_NAME_BYTES: Final = 63
# Through pg_settings: an older server lacks some of them.
_SET: Final = text(
    "SELECT set_config(given.name, given.value, false) "
    "FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS given(name, value) "
    "JOIN pg_settings USING (name)"
)
_OWN_SESSION: Final = text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
_HOLDER: Final = text(
    "SELECT l.pid, a.backend_start, a.application_name FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
    "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (l.classid::bigint << 32 | l.objid::bigint) = :number"
)


class PostgresqlBackend:
    """What is particular to PostgreSQL about opening a ledger."""

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername=_DRIVER)
        # Which session of the server's had the lock last, known by its process and when that began.
        self._session: Row[tuple[int, datetime]] | None = None

    def connect_writer(self) -> Connection:
        """Connect, and become the database's one writer for as long as the connection lives.

        Standbys, which only read, are passed by.

        Raises:
            LedgerInUse: another session is.
            LedgerUnavailable: one that this opened and lost still is, which the server was told to end.
            LedgerUnusable: the database cannot store every receipt, or not durably.
        """
        program = f"joule-mesh ledger, process {os.getpid()} on {socket.gethostname()}"[:_MOST_NAME_BYTES]
        options = {**_LIBPQ_DEFAULTS, "target_session_attrs": "read-write", "application_name": program}
        connection = create_engine(self._with(options), poolclass=NullPool, hide_parameters=True).connect()
        try:
            with connection.begin():
                self._prepare_writer(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def disconnect_writer(self, connection: Connection) -> None:
        """Close the connection and let another writer in."""
        with suppress(SQLAlchemyError), connection:
            if self.is_lost(connection):
                connection.invalidate()  # closed as it is: nothing more is said through it, nor through a new one
                return
            # By itself the server would notice a moment after this returns.
            connection.execute(text("SELECT pg_advisory_unlock(:number)"), {"number": WRITER_LOCK})

    def is_lost(self, connection: Connection) -> bool:
        """Whether the server, or the way to it, is gone, or the connection not fit for another transaction."""
        if connection.closed or connection.invalidated:
            return True
        driver: Any = connection.connection.driver_connection
        return driver is None or driver.info.transaction_status != TransactionStatus.IDLE

    def reader_engine(self, connections: int) -> Engine:
        """Connections that cannot write; each transaction sees the ledger as it was when it began to read."""
        options = {**_LIBPQ_DEFAULTS, "application_name": "joule-mesh ledger reader"}
        return create_engine(
            self._with(options),
            poolclass=QueuePool,
            pool_size=connections,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
        )

    def _prepare_writer(self, connection: Connection) -> None:
        encoding = connection.scalar(text("SHOW server_encoding"))
        if encoding != "UTF8":
            raise LedgerUnusable(f"{self._place} has the encoding {encoding}; make one with ENCODING 'UTF8'")
        if connection.scalar(text("SHOW fsync")) != "on":
            raise LedgerUnusable(
                f"{self._place} is on a server with fsync = off, which loses acknowledged receipts at a power cut; "
                "set fsync = on in its configuration"
            )
        settings = dict(_SESSION_SETTINGS)
        if connection.scalar(text("SHOW synchronous_commit")) not in _DURABLE_COMMITS:
            settings["synchronous_commit"] = "on"
        connection.execute(_SET, {"names": list(settings), "values": list(settings.values())})
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:number)"), {"number": WRITER_LOCK}):
            raise self._refusal(connection)
        self._session = connection.execute(_OWN_SESSION).one()

    def _refusal(self, connection: Connection) -> LedgerError:
        """Who has the lock; where it is the session that was lost here, which the server may notice late, end that."""
        holder = connection.execute(_HOLDER, {"number": WRITER_LOCK}).first()
        if holder is None:
            return LedgerInUse(f"{self._place} is in use by a session that has just ended; try again")
        if (holder.pid, holder.backend_start) == self._session:
            with suppress(SQLAlchemyError):
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": holder.pid})
            return LedgerUnavailable(f"{self._place} is still held by this process's own lost session; try again")
        name = f"{holder.application_name or 'another session'} (server process {holder.pid})"
        return LedgerInUse(f"{self._place} is in use by {name}; it takes one writer")

    @property
    def _place(self) -> str:
        """Never with the user or the password."""
        return f"the ledger in PostgreSQL's database {self._url.database!r} on {self._url.host or 'the local socket'}"

    def _with(self, options: dict[str, str]) -> URL:
        """The URL's own options come first."""
        return self._url.set(query={**options, **self._url.query})
