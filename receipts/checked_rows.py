"""A ledger's rows as its check takes them: any column may hold anything where somebody went past the program."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

from sqlalchemy import Column, Connection, Row

_SHOWN: Final = 80


class ColumnTypes:
    """Which type each column of a query has to have: SQLite stores any in any."""

    def __init__(self, *columns: Column[Any]) -> None:
        self._columns = [(each.name, each.type.python_type, each.nullable) for each in columns]

    def checked(self, row: "Row[*tuple[Any, ...]]") -> tuple[Any, list[str]]:
        """A row that begins with these columns, and what is wrong; in a wrong value's place stands an empty one."""
        wrong = {}
        for (name, its_type, may_be_null), value in zip(self._columns, row, strict=False):
            if type(value) is not its_type and not (may_be_null and value is None):
                wrong[name] = (value, None if may_be_null else its_type())
        if not wrong:
            return row, []
        faults = [f"its column {name} has {shown(found)}, of another type" for name, (found, _) in wrong.items()]
        return SimpleNamespace(**{**row._asdict(), **{name: empty for name, (_, empty) in wrong.items()}}), faults


@contextmanager
def any_text(connection: Connection) -> Iterator[None]:
    """Text that is no UTF-8 comes as bytes meanwhile, from SQLite; its driver would give up the whole query."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.text_factory = _text
    try:
        yield
    finally:
        driver.text_factory = str


def shown(value: object) -> str:
    """A value from the database, short."""
    written = repr(value)
    return written if len(written) <= _SHOWN else f"{written[:_SHOWN]}…"


def _text(stored: bytes) -> str | bytes:
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored
