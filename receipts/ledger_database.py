"""The ledger's connections: one writer, durable commits; readers beside it; and errors in this room's words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, Self

from sqlalchemy import Connection, Engine, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from receipts.errors import LedgerError, LedgerUnavailable, LedgerUnusable
from receipts.ledger_postgresql import PostgresqlBackend
from receipts.ledger_schema import NEWEST_REVISION, ledger_revision, metadata
from receipts.ledger_sqlite import SqliteBackend

# What a ledger had before revisions had names.
_FIRST_VERSION_TABLE: Final = "schema_version"
_READERS: Final = 4
# PostgreSQL's names for two conditions, and what SQLite's driver says of a text that is none.
_FORBIDDEN: Final = "42501"
_READ_ONLY: Final = "25006"
_UNDECODABLE: Final = "Could not decode to UTF-8"


class _Backend(Protocol):
    """What differs between the databases. Their errors come as SQLAlchemy's, but for those named here."""

    def connect_writer(self) -> Connection:
        """Become the one writer and connect. `LedgerInUse`, `LedgerUnavailable`, `LedgerUnusable`."""

    def disconnect_writer(self, connection: Connection) -> None:
        """Close the connection, whatever state it is in, and let another writer in."""

    def is_lost(self, connection: Connection, /) -> bool:
        """Whether the connection, and what it held, is gone."""

    def reader_engine(self, connections: int) -> Engine:
        """So many connections at most, that cannot write. `LedgerUnavailable`, `LedgerUnusable`."""


class LedgerDatabase:
    """The one connection of the one writer; used by one thread at a time.

    When a server's connection is lost, the call under way fails, and the next one connects anew.
    """

    def __init__(self, backend: _Backend, secrets: tuple[str, ...]) -> None:
        """``secrets`` are left out of every message."""
        self._backend = backend
        self._secrets = secrets
        self._connection: Connection | None = None
        self._is_closed = False

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect; an empty database gets the tables, one of an earlier schema is brought up to date.

        Raises:
            LedgerInUse: another process writes to it.
            LedgerUnavailable: it cannot be reached or opened now.
            LedgerUnusable: not a ledger, damaged, or of a later version; or the URL is none.
        """
        parsed = _parsed(url)
        database = cls(_backend(parsed), _secrets(parsed))
        try:
            with database.transaction() as connection:
                _create_or_upgrade(connection)
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All that is done inside is durable when the block ends.

        When it raises, none of it happened; but where a server's connection broke off in the commit itself, all of
        it may have.

        Raises:
            LedgerUnavailable, LedgerUnusable: the database's own error, translated.
            LedgerInUse: the connection had been lost, and another writer has the ledger now.
        """
        with _translated(self._secrets):
            connection = self._connected()
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                if self._backend.is_lost(connection):
                    self._disconnect()
                raise

    def close(self) -> None:
        """Close the connection and let another writer in; doing so twice changes nothing."""
        self._is_closed = True
        self._disconnect()

    def _connected(self) -> Connection:
        """The connection that holds the ledger: nothing is ever written through another."""
        if self._is_closed:
            raise LedgerUnusable("the ledger is closed")
        if self._connection is None:
            self._connection = self._backend.connect_writer()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._backend.disconnect_writer(connection)


