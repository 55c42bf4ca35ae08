"""Calibration records in the data folder: one file for each model on each silicon."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mesh.errors import MeshError
from metering.calibration import Calibration, CalibrationRecord
from metering.errors import CalibrationRefused

_SUFFIX = ".json"
_LARGEST_BYTES = 1024 * 1024


def store(record: CalibrationRecord, folder: Path) -> Path:
    """Write the record, in place of an earlier one of the same model and silicon; readers see either, whole.

    Raises:
        MeshError: it cannot be written.
    """
    path = folder / _file_name(record)
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with partial.open("w", encoding="utf-8") as file:
            file.write(record.to_json())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as unwritable:
        raise MeshError(f"cannot store the calibration in {folder}: {unwritable}") from unwritable
    return path


def read_record(path: Path) -> CalibrationRecord:
    """One record's file.

    Raises:
        CalibrationRefused: it cannot be read or isn't a record; the message names the file.
    """
    try:
        with path.open("rb") as file:
            return CalibrationRecord.from_json(file.read(_LARGEST_BYTES))
    except OSError as unreadable:
        raise CalibrationRefused(f"{path}: {unreadable.strerror or unreadable}") from unreadable
    except CalibrationRefused as malformed:
        raise CalibrationRefused(f"{path}: {malformed}") from malformed


def load_calibration(folder: Path, silicon: str, methods: Sequence[str]) -> tuple[Calibration, tuple[str, ...]]:
    """What the folder knows of this silicon, measured by counters of these methods; and a note for each other file.

    Where two models' records tell of one device's floor, the newer one counts.
    """
    records: list[CalibrationRecord] = []
    notes: list[str] = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            record = read_record(path)
            record.check_fits(silicon, methods)
        except CalibrationRefused as refused:
            notes.append(f"calibration not used: {refused}")
            continue
        records.append(record)
    calibration = Calibration()
    for record in sorted(records, key=lambda record: record.made_unix_ns):
        calibration = calibration.with_record(record)
    return calibration, tuple(notes)


def _file_name(record: CalibrationRecord) -> str:
    """Readable, and different for every pair, whatever characters the names have."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{record.model}-{record.silicon}").strip("-.")[:80]
    digest = hashlib.sha256(f"{record.model}\0{record.silicon}".encode()).hexdigest()[:12]
    return f"{readable}-{digest}{_SUFFIX}"
