"""Files to verify, taken apart into documents in constant memory: a receipt, NDJSON, or a tar of both."""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NoReturn, Self

from receipts.canonical import MAX_BYTES
from receipts.errors import CannotVerify, ReceiptsError
from receipts.export_manifest import CHECKSUMS_MEMBER, MANIFEST_MEMBER

_GZIP: Final = b"\x1f\x8b"
# bzip2 and xz: their readers in the standard library drop what doesn't parse behind the first stream, in silence.
_NOT_READ: Final = (b"BZh", b"\xfd7zXZ\x00")
_TAR_MAGIC: Final = slice(257, 262)
_READ_AHEAD_BYTES: Final = 2**16
_LINES: Final = (".ndjson", ".jsonl")
_SINGLE: Final = ".json"
# A byte too many shows that a document is too long; one more is its newline.
_READ_LIMIT: Final = MAX_BYTES + 2
# Long names and attributes precede a member in headers of their own, which tarfile reads whole.
_EXTENDED_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class DamagedInput(ReceiptsError):
    """A file that cannot be read to its end as what it is; what came before the damage stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One document's bytes, and where they are from; ``line`` is None for a file with a single document.

    ``is_single`` marks a file that holds this document alone, which a person may have reformatted; ``is_manifest``
    an archive's first member where that is named as an export's manifest is.
    """

    file: str
    line: int | None
    data: bytes
    is_single: bool = False
    is_manifest: bool = False


def read_entries(path: Path, on_read: Callable[[int], None] = lambda _bytes: None) -> Iterator[Entry]:
    """The documents of a file, in its order. What kind of file it is shows in its content, not in its name,
    except that ``.ndjson`` and ``.jsonl`` are lines even where there is only one.

    ``on_read`` is told the bytes of the file as they are read.

    Raises:
        CannotVerify: the file cannot be read.
        DamagedInput: it is cut short, or its archive is damaged.
    """
    try:
        with io.BufferedReader(_Watched(path, on_read), _READ_AHEAD_BYTES) as file:
            yield from _entries(str(path), _Peeked(_decompressed(_Peeked(file))))
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise DamagedInput(f"the archive is damaged or cut short: {error}") from error
    except (ValueError, RecursionError) as error:
        # tarfile trusts the numbers in a member's extended headers, and goes from one to the next by recursion.
        raise DamagedInput(f"the archive is damaged: its members' attributes make no sense ({error})") from error
    except OSError as error:
        # Decompressors raise OSError for bad data, without the number that the system's own errors have.
        if error.errno is None:
            raise DamagedInput(f"the archive is damaged: {error}") from error
        raise CannotVerify(f"{path} cannot be read: {error.strerror}") from error


def _decompressed(stream: "_Peeked") -> io.BufferedIOBase:
    if stream.head.startswith(_NOT_READ):
        raise DamagedInput("it is compressed with bzip2 or xz, which are not read: unpack it, or compress it with gzip")
    return gzip.GzipFile(fileobj=stream.whole) if stream.head.startswith(_GZIP) else stream.whole


def _entries(name: str, stream: "_Peeked") -> Iterator[Entry]:
    if len(stream.head) < _READ_LIMIT and not stream.head.strip():
        raise DamagedInput("the file is empty")
    if _is_tar(stream.head):
        yield from _tar_entries(name, stream.whole)
    elif name.endswith(_LINES) or _is_lines(stream.head):
        yield from _lines(name, stream.whole)
    else:
        yield Entry(file=name, line=None, data=stream.head, is_single=True)


def _is_tar(head: bytes) -> bool:
    """A receipt might have these letters in this place."""
    return head[_TAR_MAGIC] == b"ustar" and not head.startswith(b"{")


def _is_lines(head: bytes) -> bool:
    """A whole object on the first line and another after it; or too long to be one document."""
    first, _, rest = (part.strip() for part in head.partition(b"\n"))
    is_object = first.startswith(b"{") and first.endswith(b"}")
    return (is_object and rest.startswith(b"{")) or len(head) == _READ_LIMIT


def _lines(name: str, stream: IO[bytes]) -> Iterator[Entry]:
    number = 0
    while line := stream.readline(_READ_LIMIT):
        number += 1
        yield Entry(file=name, line=number, data=line.removesuffix(b"\n"))
        while len(line) == _READ_LIMIT and not line.endswith(b"\n"):
            line = stream.readline(_READ_LIMIT)


