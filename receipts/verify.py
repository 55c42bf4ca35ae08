"""Verification for an auditor's laptop: files and a public key in, one line per failure out. Base install only.

report = verify_paths([Path("receipt.json")], public_key_from_hex(Path("signer_pubkey.hex").read_text()))
for finding in report:
    print(finding)
print(*report.notes, report.summary, sep="\n")
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from receipts.arithmetic import check_arithmetic
from receipts.canonical import JsonValue, canonical_bytes, parse_strict
from receipts.document import AccountHead, Receipt, cut_signature, document_from
from receipts.ed25519 import PUBLIC_KEY_BYTES, key_id_of, verify_signature
from receipts.errors import CannotVerify, InvalidDocument
from receipts.export_manifest import EXPORT_TYP, ExportManifest
from receipts.verify_chain import AccountChains, ChainFault, GivenHead, Link, Place
from receipts.verify_export import ExportCheck
from receipts.verify_input import DamagedInput, Entry, read_entries

_MAX_SHOWN_ID: Final = 37
_MAX_NOTES: Final = 100
# A file of a few kilobytes can hold a million empty lines, compressed.
_MAX_SHOWN_OF_A_FILE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One failure; as text, one line: ``FILE[:LINE]: receipt_id: what is wrong``."""

    file: str
    line: int | None
    receipt_id: str | None
    fault: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        parts = [place, self.receipt_id, self.fault] if self.receipt_id else [place, self.fault]
        return _printable(": ".join(parts))


def public_key_from_hex(text: str) -> bytes:
    """The group's public key as ``jc key`` writes it: 64 hex digits, white space around them.

    Raises:
        CannotVerify: it is none.
    """
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_BYTES:
        raise CannotVerify(f"a public key is {2 * PUBLIC_KEY_BYTES} hex digits")
    return key


