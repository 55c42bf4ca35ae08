"""Files to verify, taken apart into documents in constant memory: a receipt, NDJSON, or a tar of both."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, Self

from receipts.canonical import MAX_BYTES
from receipts.errors import CannotVerify, ReceiptsError

_OPENERS: Final[tuple[tuple[bytes, Callable[[io.BufferedReader], io.BufferedIOBase]], ...]] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_TAR_MAGIC: Final = slice(257, 262)
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

    ``is_single`` marks a file that holds this document alone, which a person may have reformatted.
    """

    file: str
    line: int | None
    data: bytes
    is_single: bool


def read_entries(path: Path) -> Iterator[Entry]:
    """The documents of a file, in its order. What kind of file it is shows in its content, not in its name,
    except that ``.ndjson`` and ``.jsonl`` are lines even where there is only one.

    Raises:
        CannotVerify: the file cannot be read.
        DamagedInput: it is cut short, or its archive is damaged.
    """
    try:
        with path.open("rb") as file:
            yield from _entries(str(path), _Peeked(_decompressed(_Peeked(file))))
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DamagedInput(f"the archive is damaged or cut short: {error}") from error
    except OSError as error:
        # Decompressors raise OSError for bad data, without the number that the system's own errors have.
        if error.errno is None:
            raise DamagedInput(f"the archive is damaged: {error}") from error
        raise CannotVerify(f"{path} cannot be read: {error.strerror}") from error


def _decompressed(stream: "_Peeked") -> io.BufferedIOBase:
    for magic, opener in _OPENERS:
        if stream.head.startswith(magic):
            return opener(stream.whole)
    return stream.whole


def _entries(name: str, stream: "_Peeked") -> Iterator[Entry]:
    if not stream.head.strip():
        raise DamagedInput("the file is empty")
    if stream.head[_TAR_MAGIC] == b"ustar":
        yield from _tar_entries(name, stream.whole)
    elif name.endswith(_LINES) or _is_lines(stream.head):
        yield from _lines(name, stream.whole)
    else:
        yield Entry(file=name, line=None, data=stream.head, is_single=True)


def _is_lines(head: bytes) -> bool:
    """A whole object on the first line and another after it; or too long to be one document."""
    first, _, rest = (part.strip() for part in head.partition(b"\n"))
    is_object = first.startswith(b"{") and first.endswith(b"}")
    return (is_object and rest.startswith(b"{")) or len(head) == _READ_LIMIT


def _lines(name: str, stream: IO[bytes]) -> Iterator[Entry]:
    number = 0
    while line := stream.readline(_READ_LIMIT):
        number += 1
        yield Entry(file=name, line=number, data=line.removesuffix(b"\n"), is_single=False)
        while len(line) == _READ_LIMIT and not line.endswith(b"\n"):
            line = stream.readline(_READ_LIMIT)


def _tar_entries(name: str, stream: IO[bytes]) -> Iterator[Entry]:
    found = False
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as tar:
        while (member := tar.next()) is not None:
            # tarfile remembers every member that it has seen; here each is seen once.
            tar.members.clear()  # type: ignore[attr-defined]
            if member.name.endswith((*_LINES, _SINGLE)) and not member.isdir():
                found = True
                yield from _member_entries(name, tar, member)
    # A compressed file has its checksum at the end.
    while stream.read(_READ_LIMIT):
        pass
    if not found:
        raise DamagedInput("the archive holds no .ndjson or .json file")


def _member_entries(archive: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Entry]:
    name = f"{archive}/{PurePosixPath(member.name)}"
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise DamagedInput(f"its member {member.name} is not a file")
    if member.name.endswith(_LINES):
        yield from _lines(name, content)
    else:
        yield Entry(file=name, line=None, data=content.read(_READ_LIMIT).removesuffix(b"\n"), is_single=False)


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
        return header


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
