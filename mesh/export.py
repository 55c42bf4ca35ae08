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
import re
import secrets
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

from pydantic import ValidationError

from mesh.errors import MeshError
from mesh.retry import retried
from receipts.canonical import parse_strict
from receipts.document import AccountHead, document_from, first_fault
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
# A quote inside a string stands behind a backslash: in canonical JSON these match the members alone.
_SEQ: Final = re.compile(rb'"seq":([0-9]+)')
_KEY_ID: Final = re.compile(rb'"key_id":"([0-9a-f]+)"')
_END: Final = re.compile(rb'"end_unix_ns":([0-9]+)')
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
     export, or a contract. Whoever forged receipts would have put their own key beside them. The two must be equal:
     compare signer_pubkey.hex with what you got, digit by digit, and put what you got into a file of its own, KEY_FILE.
  2. Install the Python package joule-mesh, without any of its extras: it then needs neither Ray nor a GPU. Its source
     is the operator's to give you. With Python 3.11, in the folder of the source that holds pyproject.toml:
         python3.11 -m pip install .
  3. Run
         jc verify --key KEY_FILE THIS_ARCHIVE
     It works offline. It checks every signature, that the figures follow from each other, and that no receipt is
     missing, changed, repeated or out of order between the first and the last one that the head names. Its last line
     should end in "0 failed", and the line before should say that the chain ended at the receipt and time that you
     expect: who keeps back the newest receipts can do it only by giving you an older head.
     Of exports that overlap give it the newest only; those that follow each other can be checked together.

What was selected
  {selection}

What the figures mean
  energy.total_joules   IT energy of this request, without cooling and the like; null: not known, and never charged
  energy.method         how it was measured; energy.method_confidence and energy.errors say how well
  carbon.*              total_joules x the data centre's overhead (operator.dc_pue) x the grid's average intensity
  price.usd_picos       what was charged, in 10^-12 US dollars: total_joules x price.usd_per_kwh
  chain                 the receipt's number, and the SHA-256 of the account's receipt before it
  verification          the signers' key, and their signature over the receipt's canonical JSON without it

Whose word it is
  A signature says that enough of the mesh's signers checked the receipt's form, its arithmetic and its place in the
  chain, and saw the statement of an enrolled meter on its energy. It does not say that the meter was right. Model,
  prices and what is said of operator and data centre are the operator's word; the grid's figures are carbon.source's.
  Every field is explained in receipts/README.md of the package's source.
"""
_WHOLE: Final = "All receipts of the account from {since} up to the head."
_TAGGED: Final = (
    "Only receipts with the customer tag {tag!r},\n  from {since} up to the head. The chain runs through all of the\n"
    "  account's receipts, so no one can tell from this archive whether another one with that tag was left out.\n"
    "  Check it by itself, not together with other archives."
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
    selection = _selection(customer_tag, _since(since, now_ns))
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


def _selection(customer_tag: str | None, since_unix_ns: int | None) -> ExportSelection:
    try:
        return ExportSelection(customer_tag=customer_tag, since_unix_ns=since_unix_ns)
    except ValidationError as error:
        raise MeshError(first_fault(error)) from error


def _since(since: str | None, now_unix_ns: int) -> int | None:
    try:
        return None if since is None else parse_moment(since, now_unix_ns)
    except InvalidMoment as error:
        raise MeshError(f"since: {error}") from error


@contextmanager
def _output_file(output: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file of this export's own beside the output, which becomes it when all went well, and is removed when not."""
    if not output.name.endswith((*_PLAIN, *_GZIPPED)):
        raise MeshError(f"{output}: an export is a .tar, .tar.gz or .tgz, by its name")
    if output.is_dir():
        raise MeshError(f"{output} is a folder; give the name of a file")
    if output.exists() and not overwrite:
        raise _there_already(output)
    part = output.with_name(f"{output.name}.{secrets.token_hex(4)}.part")
    try:
        file = part.open("xb")
    except OSError as error:
        raise MeshError(f"{part} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(part, output, overwrite=overwrite)
    except OSError as error:
        left = "what was there is unchanged" if output.exists() else "nothing is left of it"
        raise MeshError(f"{output} could not be written: {error.strerror}; {left}") from error
    finally:
        part.unlink(missing_ok=True)


def _put_in_place(part: Path, output: Path, *, overwrite: bool) -> None:
    """Give the whole file its name. Without ``overwrite`` not over another's, though it came there just now."""
    if not overwrite:
        try:
            os.link(part, output)
        except FileExistsError as error:
            raise _there_already(output) from error
        except OSError as error:
            # A file system without links. A moment is left in which another's file would be written over.
            if output.exists():
                raise _there_already(output) from error
        else:
            return
    part.replace(output)


def _there_already(output: Path) -> MeshError:
    return MeshError(f"{output} is there already; give another name, or --force to write over it")


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
        for line in page.splitlines(keepends=True):
            seq = int(_member(_SEQ, line) or 0)
            is_next = place < seq <= head.last_seq if customer_tag is not None else seq == place + 1 <= head.last_seq
            if not is_next or _PENDING in line:
                raise MeshError(
                    f"after receipt {place} the mesh did not give what its signers say is there; export again"
                )
            if _member(_KEY_ID, line) != head.key_id.encode():
                raise _other_key(source, head, seq)
            yield line
            place = seq
        view.advanced(place - head.first_seq + 1, total)
    if customer_tag is None and place != head.last_seq:
        raise MeshError(f"the mesh gave no receipt after {place}, but its signers say there are {head.last_seq}")
    view.advanced(total, total)


def _other_key(source: ExportSource, head: AccountHead, seq: int) -> MeshError:
    """Receipt ``seq`` is of an earlier key. Says from when on all are of the head's."""
    pages = source.receipt_pages(first_seq=seq, last_seq=head.last_seq)
    others = (each for page in pages for each in page.splitlines() if _member(_KEY_ID, each) != head.key_id.encode())
    last_end_unix_ns = max(int(_member(_END, each) or 0) for each in others)
    return MeshError(
        f"receipt {seq} is not signed under {head.key_id}, the signers' key of now, and an export is of one key: "
        f"leave the earlier ones out with --since {rfc3339(last_end_unix_ns + 1)}"
    )


def _member(pattern: re.Pattern[bytes], line: bytes) -> bytes:
    found = pattern.search(line)
    return b"" if found is None else found[1]


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
