"""A signer's durable memory: how far it has vouched for each account's chain, and on which meters' statements."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from receipts.signer_messages import HeadWanted, Refusal, ShareRefused
from receipts.signing_errors import ShareUnusable, SigningError

DEFAULT_WINDOW = 65_536
_CHANGES_PER_CHECKPOINT = 4096
"""Rows that may change until the log is written over into the database: a thousand receipts or two, a log of 10 to
40 MB. Each time costs a handful of syncs more (`receipts.marks_epoch`)."""
_SCHEMA_VERSION = 3
_FIRST_SCHEMA = (
    "CREATE TABLE bound_to (public_key BLOB NOT NULL)",
    """CREATE TABLE account (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL, sha256 BLOB NOT NULL)""",
    """CREATE TABLE vouched (
        account INTEGER NOT NULL REFERENCES account (id), seq INTEGER NOT NULL, sha256 BLOB NOT NULL,
        PRIMARY KEY (account, seq)) WITHOUT ROWID""",
)
_SINCE_STATEMENTS = (
    "CREATE TABLE meter (id INTEGER PRIMARY KEY, public_key BLOB NOT NULL UNIQUE)",
    """CREATE TABLE stated (
        meter INTEGER NOT NULL REFERENCES meter (id), sequence INTEGER NOT NULL, sha256 BLOB NOT NULL,
        PRIMARY KEY (meter, sequence)) WITHOUT ROWID""",
)
# ``epoch`` is null until the first one is begun (`receipts.marks_epoch`); ``vouched`` counts receipts, for operators.
_SINCE_EPOCHS = (
    "CREATE TABLE life (epoch BLOB, vouched INTEGER NOT NULL)",
    "INSERT INTO life (vouched) SELECT count(*) FROM stated",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementNumber:
    """A meter, by its public key, and the number of one of its statements."""

    meter: bytes
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainClaim:
    """The place that a receipt claims in its account's chain.

    ``sha256`` is of the receipt's signed bytes, ``prev_sha256`` of the previous one's; None says that the
    receipt is the account's first. ``stated`` is the meter's statement that it rests on, None when it was not looked
    at, as for a receipt that the group has signed already.
    """

    account: str
    seq: int
    prev_sha256: bytes | None
    sha256: bytes
    stated: StatementNumber | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadClaim:
    """Where an account head says that the account's chain ends; ``sha256`` is of that receipt's signed bytes."""

    account: str
    last_seq: int
    last_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The highest receipt of an account that this signer has vouched for or has seen proved."""

    seq: int
    sha256: bytes


def judge(claim: ChainClaim, mark: Mark | None, vouched_sha256: bytes | None) -> ShareRefused | None:
    """Whether a receipt may be signed, as far as the chain is concerned; None says yes.

    ``vouched_sha256`` is what this signer vouched for at the claim's own ``seq``. The very same receipt may
    be signed again, as often as it takes: an earlier try may have failed at another signer. A different
    receipt in a place that was vouched for is a fork, whoever asks for it.
    """
    if mark is None:
        return None if claim.prev_sha256 is None else _behind(claim, None)
    if claim.seq > mark.seq + 1:
        return _behind(claim, mark)
    if claim.seq == mark.seq + 1:
        if claim.prev_sha256 == mark.sha256:
            return None
        return _fork(claim, f"its prev_sha256 is not that of receipt {mark.seq}")
    if vouched_sha256 is None:
        return _fork(claim, f"the chain is at {mark.seq}, and this signer no longer knows that place")
    return None if vouched_sha256 == claim.sha256 else _fork(claim, "another receipt has that place")


