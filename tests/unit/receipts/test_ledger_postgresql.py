"""What is particular to a ledger on a server: its lock, and a server that goes away and comes back."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opened_ledger import CHARGE_USD_PICOS, imbalance, opened, settle
from past_the_ledger import direct
from postgres import GUARDED, PASSWORD, PostgresServer
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import IntegrityError

from receipts.errors import LedgerError, LedgerInUse, LedgerUnavailable, LedgerUnusable
from receipts.ledger import Ledger
from receipts.ledger_database import LedgerDatabase, ReadingDatabase
from receipts.ledger_postgresql import WRITER_LOCK
from receipts.ledger_reader import place_statement
from receipts.ledger_schema import metadata, receipts


@pytest.fixture
def url(postgres_server: PostgresServer, postgres_database: str) -> str:
    return postgres_server.url(postgres_database)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = opened(url)
    ledger.create_key("acme", "test")
    yield ledger
    ledger.close()


@pytest.fixture
def own_database(postgres_server: PostgresServer) -> Iterator[str]:
    """For tests that change the database's own settings."""
    name = postgres_server.new_database()
    yield name
    postgres_server.drop_database(name)


def backend_pid(ledger: Ledger) -> int:
    with ledger._database.transaction() as connection:
        return connection.scalar(text("SELECT pg_backend_pid()"))


def setting(ledger: Ledger, name: str) -> str:
    with ledger._database.transaction() as connection:
        return connection.scalar(text(f"SHOW {name}"))


def holders(url: str) -> int:
    with direct(url) as other:
        query = text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return other.scalar(query)


def end_when_committed(server: PostgresServer, pid: int) -> None:
    waits = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
    with server.connect() as connection:
        while connection.execute(waits, [pid]).fetchone() is None:
            pass
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@contextmanager
def half_broken(ledger: Ledger) -> Iterator[None]:
    """The client's side of its connection is gone; the server's is not, while the block lasts."""
    with ledger._database.transaction() as connection:
        number = connection.connection.driver_connection.pgconn.socket
    kept, nothing = os.dup(number), os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, number)
    os.close(nothing)
    try:
        yield
    finally:
        os.close(kept)


