"""The meter's journal: what must survive its restart, append-only and bounded.

One JSON object a line. It holds where the meter stands (see `metering.checkpoint`) after each closed interval and with
each settlement, the registered replicas, the requests that have begun, every settlement until it is acknowledged, and
the newest incidents. It is written before the caller gets its answer: it survives the
meter's death. Only the first settlements after each opening are forced to the disk, so a power cut may cost the last
seconds, but never hides that a key has signed statements in this boot.
When it has grown, it is replaced by a snapshot of what still matters. A last line cut short by a crash is dropped.
"""

import base64
import binascii
import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metering.checkpoint import Checkpoint
from metering.errors import JournalUnusable, JournalUnwritable, SettlementMalformed
from metering.meter_report import Incident
from metering.settlement import Settlement

_VERSION = 3
_READABLE_VERSIONS = (1, 2, 3)
_MOST_INCIDENTS = 32
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
    """What the journal's records add up to.

    ``settled`` has each request's newest settlement, ``superseded`` by attempt those whose request began again before
    the ledger had them.
    """

    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    replicas: dict[str, RegisteredReplica] = field(default_factory=dict)
    begun: dict[str, BegunRequest] = field(default_factory=dict)
    settled: dict[str, Settlement] = field(default_factory=dict)
    superseded: dict[str, Settlement] = field(default_factory=dict)
    incidents: deque[Incident] = field(default_factory=lambda: deque(maxlen=_MOST_INCIDENTS))

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take in one record.

        Raises:
            KeyError, TypeError, ValueError, SettlementMalformed: it isn't one.
        """
        match record["kind"]:
            case "version":
                if record["version"] not in _READABLE_VERSIONS:
                    raise ValueError(f"journal version {record['version']!r} isn't {_VERSION}")
            case "totals":
                self.checkpoint = Checkpoint.from_document(record)
            case "incident":
                self.incidents.append(Incident(at_unix_ns=record["at_unix_ns"], what=record["what"]))
            case "registered" | "left":
                self._apply_to_replicas(record)
            case _:
                self._apply_to_requests(record)

    def registered(self, replica: RegisteredReplica) -> None:
        """A replica is metered."""
        self.replicas[replica.replica] = replica

    def left(self, replica: str) -> None:
        """It isn't any more."""
        self.replicas.pop(replica, None)

    def began(self, request: BegunRequest) -> None:
        """A request has begun, perhaps again after an attempt that failed."""
        self.begun[request.request_id] = request
        earlier = self.settled.pop(request.request_id, None)
        if earlier is not None:
            self.superseded[earlier.attempt_id] = earlier

    def settle(self, settlements: Iterable[Settlement]) -> None:
        """These requests have ended."""
        for settlement in settlements:
            self.begun.pop(settlement.request_id, None)
            self.settled[settlement.request_id] = settlement

    def acknowledged(self, request_id: str, attempt_id: str | None) -> None:
        """The ledger has the settlement of this attempt; None, in records of earlier versions, is the newest."""
        if attempt_id is None or self.superseded.pop(attempt_id, None) is None:
            self.settled.pop(request_id, None)

    def _apply_to_replicas(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "left":
            self.left(record["replica"])
            return
        entry = record["entry"]
        self.registered(RegisteredReplica(**{**entry, "device_ids": tuple(entry["device_ids"])}))

    def _apply_to_requests(self, record: Mapping[str, Any]) -> None:
        match record["kind"]:
            case "begun":
                entry = record["entry"]
                self.began(BegunRequest(**{**entry, "context": base64.b64decode(entry["context"])}))
            case "settled":
                # The first version recorded one at a time.
                texts = record.get("settlements") or [record["settlement"]]
                self.settle(Settlement.from_json(text.encode()) for text in texts)
                if "totals" in record:
                    self.checkpoint = Checkpoint.from_document(record)
            case "superseded":
                settlement = Settlement.from_json(record["settlement"].encode())
                self.superseded[settlement.attempt_id] = settlement
            case "acknowledged":
                self.acknowledged(record["request_id"], record.get("attempt"))
            case other:
                raise ValueError(f"unknown record {other!r}")

    def records(self) -> Iterator[Mapping[str, Any]]:
        """The shortest journal that adds up to this state."""
        yield {"kind": "version", "version": _VERSION}
        yield _checkpoint_record(self.checkpoint)
        for incident in self.incidents:
            yield _incident_record(incident)
        for replica in self.replicas.values():
            yield {"kind": "registered", "entry": asdict(replica)}
        for earlier in self.superseded.values():
            yield {"kind": "superseded", "settlement": earlier.to_json().decode("ascii")}
        for begun in self.begun.values():
            yield _begun_record(begun)
        for settlement in self.settled.values():
            yield _settled_record((settlement,))


class Journal:
    """One host meter's journal in a folder of its own. Only one process can hold it open."""

    def __init__(
        self,
        folder: Path,
        *,
        compact_after_bytes: int = _COMPACT_AFTER_BYTES,
        force: Callable[[int], None] = os.fsync,
    ) -> None:
        """Open the folder's journal, or start one; ``force`` puts a file or a folder on the disk.

        Raises:
            JournalUnusable: another meter holds it, it is damaged before its last line, or the folder can't be used.
        """
        self._file = folder / "journal.ndjson"
        self._compact_after_bytes = compact_after_bytes
        self._force = force
        self._has_forced_settlements = False
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

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Record where the meter stands after a closed interval.

        Raises:
            JournalUnwritable: see there; the same holds for all records.
        """
        self._append(_checkpoint_record(checkpoint))
        self._state.checkpoint = checkpoint

    def registered(self, replica: RegisteredReplica) -> None:
        """Record that a replica is metered."""
        self._append({"kind": "registered", "entry": asdict(replica)})
        self._state.registered(replica)

    def left(self, replica: str) -> None:
        """Record that a replica is gone."""
        self._append({"kind": "left", "replica": replica})
        self._state.left(replica)

    def begun(self, request: BegunRequest) -> None:
        """Record that a request has begun, perhaps again after a failed attempt at it."""
        self._append(_begun_record(request))
        self._state.began(request)

    def settled(self, settlements: Sequence[Settlement], checkpoint: Checkpoint) -> None:
        """Record settlements and where the meter stands with them, all or nothing; they are kept until acknowledged."""
        record = {**_settled_record(settlements), **checkpoint.to_document()}
        self._append(record, forced=not self._has_forced_settlements)
        self._has_forced_settlements = True
        self._state.settle(settlements)
        self._state.checkpoint = checkpoint

    def acknowledged(self, settlement: Settlement) -> None:
        """Record that the ledger has the settlement: it needn't be kept."""
        request_id, attempt_id = settlement.request_id, settlement.attempt_id
        self._append({"kind": "acknowledged", "request_id": request_id, "attempt": attempt_id})
        self._state.acknowledged(request_id, attempt_id)

    def incident(self, incident: Incident) -> None:
        """Record what went wrong; the newest are kept."""
        self._append(_incident_record(incident))
        self._state.incidents.append(incident)

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
            # A new chain of statements under the old key would be refused by whoever knows the old chain.
            anew = f"to start anew, move {self._file.parent} away with the meter's key, and enrol the new key"
            raise JournalUnusable(f"{self._file}, line {number}: {wrong}; {anew}") from wrong

    def _append(self, record: Mapping[str, Any], *, forced: bool = False) -> None:
        if self._size > self._compact_at:
            self._compact_or_go_on()
        line = _line(record)
        try:
            _write_all(self._descriptor, line)
            if forced:
                self._force(self._descriptor)
        except OSError as wrong:
            # A half line would damage whatever is appended after it.
            os.ftruncate(self._descriptor, self._size)
            raise JournalUnwritable(f"cannot write {self._file}: {wrong}") from wrong
        self._size += len(line)

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
            self._force(descriptor)
            beside.rename(self._file)
        except OSError:
            os.close(descriptor)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = len(snapshot)
        self._compact_at = 2 * len(snapshot) + self._compact_after_bytes
        self._force_folder()

    def _force_folder(self) -> None:
        """Put the file's new name on the disk."""
        folder = os.open(self._file.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._force(folder)
        finally:
            os.close(folder)


def _checkpoint_record(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return {"kind": "totals", **checkpoint.to_document()}


def _incident_record(incident: Incident) -> Mapping[str, Any]:
    return {"kind": "incident", "at_unix_ns": incident.at_unix_ns, "what": incident.what}


def _begun_record(request: BegunRequest) -> Mapping[str, Any]:
    entry = asdict(request)
    entry["context"] = base64.b64encode(request.context).decode("ascii")
    return {"kind": "begun", "entry": entry}


def _settled_record(settlements: Sequence[Settlement]) -> Mapping[str, Any]:
    return {"kind": "settled", "settlements": [settlement.to_json().decode("ascii") for settlement in settlements]}


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