def judge_head(claim: HeadClaim, mark: Mark | None) -> ShareRefused | None:
    """Whether an account head may be signed, as far as this signer knows the chain; None says yes.

    The mark has moved up to the head's last receipt before, which the group's signature proves. A mark past it is of
    a receipt that this signer has vouched for: it may be signed by now, and the head would leave it out.
    """
    if mark is None or mark.seq < claim.last_seq:
        return ShareRefused(reason=Refusal.CHAIN, detail=f"the head's last receipt {claim.last_seq} is not proved")
    if mark.seq > claim.last_seq:
        return ShareRefused(
            reason=Refusal.CHAIN,
            detail=f"the head ends at receipt {claim.last_seq}, but the account has at least {mark.seq}",
        )
    if mark.sha256 != claim.last_sha256:
        return ShareRefused(reason=Refusal.CHAIN, detail=f"the head names another receipt {claim.last_seq}")
    return None


def _behind(claim: ChainClaim, mark: Mark | None) -> ShareRefused:
    at = "nothing" if mark is None else f"receipt {mark.seq}"
    return ShareRefused(
        reason=Refusal.BEHIND,
        detail=f"knows {at} of the account, asked for receipt {claim.seq}",
        head_wanted=HeadWanted(account=claim.account, seq=claim.seq - 1, sha256=claim.prev_sha256),
    )


def _fork(claim: ChainClaim, why: str) -> ShareRefused:
    return ShareRefused(reason=Refusal.CHAIN, detail=f"receipt {claim.seq} does not fit: {why}")


