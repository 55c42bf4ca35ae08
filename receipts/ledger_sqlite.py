"""A ledger on SQLite: one file, one writer held by a lock beside it, readers in WAL mode."""

import fcntl
import os
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool, QueuePool

from receipts.errors import LedgerInUse, LedgerUnavailable, LedgerUnusable

# Another process may look at the file (a backup, a shell), which holds it for moments.
_LOCK_WAIT_S: Final = 5.0
_BUSY_TIMEOUT: Final = f"PRAGMA busy_timeout = {int(_LOCK_WAIT_S * 1000)}"
_WRITER_PRAGMAS: Final = (
    _BUSY_TIMEOUT,
    "PRAGMA journal_mode = WAL",
    # In WAL mode only FULL syncs the log at each commit; a lesser level loses acknowledged receipts at a power cut.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


class SqliteBackend:
    """What is particular to SQLite about opening a ledger."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._lock: _WriterLock | None = None

    def connect_writer(self) -> Connection:
        """Become the file's one writer and connect; the file is made, readable by its owner only.

        Raises:
            LedgerInUse: another process has it.
            LedgerUnavailable: the folder is missing or not writable.
        """
        if self._is_file:
            self._lock = _WriterLock.take(self._path)
        engine = create_engine(self._url, poolclass=NullPool, hide_parameters=True)
        event.listen(engine, "connect", _prepare_writer)
        event.listen(engine, "begin", _begin)
        try:
            return engine.connect()
        except BaseException:
            self._release()
            raise

    def disconnect_writer(self, connection: Connection) -> None:
        """Close the connection and let another writer in."""
        connection.close()
        self._release()

    def is_lost(self, _connection: Connection) -> bool:
        """Never: there is no server that could be gone."""
        return False

    def reader_engine(self, connections: int) -> Engine:
        """Connections that cannot write; each transaction sees the ledger as it was when it began to read.

        Raises:
            LedgerUnusable: the database is in memory, where nobody else can read it.
            LedgerUnavailable: there is no such file.
        """
        if not self._is_file:
            raise LedgerUnusable("a ledger in memory can be read by its writer only")
        if not self._path.is_file():
            raise LedgerUnavailable(f"there is no ledger {self._path}; a mesh makes one when it is started")
        address = f"{self._path.as_uri()}?mode=ro"
        engine = create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(address, uri=True, check_same_thread=False),
            poolclass=QueuePool,
            pool_size=connections,
            max_overflow=0,
            hide_parameters=True,
        )
        event.listen(engine, "connect", _prepare_reader)
        event.listen(engine, "begin", _begin)
        return engine

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def _is_file(self) -> bool:
        return self._url.database not in (None, "", ":memory:")

    @property
    def _path(self) -> Path:
        """The file itself: by whichever link it is come to, it has one lock."""
        return Path(self._url.database or "").resolve()


def _prepare_writer(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own connection
    # The driver would begin transactions by itself, only before the first write: what was read before could change.
    connection.isolation_level = None
    # A damaged text is then known by its place (`receipts.ledger_rows`); else all that is read with it would be lost.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    for pragma in _WRITER_PRAGMAS:
        connection.execute(pragma)


def _prepare_reader(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own connection
    connection.isolation_level = None
    connection.execute(_BUSY_TIMEOUT)


def _begin(connection: Connection) -> None:
    # Not IMMEDIATE: there is one writer, and reading goes on while a backup holds the file.
    connection.exec_driver_sql("BEGIN")


class _WriterLock:
    """A lock on ``FILE.lock`` beside the database: it dies with its process, so nothing stale can be left."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, database: Path) -> Self:
        """Take the lock and create the database file, readable by its owner only.

        Raises:
            LedgerInUse: another process has it.
            LedgerUnavailable: the folder is missing or not writable.
        """
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
