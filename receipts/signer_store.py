"""A signer's durable memory: how far it has vouched for each account's chain, and on which meters' statements."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from receipts.signer_messages import HeadWanted, Refusal, ShareRefused
from receipts.signing_errors import ShareUnusable, SigningError

DEFAULT_WINDOW = 65_536
_SCHEMA_VERSION = 2
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

    def __init__(self, connection: sqlite3.Connection, *, window: int) -> None:
        self._connection = connection
        self._window = window

    @classmethod
    def open(cls, path: Path, *, public_key: bytes, window: int = DEFAULT_WINDOW) -> "MarkStore":
        """Open or create the store for the group with this public key.

        Raises:
            ShareUnusable: the file is another group's, of an unknown version, or not such a file.
        """
        path.touch(mode=0o600, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL syncs the log at each commit: a share must never be out before its mark is on the disk.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _create_or_check(connection, path, public_key)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ShareUnusable(f"{path} is damaged or not a signer's mark store: {error}") from error
        except ShareUnusable:
            connection.close()
            raise
        return cls(connection, window=window)

    def admit(
        self, claims: Sequence[ChainClaim | None], *, heads: Sequence[ChainClaim] = ()
    ) -> list[ShareRefused | None]:
        """Judge the claims in order and move the marks; None at a place says that its receipt may be signed.

        ``heads`` are receipts proved by the group's signature: a mark behind one moves up to it. A claim of
        None stands for a message refused before; nothing is decided about it. When this returns, every
        admitted receipt is on the disk; when it raises, nothing has changed.

        Raises:
            SigningError: the disk did not take it.
        """
        try:
            with self._transaction() as batch:
                for head in heads:
                    batch.adopt(head)
                return [None if claim is None else batch.place(index, claim) for index, claim in enumerate(claims)]
        except sqlite3.Error as error:
            raise SigningError(f"the signer's marks could not be written: {error}") from error

    def mark(self, account: str) -> Mark | None:
        """The account's mark, or None when this signer has seen nothing of it."""
        row = self._connection.execute("SELECT seq, sha256 FROM account WHERE name = ?", (account,)).fetchone()
        return None if row is None else Mark(seq=row[0], sha256=row[1])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator["_Batch"]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            batch = _Batch(self._connection)
            yield batch
            batch.forget_older_than(self._window)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


class _Batch:
    """One transaction's view of the marks."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[str, tuple[int, Mark]] = {}
        self._halted: dict[str, int] = {}
        self._meters: dict[bytes, int] = {}

    def adopt(self, head: ChainClaim) -> None:
        """Move a mark up to a proved receipt; a head at or below the mark says nothing new."""
        known = self._lookup(head.account)
        if known is None or known[1].seq < head.seq:
            self._advance(head)

    def place(self, index: int, claim: ChainClaim) -> ShareRefused | None:
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
            vouched = self._vouched(known[0], claim.seq)
        refused = judge(claim, mark, vouched) or self._take_statement(claim)
        if refused is not None:
            self._halted[claim.account] = index
        elif mark is None or claim.seq > mark.seq:
            self._advance(claim)
        return refused

    def forget_older_than(self, window: int) -> None:
        for account, mark in self._known.values():
            self._connection.execute("DELETE FROM vouched WHERE account = ? AND seq <= ?", (account, mark.seq - window))

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

    def _vouched(self, account: int, seq: int) -> bytes | None:
        row = self._connection.execute(
            "SELECT sha256 FROM vouched WHERE account = ? AND seq = ?", (account, seq)
        ).fetchone()
        return None if row is None else row[0]

    def _advance(self, claim: ChainClaim) -> None:
        (account,) = self._connection.execute(
            "INSERT INTO account (name, seq, sha256) VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, sha256 = excluded.sha256 RETURNING id",
            (claim.account, claim.seq, claim.sha256),
        ).fetchone()
        self._connection.execute(
            "INSERT INTO vouched (account, seq, sha256) VALUES (?, ?, ?)", (account, claim.seq, claim.sha256)
        )
        self._known[claim.account] = (account, Mark(seq=claim.seq, sha256=claim.sha256))


def _create_or_check(connection: sqlite3.Connection, path: Path, public_key: bytes) -> None:
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        for statement in _FIRST_SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO bound_to (public_key) VALUES (?)", (public_key,))
    if version < _SCHEMA_VERSION:
        for statement in _SINCE_STATEMENTS:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    elif version != _SCHEMA_VERSION:
        raise ShareUnusable(f"{path} has schema version {version}; this program knows {_SCHEMA_VERSION}")
    connection.execute("COMMIT")
    (bound_to,) = connection.execute("SELECT public_key FROM bound_to").fetchone()
    if bound_to != public_key:
        raise ShareUnusable(f"{path} belongs to another signing group")
