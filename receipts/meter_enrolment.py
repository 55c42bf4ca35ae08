"""The meters whose statements a signer believes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from receipts.signer_vault import Vault
from receipts.signing_errors import ShareUnusable, SigningError

MAX_METERS: Final = 1024
_FILE: Final = "meters"
_KEY_BYTES: Final = 32
_MOST_NODE_CHARACTERS: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterEnrolment:
    """A host's meter: the Ed25519 key (32 bytes) that signs its statements, and where it runs.

    ``maximum_power_milliwatts`` is the most that everything it counts can draw together: it bounds what the meter
    may bill ahead of its counters.
    """

    public_key: bytes
    node: str
    maximum_power_milliwatts: int

    def check(self) -> None:
        """Check lengths and ranges.

        Raises:
            SigningError: saying what is wrong.
        """
        if len(self.public_key) != _KEY_BYTES:
            raise SigningError(
                f"the key of the meter on {self.node} has {len(self.public_key)} bytes, not {_KEY_BYTES}"
            )
        if not 1 <= len(self.node) <= _MOST_NODE_CHARACTERS:
            raise SigningError("a meter's node has no name, or one that is too long")
        if self.maximum_power_milliwatts < 0:
            raise SigningError(f"the meter on {self.node} cannot have a negative maximum power")


class EnrolledMeters:
    """A signer's enrolled meters, sealed in its own folder.

    A meter stays enrolled for good: its receipts may wait for their signature longer than it runs.
    """

    def __init__(self, vault: Vault) -> None:
        """Read what was enrolled.

        Raises:
            ShareUnusable: the file is damaged, exposed, another signer's, or sealed under another secret.
        """
        self._vault = vault
        self._meters = _parse(vault.read(_FILE))

    @property
    def by_key(self) -> Mapping[bytes, MeterEnrolment]:
        """The meters by public key."""
        return MappingProxyType(self._meters)

    def enrol(self, enrolment: MeterEnrolment) -> None:
        """Believe this meter from now on; durable on return. Nothing is written when that changes nothing.

        A key that is known gets the new node and keeps the larger maximum power: a GPU that is missing today must
        not make receipts unsignable that wait since yesterday.

        Raises:
            SigningError: the enrolment is malformed, there are too many, or the disk did not take it.
        """
        enrolment.check()
        known = self._meters.get(enrolment.public_key)
        if known is not None and known.maximum_power_milliwatts > enrolment.maximum_power_milliwatts:
            enrolment = replace(enrolment, maximum_power_milliwatts=known.maximum_power_milliwatts)
        if enrolment == known:
            return
        meters = {**self._meters, enrolment.public_key: enrolment}
        if len(meters) > MAX_METERS:
            raise SigningError(f"{MAX_METERS} meters are enrolled already")
        try:
            self._vault.write(_FILE, _content(meters))
        except OSError as error:
            raise SigningError(f"the meter's enrolment could not be written: {error.strerror}") from error
        self._meters = meters


def _content(meters: Mapping[bytes, MeterEnrolment]) -> bytes:
    entries = [
        {
            "public_key": each.public_key.hex(),
            "node": each.node,
            "maximum_power_milliwatts": each.maximum_power_milliwatts,
        }
        for each in meters.values()
    ]
    return json.dumps(entries).encode()


def _parse(content: bytes | None) -> dict[bytes, MeterEnrolment]:
    try:
        meters = [
            MeterEnrolment(**{**entry, "public_key": bytes.fromhex(entry["public_key"])})
            for entry in json.loads(content or b"[]")
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ShareUnusable("the signer's file of enrolled meters does not hold any") from error
    return {each.public_key: each for each in meters}