class TestLostConnection:
    def test_the_call_fails_and_the_next_one_takes_the_lock_again(
        self, url: str, ledger: Ledger, postgres_server: PostgresServer, make_settlement
    ) -> None:
        settle(ledger, make_settlement(1))
        assert ledger.balance_usd_picos("acme") == ledger.cached_balance_usd_picos("acme")
        lost = backend_pid(ledger)
        postgres_server.execute(f"SELECT pg_terminate_backend({lost}, 5000)")
        with pytest.raises(LedgerUnavailable, match=r"administrator command|closed"):
            ledger.settle([make_settlement(2)])
        assert ledger.cached_balance_usd_picos("acme") is None, "somebody else may have written meanwhile"
        assert settle(ledger, make_settlement(2))[0].seq == 2
        assert backend_pid(ledger) != lost
        assert holders(url) == 1

    def test_a_server_that_crashes_and_recovers(
        self, ledger: Ledger, postgres_server: PostgresServer, make_settlement
    ) -> None:
        """``kill -9`` of one session makes the server throw out all others and recover; then it goes on."""
        acknowledged = settle(ledger, make_settlement(1))
        postgres_server.kill_backend(backend_pid(ledger))
        failures = 0
        number = 2
        while number < 10:
            try:
                acknowledged += settle(ledger, make_settlement(number))
                number += 1
            except LedgerUnavailable:
                failures += 1
        assert failures >= 1
        assert ledger.unsigned(100) == acknowledged
        assert [each.seq for each in acknowledged] == list(range(1, 10))
        assert imbalance(ledger) == []

    def test_a_server_that_is_away(
        self, url: str, ledger: Ledger, postgres_server: PostgresServer, make_settlement
    ) -> None:
        settle(ledger, make_settlement(1))
        reading = ReadingDatabase.open(url)
        postgres_server.stop()
        try:
            for _ in range(2):
                with pytest.raises(LedgerUnavailable):
                    ledger.settle([make_settlement(2)])
                with pytest.raises(LedgerUnavailable), reading.snapshot():
                    pass
            with pytest.raises(LedgerUnavailable, match=r"did not take it: connection .* No such file"):
                opened(url)
            with pytest.raises(LedgerUnavailable, match=r"did not take it: connection .* No such file"):
                ReadingDatabase.open(url)
        finally:
            postgres_server.start()
        assert settle(ledger, make_settlement(2))[0].seq == 2
        with reading.snapshot() as connection:
            assert connection.scalar(select(func.count()).select_from(receipts)) == 2
        reading.close()

    def test_it_does_not_write_where_another_has_taken_over(
        self, url: str, ledger: Ledger, postgres_server: PostgresServer, make_settlement
    ) -> None:
        settle(ledger, make_settlement(1))
        postgres_server.execute(f"SELECT pg_terminate_backend({backend_pid(ledger)}, 5000)")
        second = opened(url)
        for _ in range(3):
            with pytest.raises(LedgerError):
                ledger.settle([make_settlement(2)])
        with pytest.raises(LedgerInUse, match="is in use by joule-mesh ledger, process"):
            ledger.settle([make_settlement(2)])
        assert settle(second, make_settlement(3))[0].seq == 2
        second.close()
        assert settle(ledger, make_settlement(2))[0].seq == 3, "and writes again when it may"

    def test_a_connection_lost_in_the_midst_of_a_transaction_stores_nothing(
        self, ledger: Ledger, postgres_server: PostgresServer, make_settlement
    ) -> None:
        def lose() -> None:
            with ledger._database.transaction() as connection:
                pid = connection.scalar(text("SELECT pg_backend_pid()"))
                connection.execute(text("INSERT INTO accounts VALUES ('half', 0)"))
                postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")

        with pytest.raises(LedgerUnavailable):
            lose()
        with ledger._database.transaction() as connection:
            assert list(connection.scalars(text("SELECT account FROM accounts"))) == ["acme"]

    def test_a_commit_whose_answer_is_lost_is_stored_once(
        self, ledger: Ledger, postgres_server: PostgresServer, make_settlement
    ) -> None:
        """The server has committed and waits for a standby that never comes, when its session is ended."""
        postgres_server.stop()
        postgres_server.start(synchronous_standby_names="nobody")
        try:
            with pytest.raises(LedgerUnavailable):
                ledger.balance_usd_picos("acme")
            before = ledger.balance_usd_picos("acme")
            pid = backend_pid(ledger)
            killer = threading.Thread(target=end_when_committed, args=[postgres_server, pid])
            killer.start()
            with pytest.raises(LedgerUnavailable):
                ledger.settle([make_settlement(1)])
            killer.join()
        finally:
            postgres_server.stop()
            postgres_server.start()
        assert ledger.cached_balance_usd_picos("acme") is None, "nobody here knows"
        assert len(ledger.waiting()) == 1
        assert settle(ledger, make_settlement(1))[0].seq == 1
        assert ledger.balance_usd_picos("acme") == before - CHARGE_USD_PICOS
        assert len(ledger.waiting()) == 1

    def test_its_own_session_that_the_server_still_has_is_ended(
        self, url: str, ledger: Ledger, make_settlement
    ) -> None:
        """Only this side of the connection broke: the server would hold the lock until it noticed."""
        settle(ledger, make_settlement(1))
        lost = backend_pid(ledger)
        with half_broken(ledger):
            with pytest.raises(LedgerUnavailable):
                ledger.settle([make_settlement(2)])
            with pytest.raises(LedgerUnavailable, match="still held by this process's own lost session; try again"):
                ledger.settle([make_settlement(2)])
            while holders(url):
                pass
            assert settle(ledger, make_settlement(2))[0].seq == 2
        assert backend_pid(ledger) != lost
        assert holders(url) == 1

    def test_no_connection_is_made_to_let_go_of_a_lost_one(self, url: str, ledger: Ledger) -> None:
        made: list[object] = []

        def note(*_: object) -> None:
            made.append(None)

        event.listen(Engine, "do_connect", note)
        try:
            with direct(url) as other:
                other.execute(text(f"SELECT pg_terminate_backend({backend_pid(ledger)}, 5000)"))
            made.clear()
            with pytest.raises(LedgerUnavailable):
                ledger.has_keys()
            assert made == []
        finally:
            event.remove(Engine, "do_connect", note)

    def test_a_connection_that_was_left_in_the_midst_of_something_is_not_used_again(self, ledger: Ledger) -> None:
        def leave() -> None:
            with ledger._database.transaction() as connection:
                driver = connection.connection.driver_connection
                driver.pgconn.send_query(b"SELECT pg_sleep(0)")
                raise KeyError

        before = backend_pid(ledger)
        with pytest.raises((KeyError, LedgerUnavailable)):
            leave()
        says = set()
        for _ in range(5):
            try:
                assert backend_pid(ledger) != before
            except LedgerUnavailable as error:
                says.add(str(error))
        assert backend_pid(ledger) != before
        assert len(says) <= 1

    def test_a_reader_gets_a_new_connection(self, url: str, ledger: Ledger, postgres_server: PostgresServer) -> None:
        reading = ReadingDatabase.open(url)

        def lose() -> None:
            with reading.snapshot() as connection:
                pid = connection.scalar(text("SELECT pg_backend_pid()"))
                postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
                connection.scalar(text("SELECT 1"))

        with pytest.raises(LedgerUnavailable):
            lose()
        with reading.snapshot() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        reading.close()