def _tar_entries(name: str, stream: IO[bytes]) -> Iterator[Entry]:
    found = is_export = is_whole = False
    listing = _Listing()
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as tar:
        while (member := _next_member(tar)) is not None:
            if member.isdir():
                continue
            content = _Hashed(_content(tar, member))
            if is_whole:
                raise DamagedInput(f"its member {member.name} comes after {CHECKSUMS_MEMBER}, which must be the last")
            is_manifest = listing.is_empty and member.name == MANIFEST_MEMBER
            is_export = is_export or is_manifest
            whole_name = f"{name}/{member.name.removeprefix('./')}"
            if member.name.endswith(_LINES):
                for entry in _lines(whole_name, io.BufferedReader(content)):
                    found = True
                    yield entry
            elif member.name.endswith(_SINGLE):
                found = True
                data = io.BufferedReader(content).read(_READ_LIMIT).removesuffix(b"\n")
                yield Entry(file=whole_name, line=None, data=data, is_manifest=is_manifest)
            digest = content.digest_to_the_end()
            if is_export and member.name == CHECKSUMS_MEMBER:
                listing.check(digest)
                is_whole = True
            listing.add(member.name, digest)
        _check_end(tar)
    if not found:
        raise DamagedInput("the archive holds no receipts: no line in a .ndjson or .jsonl file, and no .json file")
    if is_export and not is_whole:
        raise DamagedInput(f"the export has no {CHECKSUMS_MEMBER}")


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    member = tar.next()
    if member is not None and member.size < 0:
        # tarfile would go back to the beginning from here, and take that for the end.
        raise DamagedInput(f"the archive is damaged: its member {member.name} has a size below zero")
    # tarfile remembers every member and attribute that it has seen; here each is seen once.
    tar.members.clear()  # type: ignore[attr-defined]
    tar.pax_headers.clear()  # type: ignore[attr-defined]
    return member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The member's bytes; files only, and none that holds files itself, whose receipts nobody would have looked at."""
    content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if content is None:
        raise DamagedInput(f"its member {member.name} is not a file")
    # Peeking never goes past the buffer, which holds a header's block.
    head = content.peek(_TAR_MAGIC.stop)  # type: ignore[attr-defined]
    if _is_tar(head) or head.startswith((_GZIP, *_NOT_READ)):
        raise DamagedInput(f"its member {member.name} is an archive itself: unpack it and give it by itself")
    return content


def _check_end(tar: tarfile.TarFile) -> None:
    """Nothing but zeros follows the end mark, where other tools would go on reading.

    It is read to the end also for the checksum that a compressed file has there.
    """
    assert tar.fileobj is not None, "it is open"
    while rest := tar.fileobj.read(_READ_LIMIT):
        if rest.strip(b"\0"):
            raise DamagedInput("the archive goes on after its end mark")


class _Hashed(io.RawIOBase):
    """A member's bytes, hashed as they are read."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count: int = self._content.readinto(buffer)  # type: ignore[attr-defined]
        self._sha256.update(buffer[:count])
        return count

    def digest_to_the_end(self) -> bytes:
        """SHA-256 of the whole member, what has not been read yet included."""
        while chunk := self._content.read(_READ_AHEAD_BYTES):
            self._sha256.update(chunk)
        return self._sha256.digest()


class _Listing:
    """What an export's ``SHA256SUMS`` must hold: a line for every member before it, in the archive's order.

    Only the hash of that text is kept, so that any number of members can be told.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.is_empty = True

    def add(self, name: str, digest: bytes) -> None:
        """Take in the next member, its name and SHA-256."""
        self._sha256.update(f"{digest.hex()}  {name}\n".encode(errors="surrogateescape"))
        self.is_empty = False

    def check(self, digest: bytes) -> None:
        """Compare with the hash of the archive's own listing.

        Raises:
            DamagedInput: they differ.
        """
        if digest != self._sha256.digest():
            raise DamagedInput(
                f"{CHECKSUMS_MEMBER} does not list the members before it as they are: something was changed, "
                "added or dropped"
            )


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header, or no end mark, for the archive's end; as evidence that would drop receipts."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As tarfile's, but only the end mark ends an archive."""
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where a member or the end mark should be") from error
        if header.type in _EXTENDED_HEADERS and header.size > MAX_BYTES:
            raise tarfile.ReadError(f"a member's attributes are longer than {MAX_BYTES} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            cls._refuse_sparse()
        return header

    @staticmethod
    def _refuse_sparse(*_headers: object) -> NoReturn:
        """Such a member's map of holes can be of any length, and would be read whole."""
        raise tarfile.ReadError("a member is a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


class _Watched(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """As a file's."""
        count = super().readinto(buffer)
        self._on_read(count or 0)
        return count


class _Peeked:
    """A stream whose beginning is known and yet to be read; pipes cannot be rewound."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.head: Final = stream.read(_READ_LIMIT)
        self.whole: Final[io.BufferedReader] = io.BufferedReader(_Replayed(self.head, stream))


class _Replayed(io.RawIOBase):
    def __init__(self, head: bytes, rest: io.BufferedIOBase) -> None:
        self._head = memoryview(head)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        chunk = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(chunk)] = chunk
        return len(chunk)