def verify_paths(
    paths: Iterable[Path], public_key: bytes, on_read: Callable[[int], None] = lambda _bytes: None
) -> "VerificationReport":
    """Verify receipts, NDJSON files and tar archives (plain or gzip), all of them as one body of evidence.

    Nothing is read before the report is iterated; memory does not grow with the number of receipts. ``on_read`` is
    told the bytes of the files as they are read.

    Raises:
        CannotVerify: the key has not 32 bytes; while iterating, a file cannot be read.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise CannotVerify(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    return VerificationReport(paths, public_key, on_read)


class VerificationReport:
    """The findings, in the order in which they are certain; to be iterated once. Then the counts are final.

    ``passed`` counts receipts without a finding, ``failed`` the findings, those included that are not given because
    there are too many in one file: a note says how many. A receipt alone is not failed for lack of its predecessors;
    between two of one account, nothing may be missing.
    """

    def __init__(self, paths: Iterable[Path], public_key: bytes, on_read: Callable[[int], None]) -> None:
        self._paths = paths
        self._public_key = public_key
        self._on_read = on_read
        self._key_id = key_id_of(public_key)
        self._chains = AccountChains()
        self._export: ExportCheck | None = None
        self._hidden_notes: list[str] = []
        self._export_notes: list[str] = []
        self.passed = 0
        self.failed = 0

    @property
    def summary(self) -> str:
        """``Verified: N passed, M failed``."""
        return f"Verified: {self.passed} passed, {self.failed} failed"

    @property
    def notes(self) -> list[str]:
        """What the findings don't say: how many more there are; how far each account's receipts reach, what wasn't
        checked.
        """
        notes = [*self._hidden_notes, *self._chains.notes(), *self._export_notes]
        more = len(notes) - _MAX_NOTES
        shown = [_printable(note) for note in notes[:_MAX_NOTES]]
        return [*shown, f"{more} more such lines are not shown"] if more > 0 else shown

    def __iter__(self) -> Iterator[Finding]:
        for path in self._paths:
            yield from self._shown(self._findings_in(path), f"in {path}")
        yield from self._shown(map(self._take_back, self._chains.finish()), "in how the receipts fit together")

    def _shown(self, findings: Iterable[Finding], where: str) -> Iterator[Finding]:
        """Count all of them, give the first."""
        hidden = 0
        for number, finding in enumerate(findings):
            self.failed += 1
            if number < _MAX_SHOWN_OF_A_FILE:
                yield finding
            else:
                hidden += 1
        if hidden:
            self._hidden_notes.append(f"{hidden} more failures {where} are not shown")

    def _findings_in(self, path: Path) -> Iterator[Finding]:
        try:
            for entry in read_entries(path, self._on_read):
                yield from self._begin_export(entry) if entry.is_manifest else self._judge(entry)
        except DamagedInput as error:
            yield Finding(file=str(path), line=None, receipt_id=None, fault=str(error))
        yield from self._end_export()

    def _begin_export(self, entry: Entry) -> Iterator[Finding]:
        place = Place(file=entry.file, line=None, receipt_id=None)
        try:
            manifest = ExportManifest.from_json(entry.data)
        except InvalidDocument as error:
            yield Finding(file=entry.file, line=None, receipt_id=None, fault=str(error))
            return
        self._export = ExportCheck(manifest, place)
        if manifest.key_id != self._key_id:
            fault = f"an export of receipts under key {manifest.key_id}, not under the given key {self._key_id}"
            yield Finding(file=entry.file, line=None, receipt_id=None, fault=fault)

    def _end_export(self) -> Iterator[Finding]:
        export, self._export = self._export, None
        if export is None:
            return
        fault = export.fault_of_all()
        if fault is not None:
            yield self._take_back(ChainFault(place=export.place, fault=fault))
        if export.selected is not None:
            self._chains.add_selection(export.account, export.place, export.selected)
        self._export_notes += export.notes()

    def _judge(self, entry: Entry) -> Iterator[Finding]:
        """Examine one document, then see that it fits to the others of its account and export."""
        found = Examined()
        try:
            verify_document(
                entry.data,
                found,
                public_key=self._public_key,
                key_id=self._key_id,
                may_be_reformatted=entry.is_single,
            )
        except InvalidDocument as error:
            if isinstance(found.document, Receipt):
                self._leave_out(found.document)
            yield Finding(file=entry.file, line=entry.line, receipt_id=found.receipt_id, fault=str(error))
            return
        place = Place(file=entry.file, line=entry.line, receipt_id=found.receipt_id)
        if isinstance(found.document, AccountHead):
            yield from self._place_head(found.document, place)
            return
        assert found.document is not None, "a document that holds is one"
        yield from self._place_receipt(found.document, found.signed_sha256, place)

    def _place_head(self, head: AccountHead, place: Place) -> Iterator[Finding]:
        fault = None if self._export is None else self._export.add_head(head)
        if fault is not None:
            yield self._take_back(ChainFault(place=place, fault=fault))
        is_of_selection = self._export is not None and self._export.is_selection
        given = GivenHead(head=head, place=place, is_of_selection=is_of_selection)
        yield from map(self._take_back, self._chains.add_head(given))

    def _place_receipt(self, receipt: Receipt, sha256: str, place: Place) -> Iterator[Finding]:
        self.passed += 1
        account, chain = receipt.workload.account, receipt.chain
        link = Link(seq=chain.seq, prev_sha256=chain.prev_sha256, sha256=sha256, place=place)
        fault = None if self._export is None else self._export.fault_of(receipt)
        if fault is not None:
            self._leave_out(receipt)
            yield self._take_back(ChainFault(place=place, fault=fault))
        elif self._export is not None and self._export.is_selection:
            yield from map(self._take_back, self._in_selection(self._export, account, link))
        else:
            yield from map(self._take_back, self._chains.add(account, link))

    def _leave_out(self, failed: Receipt) -> None:
        """A receipt that failed leaves a gap in its chain that is no other failure."""
        if self._export is None or not self._export.is_selection:
            self._chains.add_failed(failed.workload.account, failed.chain.seq)

    def _in_selection(self, export: ExportCheck, account: str, link: Link) -> Iterator[ChainFault]:
        fault = export.add_selected(link)
        if fault is not None:
            yield ChainFault(place=link.place, fault=fault)
        named = self._chains.fault_of_named(account, link)
        if named is not None:
            yield named

    def _take_back(self, wrong: ChainFault) -> Finding:
        """A receipt that had passed by itself fails in its chain; a head was never counted."""
        place = wrong.place
        self.passed -= wrong.repeats + (place.receipt_id is not None)
        return Finding(file=place.file, line=place.line, receipt_id=place.receipt_id, fault=wrong.fault)


@dataclass(slots=True)
class Examined:
    """What has been found out about one document so far, whether it holds in the end or not."""

    receipt_id: str | None = None
    document: Receipt | AccountHead | None = None
    signed_sha256: str = ""


def verify_document(data: bytes, found: Examined, *, public_key: bytes, key_id: str, may_be_reformatted: bool) -> None:
    """Check one document by itself, and note in ``found`` what it is. ``key_id`` is the public key's name.

    Raises:
        InvalidDocument: the first thing that is wrong.
    """
    # 1. JSON that every parser reads alike: no name twice, no NaN, sound UTF-8, within the limits.
    value = parse_strict(data)
    found.receipt_id = _shown_id(value)

    if isinstance(value, dict) and value.get("typ") == EXPORT_TYP:
        alone = "alone: give the archive itself"
        moved = "but not its archive's first member: the members were reordered or repacked"
        raise InvalidDocument(f"an export's manifest, {alone if may_be_reformatted else moved}")

    # 2. A known type, every member there, none more, each within its range.
    document = found.document = document_from(value)

    # 3. The one canonical spelling (RFC 8785).
    canonical = canonical_bytes(value)
    if data != canonical:
        _check_reformatted(data, canonical, may_be_reformatted=may_be_reformatted)

    # 4. Signed, and said to be signed under the given key.
    claim = document.verification if isinstance(document, Receipt) else document
    if claim.signature is None:
        raise InvalidDocument("not signed yet")
    if claim.key_id != key_id:
        raise InvalidDocument(f"signed under key {claim.key_id}, not under the given key {key_id}")

    # 5. The group's signature over the canonical bytes without the signature (Ed25519, RFC 8032).
    signed = cut_signature(canonical, claim.signature)
    if not verify_signature(public_key, signed, bytes.fromhex(claim.signature)):
        raise InvalidDocument("the signature is not the group's: something was changed, or another key signed")

    # 6. Figures that follow from each other: duration, parts of the energy, facility, carbon, price.
    if isinstance(document, Receipt):
        check_arithmetic(document)

    # 7. What the next receipt of the account must name as its predecessor.
    found.signed_sha256 = hashlib.sha256(signed).hexdigest()


def _check_reformatted(data: bytes, canonical: bytes, *, may_be_reformatted: bool) -> None:
    """The signature covers values, so a single receipt that was pretty-printed still counts.

    But a file of the canonical length, or a byte longer, is no reformatted one: a byte of it was changed or added.
    """
    if not may_be_reformatted:
        raise InvalidDocument("not in canonical form")
    if data != canonical + b"\n" and len(canonical) <= len(data) <= len(canonical) + 1:
        raise InvalidDocument("not in canonical form, and no reformatted receipt either: a byte was changed")


def _shown_id(value: JsonValue) -> str | None:
    """The receipt's id for messages, before anything about it is certain."""
    claimed = value.get("receipt_id") if isinstance(value, dict) else None
    return claimed[:_MAX_SHOWN_ID] if isinstance(claimed, str) else None


def _printable(text: str) -> str:
    """What may be quoted from a file must not command the terminal that shows it."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