class TestSession:
    def test_a_server_that_syncs_nothing_is_refused(self, postgres_server: PostgresServer, own_database: str) -> None:
        url = postgres_server.url(own_database)
        opened(url).close()
        postgres_server.stop()
        postgres_server.start(fsync="off")
        try:
            with pytest.raises(
                LedgerUnusable, match=r"fsync = off, which loses acknowledged receipts .* set fsync = on"
            ):
                opened(url)
            ReadingDatabase.open(url).close()
        finally:
            postgres_server.stop()
            postgres_server.start()

    def test_a_commit_is_on_the_disk_whatever_the_servers_default_is(
        self, postgres_server: PostgresServer, own_database: str
    ) -> None:
        url = postgres_server.url(own_database)
        for default, ours in (("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")):
            postgres_server.execute(f"ALTER DATABASE {own_database} SET synchronous_commit = {default}")
            ledger = opened(url)
            assert setting(ledger, "synchronous_commit") == ours
            ledger.close()

    def test_no_setting_of_the_servers_ends_an_idle_writer(
        self, postgres_server: PostgresServer, own_database: str
    ) -> None:
        url = postgres_server.url(own_database)
        for name in ("idle_session_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            postgres_server.execute(f"ALTER DATABASE {own_database} SET {name} = 60000")
        ledger = opened(url)
        assert {setting(ledger, name) for name in ("idle_session_timeout", "statement_timeout")} == {"0"}
        ledger.close()

    def test_a_new_connection_is_set_up_as_the_first(self, postgres_server: PostgresServer, own_database: str) -> None:
        ledger = opened(postgres_server.url(own_database))
        postgres_server.execute(f"ALTER DATABASE {own_database} SET synchronous_commit = off")
        postgres_server.execute(f"SELECT pg_terminate_backend({backend_pid(ledger)}, 5000)")
        with pytest.raises(LedgerUnavailable):
            ledger.has_keys()
        assert setting(ledger, "synchronous_commit") == "on"
        ledger.close()

    def test_two_ledgers_of_one_server_have_a_writer_each(
        self, ledger: Ledger, postgres_server: PostgresServer
    ) -> None:
        name = postgres_server.new_database()
        other = opened(postgres_server.url(name))
        assert not other.has_keys()
        other.close()
        postgres_server.drop_database(name)

    def test_the_lock_is_there_to_be_seen(self, url: str, ledger: Ledger) -> None:
        assert holders(url) == 1
        with direct(url) as other:
            assert not other.scalar(text("SELECT pg_try_advisory_lock(:number)"), {"number": WRITER_LOCK})
        ledger.close()
        assert holders(url) == 0

    def test_a_database_that_cannot_store_every_text_is_refused(self, postgres_server: PostgresServer) -> None:
        name = postgres_server.new_database("LATIN1")
        with pytest.raises(LedgerUnusable, match="has the encoding LATIN1; make one with ENCODING 'UTF8'"):
            opened(postgres_server.url(name))
        postgres_server.drop_database(name)

    def test_a_server_that_only_reads_is_passed_by(self, postgres_server: PostgresServer, own_database: str) -> None:
        url = postgres_server.url(own_database)
        opened(url).close()
        postgres_server.execute(f"ALTER DATABASE {own_database} SET default_transaction_read_only = on")
        with pytest.raises(LedgerUnavailable, match="session is read-only"):
            opened(url)
        ReadingDatabase.open(url).close()


class TestMessages:
    @pytest.mark.parametrize(
        "form", ["{user}:{password}@/{name}?host={host}", "{user}@/{name}?host={host}&password={password}"]
    )
    def test_a_wrong_password_is_not_repeated(
        self, postgres_server: PostgresServer, postgres_database: str, form: str
    ) -> None:
        host = postgres_server.url("x").rpartition("=")[2]
        for password, opens in (("geheim-und-falsch", False), (PASSWORD, True)):
            url = "postgresql+psycopg://" + form.format(
                user=GUARDED, password=password, name=postgres_database, host=host
            )
            if opens:
                ledger = opened(url)
                assert PASSWORD not in repr(ledger._database)
                with pytest.raises(LedgerInUse) as raised:
                    opened(url)
                ledger.close()
            else:
                with pytest.raises(LedgerUnavailable, match="password authentication failed") as raised:
                    opened(url)
            assert password not in f"{raised.value!r} {raised.value.__cause__!r}"

    def test_a_password_that_the_server_repeats_is_left_out(self, postgres_server: PostgresServer) -> None:
        """As when the parts of a URL were mixed up."""
        url = postgres_server.url("geheim").replace("ledger@", "ledger:geheim@")
        with pytest.raises(LedgerUnavailable, match=r'database "\*\*\*" does not exist') as raised:
            opened(url)
        assert "geheim" not in f"{raised.value!r} {raised.value.__cause__!r}"

    def test_no_row_is_in_an_error(self, ledger: Ledger) -> None:
        def twice() -> None:
            with ledger._database.transaction() as connection:
                connection.execute(text("INSERT INTO accounts VALUES ('acme', 0)"))

        with pytest.raises(
            LedgerUnusable, match='duplicate key value violates unique constraint "accounts_pkey"'
        ) as raised:
            twice()
        assert "acme" not in f"{raised.value!r} {raised.value.__cause__!r}"
        assert "INSERT" not in str(raised.value)
        assert ledger.has_keys()

    @pytest.mark.parametrize("state", ["53100", "58030"])
    def test_a_full_disk_is_said_to_be_so_and_loses_nothing(
        self, url: str, ledger: Ledger, make_settlement, state: str
    ) -> None:
        """The server's own answer to it, raised where the entries are stored: after the receipts were."""
        settle(ledger, make_settlement(1))
        with direct(url) as other:
            other.execute(
                text(
                    "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING "
                    f"MESSAGE = 'could not extend file: No space left on device', ERRCODE = '{state}'; END $$"
                )
            )
            other.execute(text("CREATE TRIGGER full_disk BEFORE INSERT ON entries EXECUTE FUNCTION full_disk()"))
        with pytest.raises(LedgerUnavailable, match="did not take it: could not extend file: No space left on device"):
            ledger.settle([make_settlement(2)])
        assert len(ledger.unsigned(10)) == 1
        with direct(url) as other:
            other.execute(text("DROP TRIGGER full_disk ON entries"))
        assert settle(ledger, make_settlement(2))[0].seq == 2

    def test_a_database_that_is_not_there_is_named(self, postgres_server: PostgresServer) -> None:
        with pytest.raises(LedgerUnavailable, match='database "nowhere" does not exist'):
            opened(postgres_server.url("nowhere"))

    def test_a_user_who_may_not_write_is_told(self, url: str, ledger: Ledger, postgres_server: PostgresServer) -> None:
        ledger.close()
        postgres_server.execute("CREATE ROLE looker LOGIN")
        with direct(url) as other:
            other.execute(text("GRANT USAGE ON SCHEMA public TO looker"))
        with pytest.raises(LedgerUnusable, match=r"may not do .*: permission denied for table .* Make it the owner"):
            opened(url.replace("ledger@", "looker@"))

    def test_a_new_role_is_told_what_it_lacks_and_that_is_enough(
        self, postgres_server: PostgresServer, own_database: str
    ) -> None:
        """Since PostgreSQL 15 only a database's owner may make tables in it."""
        postgres_server.execute("CREATE ROLE newcomer LOGIN")
        url = postgres_server.url(own_database, "newcomer")
        says = "may not do .*: permission denied for schema public. Make it the owner of the database"
        with pytest.raises(LedgerUnusable, match=says):
            opened(url)
        postgres_server.execute(f"ALTER DATABASE {own_database} OWNER TO newcomer")
        opened(url).close()

    def test_a_server_that_takes_no_changes_for_a_while(
        self, postgres_server: PostgresServer, own_database: str, make_settlement
    ) -> None:
        ledger = opened(postgres_server.url(own_database))
        ledger.create_key("acme", "test")
        with ledger._database.transaction() as connection:
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
        with pytest.raises(LedgerUnavailable, match="takes no changes now: cannot execute INSERT in a read-only"):
            ledger.settle([make_settlement(1)])
        with ledger._database.transaction() as connection:
            connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"))
        assert settle(ledger, make_settlement(1))[0].seq == 1
        ledger.close()


@pytest.mark.parametrize("table", [each.name for each in metadata.sorted_tables])
def test_no_table_is_emptied_past_the_triggers_either(url: str, ledger: Ledger, table: str) -> None:
    with pytest.raises(IntegrityError, match="append-only"), direct(url) as other:
        other.execute(text(f"TRUNCATE {table} CASCADE"))


def test_places_in_time_come_from_the_index_alone(url: str, ledger: Ledger) -> None:
    """With few rows there it would read them all, or take either index: that is forbidden here."""
    with direct(url) as other:
        other.exec_driver_sql("DROP INDEX receipts_usage")
        for way in ("seqscan", "bitmapscan"):
            other.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        for bound in ({"since_unix_ns": 5}, {"until_unix_ns": 5}):
            statement = place_statement("acme", **bound).compile(other, compile_kwargs={"literal_binds": True})
            steps = "\n".join(other.exec_driver_sql(f"EXPLAIN {statement}").scalars())
            assert "Index Only Scan using receipts_by_end on receipts" in steps, steps


def test_a_transaction_is_the_only_way_in(url: str) -> None:
    """The connection is made when it is needed, and with it the lock."""
    database = LedgerDatabase.open(url)
    assert holders(url) == 1
    database.close()
    with pytest.raises(LedgerUnusable, match="closed"), database.transaction():
        pass
    assert holders(url) == 0
