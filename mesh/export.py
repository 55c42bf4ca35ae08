"""An export: one tar with an account's receipts and all that an auditor needs to check them without the mesh.

Written in constant memory: a member's lines are gathered in a file beside the output, since a tar says how long a
member is before it begins.
"""

import gzip
import hashlib
import io
import itertools
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

from mesh.errors import MeshError
from mesh.retry import retried
from receipts.canonical import parse_strict
from receipts.document import AccountHead, document_from
from receipts.ed25519 import key_id_of
from receipts.errors import InvalidDocument, InvalidMoment
from receipts.export_manifest import CHECKSUMS_MEMBER, EXPORT_TYP, MANIFEST_MEMBER, ExportManifest, ExportSelection
from receipts.moments import parse_moment, rfc3339

RECEIPTS_PER_MEMBER: Final = 10_000
SIGNING_WAIT_S: Final = 60.0
"""So long an export waits for signatures before it leaves out the receipts that have none."""
_PLAIN: Final = (".tar",)
_GZIPPED: Final = (".tar.gz", ".tgz")
_POLL_S: Final = 0.5
_PENDING: Final = b'"signature":null'
_FILE_MODE: Final = 0o644
_GZIP_LEVEL: Final = 6

README: Final = """\
{title}
{underline}

This archive holds one account's receipts, as its inference mesh signed them: what each request drew in joules, how
that was measured, what it cost, and where it ran. Anybody can check them, offline, without trusting who sent them.

  manifest.json        whose receipts these are, when they were exported, and what was selected; not signed
  heads/               the signers' own word on where the account's chain of receipts began and ended, and when
  receipts/            the receipts, one a line, in the order of their chain
  signer_pubkey.hex    the public key of the signers (key id {key_id})
  SHA256SUMS           of the files above: sha256sum --check SHA256SUMS

To check
  1. Get the signers' public key from somewhere else than this archive: from the operator's web site, an earlier
     export, or a contract. Whoever forged receipts would have put their own key beside them. The two must be equal.
  2. Install Joule Mesh's base package (Python 3.11; it needs neither Ray nor a GPU) and run
         jc verify --key KEY_FILE THIS_ARCHIVE
     It checks every signature, that the figures follow from each other, and that no receipt is missing, changed,
     repeated or out of order between the first and the last one that the head names.

What was selected
  {selection}

What the figures mean, and which of them rest on whose word, is explained in receipts/README.md of the project.
"""
_WHOLE: Final = "All receipts of the account from {since} up to the head."
_TAGGED: Final = (
    "Only receipts with the customer tag {tag!r},\n  from {since} up to the head. The chain runs through all of the\n"
    "  account's receipts, so no one can tell from this archive whether another one with that tag was left out."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was written. ``unsigned`` receipts of the selection were left out: the signers had not come to them."""

    output: Path
    account: str
    key_id: str
    receipts: int
    first_seq: int
    last_seq: int
    unsigned: int


class ExportSource(Protocol):
    """The mesh whose receipts are exported. Raises `MeshError`, and `MeshAway` where another try may help."""

    def group_key(self) -> dict[str, Any]:
        """As `MeshClient.group_key`."""

    def receipt(self, receipt_id: str) -> bytes:
        """As `MeshClient.receipt`, which waits a little for its signature."""

    def account_head(self, since_unix_ns: int | None) -> bytes:
        """As `MeshClient.account_head`."""

    def receipt_pages(
        self,
        *,
        customer_tag: str | None = None,
        first_seq: int | None = None,
        last_seq: int | None = None,
        limit: int = ...,
        newest_first: bool = False,
    ) -> Iterator[bytes]:
        """As `MeshClient.receipt_pages`."""


class ExportView(Protocol):
    """Who watches an export."""

    def note(self, text: str) -> None:
        """Something is waited for."""

    def advanced(self, done: int, total: int) -> None:
        """So many places of the chain are done, of so many."""


class Clock(Protocol):
    """The part of the module `time` that an export needs."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""

    def monotonic(self) -> float:
        """Seconds, never going back."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


def write_export(
    source: ExportSource,
    output: Path,
    *,
    since: str | None,
    customer_tag: str | None,
    overwrite: bool,
    view: ExportView | None,
    clock: Clock,
) -> ExportSummary:
    """Write an export; there is a file of the output's name only when it is whole.

    Raises:
        MeshError: what is wrong with the output or the selection, or what the mesh could not do.
    """
    now_ns = clock.time_ns()
    selection = ExportSelection(customer_tag=customer_tag, since_unix_ns=_since(since, now_ns))
    view = view or _NobodyWatches()
    with _output_file(output, overwrite=overwrite) as file:
        newest = _wait_for_signatures(source, view, clock)
        head_bytes, head = _head(source, selection.since_unix_ns, clock)
        public_key = _public_key(source, head, clock)
        manifest = ExportManifest(
            typ=EXPORT_TYP,
            account=head.account,
            created_unix_ns=now_ns,
            key_id=head.key_id,
            selection=selection,
        )
        with _archive(file, output.name) as tar:
            members = _Members(tar, output.parent)
            members.add(MANIFEST_MEMBER, manifest.to_json())
            members.add("README.txt", _readme(manifest).encode())
            members.add("signer_pubkey.hex", public_key.hex().encode() + b"\n")
            members.add(f"heads/{head.account}.json", head_bytes + b"\n")
            count = members.add_lines(_lines(source, head, customer_tag, view))
            if not count:
                raise MeshError(f"no signed receipt of that time has the customer tag {customer_tag!r}")
            members.add(CHECKSUMS_MEMBER, members.checksums())
        unsigned = _count(source, head.last_seq + 1, newest, customer_tag) if newest > head.last_seq else 0
    return ExportSummary(
        output=output,
        account=head.account,
        key_id=head.key_id,
        receipts=count,
        first_seq=head.first_seq,
        last_seq=head.last_seq,
        unsigned=unsigned,
    )


class _NobodyWatches:
    def note(self, text: str) -> None:
        """Nothing."""

    def advanced(self, done: int, total: int) -> None:
        """Nothing."""


def _since(since: str | None, now_unix_ns: int) -> int | None:
    try:
        return None if since is None else parse_moment(since, now_unix_ns)
    except InvalidMoment as error:
        raise MeshError(f"since: {error}") from error


@contextmanager
def _output_file(output: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """``FILE.part``, which becomes the output when all went well, and is removed when not."""
    if not output.name.endswith((*_PLAIN, *_GZIPPED)):
        raise MeshError(f"{output}: an export is a .tar, .tar.gz or .tgz, by its name")
    if output.exists() and not overwrite:
        raise MeshError(f"{output} is there already; give another name, or --force to write over it")
    part = output.with_name(f"{output.name}.part")
    try:
        file = part.open("wb" if overwrite else "xb")
    except FileExistsError as error:
        raise MeshError(
            f"{part} is there: another export is being written, or one was killed; "
            "remove it when none is, or write over it with --force"
        ) from error
    except OSError as error:
        raise MeshError(f"{part} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    except OSError as error:
        raise MeshError(f"{output} could not be written: {error.strerror}; nothing is left of it") from error
    finally:
        part.unlink(missing_ok=True)


def _wait_for_signatures(source: ExportSource, view: ExportView, clock: Clock) -> int:
    """Wait until the account's newest receipt is signed, but not for ever; give its ``seq``.

    Receipts are signed in the order of the chain, so when it is, all are.
    """
    newest = next(source.receipt_pages(limit=1, newest_first=True), None)
    if newest is None:
        raise MeshError("the account has no receipts yet")
    give_up = clock.monotonic() + SIGNING_WAIT_S
    receipt = json.loads(newest)
    ask = partial(source.receipt, receipt["receipt_id"])
    while receipt["verification"]["signature"] is None and clock.monotonic() < give_up:
        view.note("waiting for signatures")
        clock.sleep(_POLL_S)
        receipt = json.loads(retried(ask, clock.sleep, was_there=True))
    return int(receipt["chain"]["seq"])


def _head(source: ExportSource, since_unix_ns: int | None, clock: Clock) -> tuple[bytes, AccountHead]:
    head = retried(partial(source.account_head, since_unix_ns), clock.sleep, was_there=True)
    try:
        document = document_from(parse_strict(head))
    except InvalidDocument as error:
        raise MeshError(f"what the mesh gives as the account's head is none: {error}") from error
    if not isinstance(document, AccountHead):
        raise MeshError("what the mesh gives as the account's head is a receipt")
    return head, document


def _public_key(source: ExportSource, head: AccountHead, clock: Clock) -> bytes:
    group = retried(source.group_key, clock.sleep, was_there=True)
    public_key = bytes.fromhex(group["public_key"])
    if key_id_of(public_key) != head.key_id:
        raise MeshError(f"the account's head is signed under key {head.key_id}, not under the mesh's own")
    return public_key


def _readme(manifest: ExportManifest) -> str:
    wanted = manifest.selection
    since = "the first one" if wanted.since_unix_ns is None else rfc3339(wanted.since_unix_ns)
    selection = (_WHOLE if wanted.customer_tag is None else _TAGGED).format(since=since, tag=wanted.customer_tag)
    title = f"Energy receipts of the account {manifest.account}"
    return README.format(title=title, underline="=" * len(title), key_id=manifest.key_id, selection=selection)


def _lines(source: ExportSource, head: AccountHead, customer_tag: str | None, view: ExportView) -> Iterator[bytes]:
    """The selected lines between the head's ends.

    Raises:
        MeshError: the mesh gave others than the head promises; an archive of them would not verify.
    """
    place, total = head.first_seq - 1, head.last_seq - head.first_seq + 1
    pages = source.receipt_pages(customer_tag=customer_tag, first_seq=head.first_seq, last_seq=head.last_seq)
    for page in pages:
        lines = page.splitlines(keepends=True)
        first, last = _seq(lines[0]), _seq(lines[-1])
        is_whole = customer_tag is not None or (first == place + 1 and last == place + len(lines))
        if not place < first <= last <= head.last_seq or not is_whole or _PENDING in page:
            raise MeshError(f"after receipt {place} the mesh did not give what its signers say is there; export again")
        yield from lines
        place = last
        view.advanced(place - head.first_seq + 1, total)
    if customer_tag is None and place != head.last_seq:
        raise MeshError(f"the mesh gave no receipt after {place}, but its signers say there are {head.last_seq}")
    view.advanced(total, total)


def _seq(line: bytes) -> int:
    return int(json.loads(line)["chain"]["seq"])


def _count(source: ExportSource, first_seq: int, last_seq: int, customer_tag: str | None) -> int:
    pages = source.receipt_pages(customer_tag=customer_tag, first_seq=first_seq, last_seq=last_seq)
    return sum(page.count(b"\n") for page in pages)


@contextmanager
def _archive(file: IO[bytes], name: str) -> Iterator[tarfile.TarFile]:
    """A tar that is written from front to back. What is compressed has no name and time of its own."""
    with ExitStack() as stack:
        if name.endswith(_GZIPPED):
            file = cast("IO[bytes]", stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)))
        yield stack.enter_context(tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT))


class _Members:
    """Adds members whose headers depend on nothing but their names and contents, and keeps their hashes."""

    def __init__(self, tar: tarfile.TarFile, folder: Path) -> None:
        self._tar = tar
        self._folder = folder
        self._checksums: list[str] = []

    def add(self, name: str, content: bytes) -> None:
        """Add a small member."""
        self._add(name, io.BytesIO(content), len(content), hashlib.sha256(content).hexdigest())

    def add_lines(self, lines: Iterator[bytes]) -> int:
        """Add the lines as members ``receipts/000001.ndjson`` and so on; give their number."""
        count = 0
        for number in itertools.count(1):
            taken = self._add_part(f"receipts/{number:06d}.ndjson", itertools.islice(lines, RECEIPTS_PER_MEMBER))
            count += taken
            if taken < RECEIPTS_PER_MEMBER:
                break
        return count

    def checksums(self) -> bytes:
        """What has been added, as `sha256sum` writes it."""
        return "".join(self._checksums).encode()

    def _add_part(self, name: str, lines: Iterator[bytes]) -> int:
        digest, taken = hashlib.sha256(), 0
        with tempfile.TemporaryFile(dir=self._folder) as spool:
            for line in lines:
                spool.write(line)
                digest.update(line)
                taken += 1
            size = spool.tell()
            spool.seek(0)
            if taken:
                self._add(name, spool, size, digest.hexdigest())
        return taken

    def _add(self, name: str, content: IO[bytes], size: int, sha256: str) -> None:
        header = tarfile.TarInfo(name)
        header.size, header.mode = size, _FILE_MODE
        self._tar.addfile(header, content)
        self._checksums.append(f"{sha256}  {name}\n")
