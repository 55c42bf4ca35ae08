"""The ledger's connection: one writer, durable commits, and errors in this room's words."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from receipts.errors import LedgerInUse, LedgerUnavailable, LedgerUnusable
from receipts.ledger_schema import NEWEST_REVISION, ledger_revision, metadata

# Another process may look at the file (a backup, a shell), which holds it for moments.
_LOCK_WAIT_S: Final = 5.0
# What a ledger had before revisions had names.
_FIRST_VERSION_TABLE: Final = "schema_version"


class LedgerDatabase:
    """The one connection of the one writer; used by one thread at a time."""

    def __init__(self, engine: Engine, connection: Connection, lock: "_WriterLock | None") -> None:
        self._engine = engine
        self._connection = connection
        self._lock = lock

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect; an empty database gets the tables, one of an earlier schema is brought up to date.

        Raises:
            LedgerInUse: another process writes to this SQLite file.
            LedgerUnavailable: it cannot be reached or opened now.
            LedgerUnusable: not a ledger, damaged, or of a later version; or the URL is none.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise LedgerUnusable(f"not a database URL: {url!r}") from error
        lock = _WriterLock.take(parsed) if _is_file(parsed) else None
        try:
            engine = _engine(parsed)
            with _translated():
                database = cls(engine, engine.connect(), lock)
            with database.transaction() as connection:
                _create_or_upgrade(connection)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return database

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All that is done inside is durable when the block ends, or none of it happened.

        Raises:
            LedgerUnavailable, LedgerUnusable: the database's own error, translated.
        """
        with _translated(), self._connection.begin():
            yield self._connection

    def close(self) -> None:
        """Close the connection and let another writer in; doing so twice changes nothing."""
        self._connection.close()
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@contextmanager
def _translated() -> Iterator[None]:
    """The driver's own message only: SQLAlchemy's adds the statement and its values, which have no place in a log."""
    try:
        yield
    except OperationalError as error:
        raise LedgerUnavailable(f"the ledger's database did not take it: {error.orig}") from error
    except DBAPIError as error:
        raise LedgerUnusable(f"the ledger's database is damaged or not a ledger: {error.orig}") from error
    except SQLAlchemyError as error:
        raise LedgerUnusable(f"the ledger's database cannot be used: {type(error).__name__}") from error


def _is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")


def _engine(url: URL) -> Engine:
    # A single connection for the ledger's life: what it holds (SQLite's write-ahead log) is set up once.
    engine = create_engine(url, poolclass=StaticPool, hide_parameters=True)
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own connection
    # The driver would begin transactions by itself, only before the first write: what was read before could change.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout = {int(_LOCK_WAIT_S * 1000)}",
        "journal_mode = WAL",
        # In WAL mode only FULL syncs the log at each commit; a lesser level loses acknowledged receipts at a power cut.
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # Not IMMEDIATE: there is one writer, and reading goes on while a backup holds the file.
    connection.exec_driver_sql("BEGIN")


def _create_or_upgrade(connection: Connection) -> None:
    tables = inspect(connection).get_table_names()
    if not tables:
        metadata.create_all(connection)
        ledger_revision.create(connection)
        connection.execute(insert(ledger_revision).values(version_num=NEWEST_REVISION))
        return
    revision = None
    if ledger_revision.name in tables:
        revision = connection.scalar(select(ledger_revision.c.version_num))
    elif _FIRST_VERSION_TABLE not in tables:
        raise LedgerUnusable(f"the database has tables ({', '.join(sorted(tables)[:3])} …) but is not a ledger")
    if revision != NEWEST_REVISION:
        # Imported for an old ledger only: it would double the time that opening one takes.
        from receipts.ledger_migrations import upgrade

        upgrade(connection, revision)


class _WriterLock:
    """A lock on ``FILE.lock`` beside the database: it dies with its process, so nothing stale can be left."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, url: URL) -> Self:
        """Take the lock and create the database file, readable by its owner only.

        Raises:
            LedgerInUse: another process has it.
            LedgerUnavailable: the folder is missing or not writable.
        """
        database = Path(url.database or "").absolute()
        try:
            database.touch(mode=0o600)
            descriptor = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerUnavailable(f"the ledger {database} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise LedgerInUse(f"the ledger {database} is in use by process {holder}; it takes one writer") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let another writer in."""
        os.close(self._descriptor)
