"""The meter's journal: what must survive its restart, append-only and bounded.

One JSON object a line. It holds the book's totals after each closed interval and each settlement, the registered
replicas, the requests that have begun, and every settlement until it is acknowledged. It is written before the caller
gets its answer, but not forced to the disk: it survives the meter's death, and a power cut may cost the last seconds.
When it has grown, it is replaced by a snapshot of what still matters. A last line cut short by a crash is dropped.
"""

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metering.book import BookTotals
from metering.errors import JournalUnusable, JournalUnwritable, SettlementMalformed
from metering.settlement import Settlement

_VERSION = 1
_COMPACT_AFTER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredReplica:
    """A replica as it was registered; pid and start name its process for good."""

    replica: str
    pid: int
    started_ticks: int
    model: str
    device_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunRequest:
    """A request that had begun and wasn't settled."""

    request_id: str
    replica: str
    context: bytes
    begun_monotonic_ns: int
    start_unix_ns: int


@dataclass(slots=True, kw_only=True)
class JournalState:
    """What the journal's records add up to."""

    totals: BookTotals = field(default_factory=BookTotals)
    replicas: dict[str, RegisteredReplica] = field(default_factory=dict)
    begun: dict[str, BegunRequest] = field(default_factory=dict)
    settled: dict[str, Settlement] = field(default_factory=dict)

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take in one record.

        Raises:
            KeyError, TypeError, ValueError, SettlementMalformed: it isn't one.
        """
        match record["kind"]:
            case "version":
                if record["version"] != _VERSION:
                    raise ValueError(f"journal version {record['version']!r} isn't {_VERSION}")
            case "totals":
                self.totals = BookTotals(**record["totals"])
            case "registered":
                entry = RegisteredReplica(**{**record["entry"], "device_ids": tuple(record["entry"]["device_ids"])})
                self.replicas[entry.replica] = entry
            case "left":
                self.replicas.pop(record["replica"], None)
            case "begun":
                begun = BegunRequest(**{**record["entry"], "context": base64.b64decode(record["entry"]["context"])})
                self.begun[begun.request_id] = begun
                self.settled.pop(begun.request_id, None)
            case "settled":
                settlement = Settlement.from_json(record["settlement"].encode())
                self.totals = BookTotals(**record["totals"])
                self.begun.pop(settlement.request_id, None)
                self.settled[settlement.request_id] = settlement
            case "acknowledged":
                self.begun.pop(record["request_id"], None)
                self.settled.pop(record["request_id"], None)
            case other:
                raise ValueError(f"unknown record {other!r}")

    def records(self) -> Iterator[Mapping[str, Any]]:
        """The shortest journal that adds up to this state."""
        yield {"kind": "version", "version": _VERSION}
        yield _totals_record(self.totals)
        for replica in self.replicas.values():
            yield {"kind": "registered", "entry": asdict(replica)}
        for begun in self.begun.values():
            yield _begun_record(begun)
        for settlement in self.settled.values():
            yield _settled_record(settlement, self.totals)


class Journal:
    """One host meter's journal in a folder of its own. Only one process can hold it open."""

    def __init__(self, folder: Path, *, compact_after_bytes: int = _COMPACT_AFTER_BYTES) -> None:
        """Open the folder's journal, or start one.

        Raises:
            JournalUnusable: another meter holds it, it is damaged before its last line, or the folder can't be used.
        """
        self._file = folder / "journal.ndjson"
        self._compact_after_bytes = compact_after_bytes
        self._state = JournalState()
        self._descriptor = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            os.close(self._lock)
            raise JournalUnusable(f"another meter holds the journal in {folder}") from held
        except OSError as wrong:
            raise JournalUnusable(f"cannot use the journal folder {folder}: {wrong}") from wrong
        try:
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def state(self) -> JournalState:
        """What was recovered, kept up to date; the journal's own, not to be changed."""
        return self._state

    def totals(self, totals: BookTotals) -> None:
        """Record the accounts after a closed interval.

        Raises:
            JournalUnwritable: see there; the same holds for all records.
        """
        if totals != self._state.totals:
            self._append(_totals_record(totals))

    def registered(self, replica: RegisteredReplica) -> None:
        """Record that a replica is metered."""
        self._append({"kind": "registered", "entry": asdict(replica)})

    def left(self, replica: str) -> None:
        """Record that a replica is gone."""
        self._append({"kind": "left", "replica": replica})

    def begun(self, request: BegunRequest) -> None:
        """Record that a request has begun, in place of an earlier failed attempt at it."""
        self._append(_begun_record(request))

    def settled(self, settlement: Settlement, totals: BookTotals) -> None:
        """Record a settlement and the accounts that it is part of; it is kept until it is acknowledged."""
        self._append(_settled_record(settlement, totals))

    def acknowledged(self, request_id: str) -> None:
        """Record that the ledger has the settlement: it needn't be kept."""
        self._append({"kind": "acknowledged", "request_id": request_id})

    def close(self) -> None:
        """Let go of the journal."""
        os.close(self._descriptor)
        os.close(self._lock)

    def _recover(self) -> None:
        try:
            data = self._file.read_bytes() if self._file.exists() else b""
            *lines, _torn = data.split(b"\n")
            for number, line in enumerate(lines, start=1):
                self._replay(number, line)
            self._compact()
        except OSError as wrong:
            raise JournalUnusable(f"cannot use {self._file}: {wrong}") from wrong

    def _replay(self, number: int, line: bytes) -> None:
        try:
            self._state.apply(json.loads(line))
        except (ValueError, KeyError, TypeError, binascii.Error, SettlementMalformed) as wrong:
            raise JournalUnusable(f"{self._file}, line {number}: {wrong}; move the file away to start anew") from wrong

    def _append(self, record: Mapping[str, Any]) -> None:
        line = _line(record)
        try:
            _write_all(self._descriptor, line)
        except OSError as wrong:
            # A half line would damage whatever is appended after it.
            os.ftruncate(self._descriptor, self._size)
            raise JournalUnwritable(f"cannot write {self._file}: {wrong}") from wrong
        self._size += len(line)
        self._state.apply(record)
        if self._size > self._compact_at:
            self._compact_or_go_on()

    def _compact_or_go_on(self) -> None:
        try:
            self._compact()
        except OSError:
            # The old journal is whole and open; a full disk is tried again when it has grown as much once more.
            self._compact_at = self._size + self._compact_after_bytes

    def _compact(self) -> None:
        """Replace the journal by a snapshot, all or nothing: written beside, forced to disk, renamed over."""
        beside = self._file.with_suffix(".new")
        descriptor = os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            snapshot = b"".join(_line(record) for record in self._state.records())
            _write_all(descriptor, snapshot)
            os.fsync(descriptor)
            beside.rename(self._file)
        except OSError:
            os.close(descriptor)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = len(snapshot)
        self._compact_at = 2 * len(snapshot) + self._compact_after_bytes


def _totals_record(totals: BookTotals) -> Mapping[str, Any]:
    return {"kind": "totals", "totals": _accounts(totals)}


def _accounts(totals: BookTotals) -> Mapping[str, int]:
    # Not `asdict`: this is written ten times a second.
    return {name: getattr(totals, name) for name in BookTotals.__slots__}


def _begun_record(request: BegunRequest) -> Mapping[str, Any]:
    entry = asdict(request)
    entry["context"] = base64.b64encode(request.context).decode("ascii")
    return {"kind": "begun", "entry": entry}


def _settled_record(settlement: Settlement, totals: BookTotals) -> Mapping[str, Any]:
    return {
        "kind": "settled",
        "settlement": settlement.to_json().decode("ascii"),
        "totals": _accounts(totals),
    }


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
