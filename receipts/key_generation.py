"""The coordinator's part in a distributed key generation: it carries packages and holds no secret."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from receipts.durable_file import replace_file
from receipts.frost.ciphersuite import RandomBytes
from receipts.group_record import GroupRecord
from receipts.signer_messages import CeremonyPlan, SealedShare, SignedGroupStatement, SignerIdentity, SignerStatus
from receipts.signer_ports import KeyGenerationPort
from receipts.signing_errors import SigningError

_CEREMONY_ID_BYTES = 32
_RECORD_MODE = 0o644


async def load_or_generate(
    ports: Mapping[int, KeyGenerationPort], record_path: Path, *, threshold: int, random_bytes: RandomBytes
) -> GroupRecord:
    """The group of ``record_path``, or else of the signers, who hold the record too, or else a new one.

    Raises:
        SigningError: the file is damaged, or the signers hold shares of different groups.
        FrostError, SignerUnavailable: as ``generate_group``.
    """
    record = await asyncio.to_thread(_read_record, record_path)
    if record is None:
        record = await _restore_or_generate(ports, threshold=threshold, random_bytes=random_bytes)
        await asyncio.to_thread(replace_file, record_path, record.to_json(), mode=_RECORD_MODE)
    return record


async def generate_group(
    ports: Mapping[int, KeyGenerationPort],
    identities: Iterable[SignerIdentity],
    *,
    threshold: int,
    random_bytes: RandomBytes,
) -> GroupRecord:
    """Run one ceremony among all signers. Nothing is active yet: write the record down, then activate.

    In that order no crash loses a key that somebody uses: before the record is written no share is active and
    a new ceremony may replace them; after it every signer has its share on disk and takes the record.

    Raises:
        FrostError: a signer broke the protocol; the culprits are named.
        SignerUnavailable: a signer went away; all are needed here.
        SigningError: a signer refused, or they did not arrive at the same group.
    """
    roster = tuple(sorted(identities, key=lambda each: each.identifier))
    plan = CeremonyPlan(ceremony_id=random_bytes(_CEREMONY_ID_BYTES), threshold=threshold, roster=roster)
    ordered = [ports[each.identifier] for each in roster]
    packages = tuple(await asyncio.gather(*(port.begin(plan) for port in ordered)))
    sealed = await asyncio.gather(*(port.exchange(packages) for port in ordered))
    parcels = [_addressed_to(each.identifier, sealed) for each in roster]
    signed = await asyncio.gather(*(port.conclude(parcel) for port, parcel in zip(ordered, parcels, strict=True)))
    return _agreed(signed)


def _addressed_to(recipient: int, sealed: Iterable[tuple[SealedShare, ...]]) -> tuple[SealedShare, ...]:
    return tuple(share for shares in sealed for share in shares if share.recipient == recipient)


def _agreed(signed: Iterable[SignedGroupStatement]) -> GroupRecord:
    statements = list(signed)
    # A signer that arrived at another statement has signed that one: verifying names it.
    record = GroupRecord(
        statement=statements[0].statement,
        signatures={each.identifier: each.signature for each in statements},
    )
    record.verify()
    return record


def _read_record(path: Path) -> GroupRecord | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return GroupRecord.from_json(data)
    except SigningError as error:
        raise SigningError(f"{path}: {error}") from error


async def _restore_or_generate(
    ports: Mapping[int, KeyGenerationPort], *, threshold: int, random_bytes: RandomBytes
) -> GroupRecord:
    statuses = await asyncio.gather(*(each.status() for each in ports.values()), return_exceptions=True)
    failures = [each for each in statuses if isinstance(each, BaseException)]
    known = [each for each in statuses if isinstance(each, SignerStatus)]
    records = [each.record for each in known if each.record is not None]
    if records:
        if any(each.statement != records[0].statement for each in records):
            raise SigningError("the signers hold shares of different groups; restore the folders of one group")
        records[0].verify()
        return records[0]
    if failures:
        raise failures[0]
    identities = [each.identity for each in known]
    return await generate_group(ports, identities, threshold=threshold, random_bytes=random_bytes)