class MarkStore:
    """Marks in SQLite, in the signer's own folder. One transaction per batch, on the disk before it returns.

    Besides the mark it remembers the hash of each of the last ``window`` receipts per account, so that a
    backlog can be signed again after a try that failed half-way; a backlog must stay shorter than that. Which
    receipt rests on which meter's statement it remembers for good, in some 50 bytes: a receipt may wait for long.
    """

    def __init__(self, connection: sqlite3.Connection, *, path: Path, window: int) -> None:
        self._connection = connection
        self._path = path
        self._window = window
        self._checkpoint_at = connection.total_changes + _CHANGES_PER_CHECKPOINT
        self.begin_epoch: Callable[[], None] | None = None
        """Called after each checkpoint, before anything else is written; `receipts.marks_epoch` sets it."""

    @classmethod
    def open(cls, path: Path, *, public_key: bytes, window: int = DEFAULT_WINDOW) -> "MarkStore":
        """Open or create the store for the group with this public key.

        Raises:
            ShareUnusable: the file is another group's, of an unknown version, or not such a file.
            SigningError: it cannot be opened now, as when the disk is full.
        """
        try:
            path.touch(mode=0o600, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                # Each checkpoint must be followed by an epoch, so none may come by itself.
                connection.execute("PRAGMA wal_autocheckpoint = 0")
                # FULL syncs the log at each commit: a share must never be out before its mark is on the disk.
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                _create_or_check(connection, path, public_key)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise SigningError(f"{path} cannot be opened: {error.strerror}") from error
        except sqlite3.DatabaseError as error:
            if _may_pass(error):
                raise SigningError(f"{path} cannot be opened now: {error}; look at its disk") from error
            raise ShareUnusable(f"{path} is damaged or not a signer's mark store: {error}") from error
        return cls(connection, path=path, window=window)

    def admit(
        self, claims: Sequence[ChainClaim | HeadClaim | None], *, heads: Sequence[ChainClaim] = ()
    ) -> list[ShareRefused | None]:
        """Judge the claims in order and move the marks; None at a place says that its message may be signed.

        ``heads`` are receipts proved by the group's signature: a mark behind one moves up to it. A claim of
        None stands for a message refused before; nothing is decided about it. When this returns, every
        admitted receipt is on the disk; when it raises, nothing has changed.

        Raises:
            SigningError: the disk did not take it.
        """
        try:
            if self._connection.total_changes >= self._checkpoint_at:
                self.checkpoint()
            with self._transaction() as batch:
                for head in heads:
                    batch.adopt(head)
                return [batch.judge(index, claim) for index, claim in enumerate(claims)]
        except sqlite3.Error as error:
            raise SigningError(
                f"the signer's marks could not be written: {error}; nothing was signed. Look at the disk of "
                f"{self._path}"
            ) from error

    def mark(self, account: str) -> Mark | None:
        """The account's mark, or None when this signer has seen nothing of it."""
        row = self._read("SELECT seq, sha256 FROM account WHERE name = ?", account)
        return None if row is None else Mark(seq=row[0], sha256=row[1])

    @property
    def epoch(self) -> bytes | None:
        """The epoch that was begun last, None before the first."""
        return cast("bytes | None", self._read("SELECT epoch FROM life")[0])

    def write_epoch(self, epoch: bytes) -> None:
        """Note that these marks are in use from now on under another epoch; durable on return.

        Raises:
            SigningError: the disk did not take it.
        """
        try:
            self._connection.execute("UPDATE life SET epoch = ?", (epoch,))
        except sqlite3.Error as error:
            raise SigningError(f"the signer's marks in {self._path} could not be written: {error}") from error

    def checkpoint(self) -> None:
        """Write the log over into the database and begin an epoch.

        Raises:
            SigningError: the disk did not take it.
        """
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            raise SigningError(f"the signer's marks in {self._path} could not be written: {error}") from error
        if self.begin_epoch is not None:
            self.begin_epoch()
        self._checkpoint_at = self._connection.total_changes + _CHANGES_PER_CHECKPOINT

    def counts(self) -> tuple[int, int]:
        """How many accounts have a mark, and how many receipts were vouched for."""
        (accounts,) = self._read("SELECT count(*) FROM account")
        (vouched,) = self._read("SELECT vouched FROM life")
        return accounts, vouched

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self, query: str, *values: object) -> Any:  # noqa: ANN401 - a row, as sqlite3 types it
        try:
            return self._connection.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise SigningError(f"the signer's marks in {self._path} could not be read: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator["_Batch"]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            batch = _Batch(self._connection)
            yield batch
            batch.write(self._window)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


class _Batch:
    """One transaction's view of the marks: judged one after the other, written together at the end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[str, tuple[int, Mark]] = {}
        self._vouched: dict[tuple[int, int], bytes] = {}
        self._halted: dict[str, int] = {}
        self._meters: dict[bytes, int] = {}
        self._new_statements = 0

    def adopt(self, head: ChainClaim) -> None:
        """Move a mark up to a proved receipt; a head at or below the mark says nothing new."""
        known = self._lookup(head.account)
        if known is None or known[1].seq < head.seq:
            self._advance(head)

    def judge(self, index: int, claim: ChainClaim | HeadClaim | None) -> ShareRefused | None:
        if isinstance(claim, HeadClaim):
            known = self._lookup(claim.account)
            return judge_head(claim, None if known is None else known[1])
        return None if claim is None else self._place(index, claim)

    def write(self, window: int) -> None:
        """Write what has changed, and forget what lies further back than ``window``."""
        changed = {account for account, _ in self._vouched}
        marks = [(mark.seq, mark.sha256, account) for account, mark in self._known.values() if account in changed]
        self._connection.executemany("UPDATE account SET seq = ?, sha256 = ? WHERE id = ?", marks)
        self._connection.executemany(
            "INSERT INTO vouched (account, seq, sha256) VALUES (?, ?, ?)",
            [(account, seq, sha256) for (account, seq), sha256 in self._vouched.items()],
        )
        self._connection.executemany(
            "DELETE FROM vouched WHERE account = ? AND seq <= ?",
            [(account, seq - window) for seq, _, account in marks if seq > window],
        )
        if self._new_statements:
            self._connection.execute("UPDATE life SET vouched = vouched + ?", (self._new_statements,))

    def _place(self, index: int, claim: ChainClaim) -> ShareRefused | None:
        if claim.account in self._halted:
            return ShareRefused(
                reason=Refusal.WAITING,
                detail="an earlier receipt of the account was not signed",
                waits_for=self._halted[claim.account],
            )
        known = self._lookup(claim.account)
        mark = None if known is None else known[1]
        vouched = None
        if known is not None and claim.seq <= known[1].seq:
            vouched = self._vouched_for(known[0], claim.seq)
        refused = judge(claim, mark, vouched) or self._take_statement(claim)
        if refused is not None:
            self._halted[claim.account] = index
        elif mark is None or claim.seq > mark.seq:
            self._advance(claim)
        return refused

    def _take_statement(self, claim: ChainClaim) -> ShareRefused | None:
        """Bind the meter's statement to this receipt; one that another receipt rests on is not taken."""
        if claim.stated is None:
            return None
        place = self._meter_id(claim.stated.meter), claim.stated.sequence
        taken = self._connection.execute(
            "INSERT INTO stated (meter, sequence, sha256) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (*place, claim.sha256),
        )
        if taken.rowcount:
            self._new_statements += 1
            return None
        (bound_to,) = self._connection.execute(
            "SELECT sha256 FROM stated WHERE meter = ? AND sequence = ?", place
        ).fetchone()
        if bound_to == claim.sha256:
            return None
        meter = claim.stated.meter.hex()[:16]
        return ShareRefused(
            reason=Refusal.CHAIN,
            detail=f"another receipt rests on statement {claim.stated.sequence} of the meter {meter}…",
        )

    def _meter_id(self, public_key: bytes) -> int:
        if public_key not in self._meters:
            self._connection.execute("INSERT INTO meter (public_key) VALUES (?) ON CONFLICT DO NOTHING", (public_key,))
            (found,) = self._connection.execute("SELECT id FROM meter WHERE public_key = ?", (public_key,)).fetchone()
            self._meters[public_key] = found
        return self._meters[public_key]

    def _lookup(self, account: str) -> tuple[int, Mark] | None:
        if account not in self._known:
            row = self._connection.execute("SELECT id, seq, sha256 FROM account WHERE name = ?", (account,)).fetchone()
            if row is None:
                return None
            self._known[account] = (row[0], Mark(seq=row[1], sha256=row[2]))
        return self._known[account]

    def _vouched_for(self, account: int, seq: int) -> bytes | None:
        if (account, seq) in self._vouched:
            return self._vouched[account, seq]
        row = self._connection.execute(
            "SELECT sha256 FROM vouched WHERE account = ? AND seq = ?", (account, seq)
        ).fetchone()
        return None if row is None else row[0]

    def _advance(self, claim: ChainClaim) -> None:
        known = self._known.get(claim.account)
        account = self._new_account(claim) if known is None else known[0]
        self._vouched[account, claim.seq] = claim.sha256
        self._known[claim.account] = (account, Mark(seq=claim.seq, sha256=claim.sha256))

    def _new_account(self, claim: ChainClaim) -> int:
        (account,) = self._connection.execute(
            "INSERT INTO account (name, seq, sha256) VALUES (?, ?, ?) RETURNING id",
            (claim.account, claim.seq, claim.sha256),
        ).fetchone()
        return cast("int", account)


def _may_pass(error: sqlite3.DatabaseError) -> bool:
    """Whether it is the machine's trouble (full, locked, I/O) and not the file's."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR


def _create_or_check(connection: sqlite3.Connection, path: Path, public_key: bytes) -> None:
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        for statement in _FIRST_SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO bound_to (public_key) VALUES (?)", (public_key,))
    if version > _SCHEMA_VERSION:
        raise ShareUnusable(f"{path} has schema version {version}; this program knows {_SCHEMA_VERSION}")
    for since, statements in ((2, _SINCE_STATEMENTS), (3, _SINCE_EPOCHS)):
        if version < since:
            for statement in statements:
                connection.execute(statement)
    # Only then: a database that is refused stays as it is, and fits its log when that is put back.
    if version < _SCHEMA_VERSION:
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute("COMMIT")
    (bound_to,) = connection.execute("SELECT public_key FROM bound_to").fetchone()
    if bound_to != public_key:
        raise ShareUnusable(f"{path} belongs to another signing group")
