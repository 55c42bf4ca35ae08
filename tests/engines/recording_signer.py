"""A signer that writes down, on the disk, every commitment and every share before it lets it go.

`nonce_audit` reads what it wrote: whether a nonce has served twice, in one life of the process or over several.
"""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from receipts.frost.round_one import NonceCommitment
from receipts.frost.signing_package import SigningPackage
from receipts.signer import Signer
from receipts.signer_messages import CommitmentBatch, SigningReply, SigningRequest


class RecordingSigner(Signer):
    """Each life of the process writes to a file of its own: one that was killed may end in half a line."""

    def __init__(self, *, folder: Path, **settings: Any) -> None:
        super().__init__(folder=folder, **settings)
        released = folder / "released"
        released.mkdir(exist_ok=True)
        name = f"{secrets.token_hex(8)}.ndjson"
        self._released = os.open(released / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)

    def commit(self, count: int) -> CommitmentBatch:
        batch = super().commit(count)
        self._record({"committed": [_written(each) for each in batch.commitments]})
        return batch

    def sign(self, request: SigningRequest) -> SigningReply:
        reply = super().sign(request)
        self._record(
            {
                "released": [
                    [_written(own), _digest(package)]
                    for package, outcome in zip(request.packages, reply.outcomes, strict=True)
                    if isinstance(outcome, bytes) and (own := package.commitment_of(reply.identifier)) is not None
                ]
            }
        )
        return reply

    def _record(self, what: dict[str, list[Any]]) -> None:
        line = json.dumps(what, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self._released, line) :]
        os.fsync(self._released)


def _written(commitment: NonceCommitment) -> str:
    return f"{commitment.hiding.hex()}:{commitment.binding.hex()}"


def _digest(package: SigningPackage) -> str:
    """Of the whole package: with the same nonces, another quorum's commitments give away as much as a message."""
    commitments = [[each.identifier, _written(each)] for each in package.commitments]
    return hashlib.sha256(package.message + b"\0" + json.dumps(commitments).encode()).hexdigest()
