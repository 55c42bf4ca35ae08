"""An export's manifest: what the archive says of itself. Nobody signed it, so it can accuse an export, not clear it."""

from typing import Final, Literal, Self

from pydantic import ValidationError

from receipts.canonical import canonical_bytes, parse_strict
from receipts.document import first_fault
from receipts.errors import InvalidDocument
from receipts.members import AccountName, Count, CustomerTag, KeyId, StrictModel

EXPORT_TYP: Final = "joule-mesh.export/v1"
MANIFEST_MEMBER: Final = "manifest.json"
CHECKSUMS_MEMBER: Final = "SHA256SUMS"


class ExportSelection(StrictModel):
    """Which of the account's receipts were asked for: those with a tag, and from a time on. Null: all."""

    customer_tag: CustomerTag | None
    since_unix_ns: Count | None


class ExportManifest(StrictModel):
    """The archive's first member. ``key_id`` names the group key that its receipts are signed under."""

    typ: Literal["joule-mesh.export/v1"]
    account: AccountName
    created_unix_ns: Count
    key_id: KeyId
    selection: ExportSelection

    def to_json(self) -> bytes:
        """The member's bytes: one line of canonical JSON; `from_json` gives an equal manifest back."""
        return canonical_bytes(self.model_dump()) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse what `to_json` wrote; the newline may be gone.

        Raises:
            InvalidDocument: anything else, other spellings of the same included.
        """
        try:
            manifest = cls.model_validate(parse_strict(data))
        except ValidationError as error:
            raise InvalidDocument(f"the export's manifest: {first_fault(error)}") from error
        if data.removesuffix(b"\n") + b"\n" != manifest.to_json():
            raise InvalidDocument("the export's manifest is not in canonical form")
        return manifest
