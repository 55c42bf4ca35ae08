"""Whether any nonce has served twice, from what `recording_signer` wrote before each release."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class NonceAudit:
    """``lives`` are processes that signed or could have; ``findings`` say where a nonce served as it must not."""

    lives: int
    committed: int
    released: int
    findings: tuple[str, ...]


def audit_nonces(signers_folder: Path) -> NonceAudit:
    """Read the records of all signers under the folder that holds one folder for each.

    Of each commitment at most one share may be out, by the process that published it, and no half of a commitment may
    come up twice, in whatever life of whichever signer.
    """
    lives = released_count = 0
    owner_of_half: dict[str, str] = {}
    findings: list[str] = []
    for file in sorted(signers_folder.glob("*/released/*.ndjson")):
        life = f"signer {file.parent.parent.name}, life {file.stem}"
        lives += 1
        own: set[str] = set()
        used: dict[str, str] = {}
        for record in _records(file):
            for commitment in record.get("committed", ()):
                own.add(commitment)
                for half in commitment.split(":"):
                    if half in owner_of_half:
                        findings.append(f"{life} published the nonce {half[:16]}… of {owner_of_half[half]} again")
                    owner_of_half[half] = life
            for commitment, package in record.get("released", ()):
                released_count += 1
                if commitment not in own:
                    maker = owner_of_half.get(commitment.partition(":")[0], "nobody so far")
                    findings.append(f"{life} gave a share for a commitment of {maker}: {commitment[:16]}…")
                elif commitment in used:
                    other = "the same package" if used[commitment] == package else "two packages"
                    findings.append(f"{life} used the nonces of {commitment[:16]}… twice, for {other}")
                used[commitment] = package
    return NonceAudit(lives=lives, committed=len(owner_of_half) // 2, released=released_count, findings=tuple(findings))


def _records(file: Path) -> Iterator[dict[str, list[Any]]]:
    """A last line that was cut short is of something that was never let go."""
    for line in file.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)
