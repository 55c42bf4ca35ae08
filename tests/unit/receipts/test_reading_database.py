"""Reading a ledger beside its writer, on both databases."""

import threading
from collections.abc import Iterator

import pytest
from opened_ledger import opened, settle
from past_the_ledger import direct
from sqlalchemy import func, insert, select, text

from receipts.errors import LedgerUnavailable, LedgerUnusable
from receipts.ledger import Ledger
from receipts.ledger_database import ReadingDatabase
from receipts.ledger_schema import accounts, receipts


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = opened(ledger_url)
    ledger.create_key("acme", "test")
    yield ledger
    ledger.close()


@pytest.fixture
def reading(ledger_url: str, ledger: Ledger) -> Iterator[ReadingDatabase]:
    reading = ReadingDatabase.open(ledger_url)
    yield reading
    reading.close()
    reading.close()


def count(reading: ReadingDatabase) -> int:
    with reading.snapshot() as connection:
        return connection.scalar(select(func.count()).select_from(receipts))


def test_it_sees_what_was_committed(ledger: Ledger, reading: ReadingDatabase, make_settlement) -> None:
    assert count(reading) == 0
    settle(ledger, make_settlement(1))
    assert count(reading) == 1


def test_a_snapshot_is_one_moment_and_holds_up_no_writer(
    ledger: Ledger, reading: ReadingDatabase, make_settlement
) -> None:
    how_many = select(func.count()).select_from(receipts)
    settle(ledger, make_settlement(1))
    with reading.snapshot() as connection:
        assert connection.scalar(how_many) == 1
        settle(ledger, make_settlement(2))
        assert connection.scalar(how_many) == 1
    assert count(reading) == 2


def test_several_threads_read_at_once(ledger: Ledger, reading: ReadingDatabase, make_settlement) -> None:
    settle(ledger, make_settlement(1))
    together = threading.Barrier(4, timeout=20)
    seen: list[int] = []

    def read() -> None:
        with reading.snapshot() as connection:
            together.wait()
            seen.append(connection.scalar(select(func.count()).select_from(receipts)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert seen == [1, 1, 1, 1]


def test_it_cannot_write(ledger: Ledger, reading: ReadingDatabase) -> None:
    with (
        pytest.raises((LedgerUnavailable, LedgerUnusable), match=r"readonly|read-only"),
        reading.snapshot() as connection,
    ):
        connection.execute(insert(accounts), {"account": "mine", "created_unix_ns": 0})
    with reading.snapshot() as connection:
        assert list(connection.scalars(select(accounts.c.account))) == ["acme"]


def test_an_error_of_the_reader_is_its_own_and_the_connection_goes_back(reading: ReadingDatabase) -> None:
    for _ in range(20):
        with pytest.raises(KeyError), reading.snapshot():
            raise KeyError
    assert count(reading) == 0


def test_it_reads_when_no_writer_is_there(ledger_url: str, ledger: Ledger, make_settlement) -> None:
    settle(ledger, make_settlement(1))
    ledger.close()
    reading = ReadingDatabase.open(ledger_url)
    assert count(reading) == 1
    reading.close()


def test_it_makes_no_ledger(empty_url: str) -> None:
    with pytest.raises(
        (LedgerUnavailable, LedgerUnusable),
        match=r"there is no ledger /.*ledger.sqlite3; a mesh makes|the database is empty",
    ):
        ReadingDatabase.open(empty_url)
    opened(empty_url).close()


def test_it_brings_none_up_to_date(ledger_url: str, ledger: Ledger) -> None:
    ledger.close()
    with direct(ledger_url) as older:
        older.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    with pytest.raises(
        LedgerUnusable, match=r"schema revision '0002', and this program reads '0004'.* brought up to date"
    ):
        ReadingDatabase.open(ledger_url)


def test_another_programs_database_is_none(empty_url: str) -> None:
    with direct(empty_url) as other:
        other.execute(text("CREATE TABLE theirs (x int)"))
    with pytest.raises(LedgerUnusable, match="is not a ledger"):
        ReadingDatabase.open(empty_url)


def test_a_ledger_in_memory_is_its_writers_only() -> None:
    with pytest.raises(LedgerUnusable, match="in memory can be read by its writer only"):
        ReadingDatabase.open("sqlite://")
