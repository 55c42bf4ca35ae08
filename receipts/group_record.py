"""The group's public record: its key, its members, and each member's word that the key is theirs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from receipts.ed25519 import key_id_of, verify_signature
from receipts.frost.ciphersuite import Element, decode_element, encode_identifier
from receipts.frost.errors import FrostError
from receipts.frost.keygen import GroupKey, check_group_key
from receipts.signing_errors import SigningError

MAX_MEMBERS = 255
_FORMAT = "joule-mesh.group/v1"
_SIGNED_PREFIX = b"joule-mesh.group/v1\x00"
_HASH_BYTES = 32
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """A signer as the others know it: enrolled Ed25519 identity and verifying share, 32 bytes each."""

    identifier: int
    identity_key: bytes
    verifying_share: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatement:
    """The outcome of one key generation, as every member computed it; members ascend by identifier.

    ``transcript_sha256`` covers all that was published during the generation, so members who were shown
    different packages do not arrive at the same statement.
    """

    transcript_sha256: bytes
    threshold: int
    public_key: bytes
    members: tuple[GroupMember, ...]

    def signed_bytes(self) -> bytes:
        """What each member signs; every field has a fixed length, so the encoding is unambiguous."""
        head = self.transcript_sha256 + bytes([self.threshold, len(self.members)]) + self.public_key
        body = b"".join(
            encode_identifier(each.identifier) + each.identity_key + each.verifying_share for each in self.members
        )
        return _SIGNED_PREFIX + head + body

    def to_document(self) -> dict[str, object]:
        """The statement for JSON; bytes are lower-case hex."""
        return {
            "transcript_sha256": self.transcript_sha256.hex(),
            "threshold": self.threshold,
            "public_key": self.public_key.hex(),
            "members": [
                {
                    "identifier": each.identifier,
                    "identity_key": each.identity_key.hex(),
                    "verifying_share": each.verifying_share.hex(),
                }
                for each in self.members
            ],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "GroupStatement":
        """Parse what ``to_document`` gives, and check it.

        Raises:
            SigningError: a member of the document is missing or wrong.
        """
        try:
            statement = cls(
                transcript_sha256=bytes.fromhex(document["transcript_sha256"]),
                threshold=int(document["threshold"]),
                public_key=bytes.fromhex(document["public_key"]),
                members=tuple(
                    GroupMember(
                        identifier=int(each["identifier"]),
                        identity_key=bytes.fromhex(each["identity_key"]),
                        verifying_share=bytes.fromhex(each["verifying_share"]),
                    )
                    for each in document["members"]
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise SigningError(f"not a signing group's statement: {error!r}") from error
        statement.check()
        return statement

    def check(self) -> None:
        """Check lengths, ranges, order, and that the verifying shares make the public key.

        Raises:
            SigningError: saying what does not fit.
        """
        identifiers = [each.identifier for each in self.members]
        if identifiers != sorted(set(identifiers)):
            raise SigningError("the group's members must ascend by identifier, each once")
        if not 2 <= self.threshold <= len(identifiers) <= MAX_MEMBERS:
            raise SigningError(f"{self.threshold} of {len(identifiers)} is not a threshold")
        if len(self.transcript_sha256) != _HASH_BYTES:
            raise SigningError("the group's transcript hash has a wrong length")
        if any(len(each.identity_key) != _KEY_BYTES for each in self.members):
            raise SigningError("a member's identity key has a wrong length")
        try:
            shares = {each.identifier: decode_element(each.verifying_share) for each in self.members}
            key = GroupKey(public_key=decode_element(self.public_key), verifying_shares=shares)
            check_group_key(self.threshold, key)
        except FrostError as error:
            raise SigningError(f"the group's figures do not fit together: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """A statement with all its members' signatures (by identifier): public, and it proves itself."""

    statement: GroupStatement
    signatures: Mapping[int, bytes]

    @property
    def public_key(self) -> bytes:
        """The group's Ed25519 public key, 32 bytes."""
        return self.statement.public_key

    @property
    def key_id(self) -> str:
        """The name of that key on receipts."""
        return key_id_of(self.statement.public_key)

    @property
    def verifying_shares(self) -> Mapping[int, bytes]:
        """What signature shares are checked against, by identifier."""
        return MappingProxyType({each.identifier: each.verifying_share for each in self.statement.members})

    def verify(self) -> None:
        """Check the statement and that every member signed it.

        Raises:
            SigningError: naming the member whose signature is missing or wrong.
        """
        self.statement.check()
        signed = self.statement.signed_bytes()
        for member in self.statement.members:
            signature = self.signatures.get(member.identifier, b"")
            if not verify_signature(member.identity_key, signed, signature):
                raise SigningError(f"signer {member.identifier} did not sign the group's statement")
        if len(self.signatures) != len(self.statement.members):
            raise SigningError("the group's statement carries signatures of strangers")

    def to_json(self) -> bytes:
        """The record as it stands in ``group.json``; bytes are lower-case hex."""
        document = {
            "format": _FORMAT,
            "key_id": self.key_id,
            "statement": self.statement.to_document(),
            "signatures": {str(each): self.signatures[each].hex() for each in sorted(self.signatures)},
        }
        return (json.dumps(document, indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "GroupRecord":
        """Parse and verify a record.

        Raises:
            SigningError: it is not a record, or it does not verify.
        """
        try:
            document = json.loads(data)
            statement = GroupStatement.from_document(document["statement"])
            signatures = {int(each): bytes.fromhex(text) for each, text in document["signatures"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SigningError(f"not a signing group's record: {error!r}") from error
        record = cls(statement=statement, signatures=signatures)
        record.verify()
        # Parsers that accept two spellings of one record would let a changed file pass as the same.
        if record.to_json() != data:
            raise SigningError("the signing group's record is not spelled as this program writes it")
        return record


def transcript_sha256(parts: tuple[bytes, ...]) -> bytes:
    """The hash of what was published during a key generation, in order; lengths are hashed too."""
    digest = hashlib.sha256(b"joule-mesh.dkg-transcript/v1\x00")
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part)
    return digest.digest()


def group_statement(
    *, transcript: bytes, threshold: int, identities: Mapping[int, bytes], group: GroupKey
) -> GroupStatement:
    """The statement that a finished key generation amounts to."""
    members = tuple(
        GroupMember(
            identifier=identifier,
            identity_key=identities[identifier],
            verifying_share=Element(group.verifying_shares[identifier]),
        )
        for identifier in sorted(identities)
    )
    return GroupStatement(
        transcript_sha256=transcript, threshold=threshold, public_key=group.public_key, members=members
    )