class ReadingDatabase:
    """Read-only connections beside the writer's, of a mesh that runs or not. Any thread may use it, several at once."""

    def __init__(self, engine: Engine, secrets: tuple[str, ...]) -> None:
        """``secrets`` are left out of every message."""
        self._engine = engine
        self._secrets = secrets

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect to a ledger; none is created, none is brought up to date.

        Raises:
            LedgerUnavailable: it is not there, or cannot be reached now.
            LedgerUnusable: not a ledger, damaged, or of another version; or the URL is none.
        """
        parsed = _parsed(url)
        database = cls(_backend(parsed).reader_engine(_READERS), _secrets(parsed))
        try:
            with database.snapshot() as connection:
                _check_revision(connection)
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One read transaction: all that is read inside is the ledger at one moment.

        A long one keeps the database from reusing space; read in pages where that goes. After a lost connection
        the next snapshot has a new one.

        Raises:
            LedgerUnavailable, LedgerUnusable: the database's own error, translated.
        """
        with _translated(self._secrets), self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections; doing so twice changes nothing."""
        self._engine.dispose()


def _parsed(url: str) -> URL:
    # The cause is left out, and the URL is not repeated: what is wrong may be a piece of the password.
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise LedgerUnusable(
            "not a database URL; it looks like sqlite:////FOLDER/ledger.sqlite3 or postgresql://USER@HOST/DATABASE"
        ) from None


def _backend(url: URL) -> _Backend:
    name = url.get_backend_name()
    if name == "sqlite":
        return SqliteBackend(url)
    if name == "postgresql":
        return PostgresqlBackend(url)
    raise LedgerUnusable(f"a ledger is kept on SQLite or PostgreSQL, not on {name}")


@contextmanager
def _translated(secrets: tuple[str, ...]) -> Iterator[None]:
    """The driver's own message only: SQLAlchemy's adds the statement and its values, which have no place in a log."""
    try:
        yield
    except NoConnectionFree:
        raise LedgerUnavailable("too many read the ledger at once") from None
    except DBAPIError as error:
        raise _meaning(error, _said(error, secrets)) from None
    except SQLAlchemyError as error:
        raise LedgerUnusable(f"the ledger's database cannot be used: {type(error).__name__}") from error


def _meaning(error: DBAPIError, said: str) -> LedgerError:
    """Whether the same call may be made again, or somebody has to do something, and what."""
    state = getattr(error.orig, "sqlstate", None)
    if state == _READ_ONLY:
        return LedgerUnavailable(f"the ledger's database takes no changes now: {said}")
    if state == _FORBIDDEN:
        return LedgerUnusable(
            f"the role that the ledger's URL names may not do what a ledger's has to: {said}. Make it the owner of the "
            "database, and of the tables where there are any"
        )
    if said.startswith(_UNDECODABLE):  # the text itself comes after it
        return LedgerUnusable("a text in the ledger's database is damaged; `jc ledger check` says where")
    if isinstance(error, OperationalError):
        return LedgerUnavailable(f"the ledger's database did not take it: {said}")
    if error.connection_invalidated:
        return LedgerUnavailable(f"the ledger's database was lost: {said}")
    return LedgerUnusable(f"the ledger's database is damaged or not a ledger: {said}")


def _said(error: DBAPIError, secrets: tuple[str, ...]) -> str:
    """What the driver says, in one line; of PostgreSQL's the first part only, for the others quote rows.

    The driver's exception is no cause to show either, for the same reason.
    """
    diagnosis = getattr(error.orig, "diag", None)
    said = getattr(diagnosis, "message_primary", None) or str(error.orig)
    said = " ".join(said.split())
    for secret in secrets:
        said = said.replace(secret, "***")
    return said


def _secrets(url: URL) -> tuple[str, ...]:
    given = (str(url.password or ""), *(url.query.get(name, "") for name in ("password", "sslpassword")))
    return tuple(each for each in given if isinstance(each, str) and each)


def _create_or_upgrade(connection: Connection) -> None:
    tables = inspect(connection).get_table_names()
    if not tables:
        metadata.create_all(connection, checkfirst=False)
        ledger_revision.create(connection)
        connection.execute(insert(ledger_revision).values(version_num=NEWEST_REVISION))
        return
    revision = _revision(connection, tables)
    if revision != NEWEST_REVISION:
        # Imported for an old ledger only: it would double the time that opening one takes.
        from receipts.ledger_migrations import upgrade

        upgrade(connection, revision)


def _check_revision(connection: Connection) -> None:
    tables = inspect(connection).get_table_names()
    if not tables:
        raise LedgerUnusable("the database is empty: no mesh has kept a ledger in it yet")
    revision = _revision(connection, tables)
    if revision != NEWEST_REVISION:
        raise LedgerUnusable(
            f"the ledger has schema revision {revision!r}, and this program reads {NEWEST_REVISION!r}; "
            "an older one is brought up to date when the mesh is started on it"
        )


def _revision(connection: Connection, tables: list[str]) -> str | None:
    """None for a ledger from before revisions had names."""
    if ledger_revision.name in tables:
        return connection.scalar(select(ledger_revision.c.version_num))
    if _FIRST_VERSION_TABLE not in tables:
        raise LedgerUnusable(f"the database has tables ({', '.join(sorted(tables)[:3])} …) but is not a ledger")
    return None
