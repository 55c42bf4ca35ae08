"""Archives that were made to hurt, or are something else: one clear line, in memory that does not grow."""

import bz2
import gzip
import lzma
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receipts.errors import CannotVerify
from receipts.verify_input import DamagedInput, read_entries

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
LINE = b'{"typ":"x"}\n'
NOTHING = "the archive holds no receipts: no line in a .ndjson or .jsonl file, and no .json file"


def member(name: str, data: bytes = b"", **header: object) -> bytes:
    """One member as it stands in an archive; ``header`` sets fields as tarfile names them."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in header.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def archive(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return member("attributes", records, type=kind)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body) + 2))
    return str(length).encode() + body


def fault_of(folder: Path, data: bytes) -> str:
    path = folder / "given"
    path.write_bytes(data)
    with pytest.raises(DamagedInput) as caught:
        list(read_entries(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("input")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (tarfile.SYMTYPE, "r.ndjson"),
        (tarfile.LNKTYPE, "r.ndjson"),
        (tarfile.SYMTYPE, "README.txt"),
        (tarfile.CHRTYPE, "r.json"),
        (tarfile.FIFOTYPE, "pipe"),
        (b"?", "unknown-kind.json"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: bytes, name: str) -> None:
    data = archive(member("a.ndjson", LINE), member(name, type=kind, linkname="/etc/passwd"))
    fault = fault_of(tmp_path, data)
    assert fault in (f"its member {name} is not a file", NOTHING) or kind == b"?"


@pytest.mark.parametrize("name", ["/etc/cron.d/r.ndjson", "../../r.ndjson", "a/../../r.ndjson", "C:\\r.ndjson"])
def test_a_name_that_leads_elsewhere_is_only_a_name(tmp_path: Path, name: str) -> None:
    """Nothing is ever unpacked."""
    (tmp_path / "given").write_bytes(archive(member(name, LINE)))
    (entry,) = read_entries(tmp_path / "given")
    assert (entry.data, entry.line) == (LINE.strip(), 1)


@pytest.mark.parametrize(
    "inner",
    [archive(member("r.ndjson", LINE)), gzip.compress(LINE), bz2.compress(LINE), lzma.compress(LINE)],
    ids=["tar", "gzip", "bzip2", "xz"],
)
def test_an_archive_in_an_archive_is_not_passed_over(tmp_path: Path, inner: bytes) -> None:
    data = archive(member("r.ndjson", LINE), member("more.bin", inner))
    assert fault_of(tmp_path, data) == ("its member more.bin is an archive itself: unpack it and give it by itself")


def test_archives_without_anything(tmp_path: Path) -> None:
    assert fault_of(tmp_path, b"") == "the file is empty"
    assert fault_of(tmp_path, gzip.compress(b"")) == "the file is empty"
    assert "damaged" in fault_of(tmp_path, gzip.compress(LINE)[:8])
    for data in (archive(member("README.txt", b"nothing")), archive(member("folder", type=tarfile.DIRTYPE))):
        assert fault_of(tmp_path, data) == NOTHING
    for data in (member("a.ndjson"), member("a.jsonl") + member("b.ndjson") + member("README.txt", b"nothing")):
        assert fault_of(tmp_path, archive(data)) == NOTHING


def test_an_empty_archive_is_no_receipt(tmp_path: Path) -> None:
    """Zeros alone are not known for a tar; whoever reads them as a document fails."""
    (tmp_path / "given").write_bytes(bytes(10_240))
    (entry,) = read_entries(tmp_path / "given")
    assert entry.data == bytes(10_240)


@pytest.mark.parametrize("behind", [b"\x01", bytes(600) + b"x", archive(member("b.ndjson", LINE))])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_archive_that_goes_on_after_its_end(tmp_path: Path, behind: bytes, pack: Callable[[bytes], bytes]) -> None:
    whole = archive(member("a.ndjson", LINE))
    assert fault_of(tmp_path, pack(whole + behind)) == "the archive goes on after its end mark"
    (tmp_path / "given").write_bytes(pack(whole + bytes(20_000)))
    assert len(list(read_entries(tmp_path / "given"))) == 1


@pytest.mark.parametrize("size", [10**6, 2**33 + 1, 2**62])
def test_a_member_that_claims_more_than_there_is(tmp_path: Path, size: int) -> None:
    for name in ("a.json", "a.ndjson", "README.txt"):
        header = tarfile.TarInfo(name)
        header.size = size
        data = archive(member("first.ndjson", LINE), header.tobuf(tarfile.GNU_FORMAT), LINE)
        assert "cut short" in fault_of(tmp_path, data)


@pytest.mark.parametrize(
    "records",
    [
        b"9" * 5000 + b" path=x\n",
        record(b"GNU.sparse.size", b"9" * 5000),
        record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"),
        record(b"GNU.sparse.map", b"0,1,x"),
        record(b"GNU.sparse.size", b"1099511627776"),
        record(b"size", b"-5000"),
        record(b"size", b"1" * 30),
        b"0 path=x\n",
        b"21 hdrcharset=\xff\xfe\xfd\n",
        b"\xff" * 400,
    ],
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_attributes_that_make_no_sense(tmp_path: Path, records: bytes, kind: bytes) -> None:
    path = tmp_path / "given"
    path.write_bytes(archive(pax(records, kind), member("a.ndjson", LINE), member("b.ndjson", LINE)))
    try:
        entries = list(read_entries(path))
    except DamagedInput as fault:
        assert "archive is damaged" in str(fault)
    else:
        assert [entry.data for entry in entries] == [LINE.strip()] * 2


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    data = archive(member("a.ndjson", LINE, type=tarfile.GNUTYPE_SPARSE))
    assert "a member is a sparse file" in fault_of(tmp_path, data)
    data = archive(
        pax(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")), member("a", b"1\n0\n0\n")
    )
    assert "a member is a sparse file" in fault_of(tmp_path, data)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_header_upon_header(tmp_path: Path, kind: bytes) -> None:
    data = archive(*[pax(record(b"comment", b"x"), kind)] * 3000, member("a.ndjson", LINE))
    assert "make no sense" in fault_of(tmp_path, data)


def test_long_attributes_are_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("attributes")
    header.type = tarfile.XHDTYPE
    header.size = 2**40
    assert "longer than 65536 bytes" in fault_of(tmp_path, archive(header.tobuf(tarfile.GNU_FORMAT), LINE))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_other_compression_is_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    for data in (LINE, LINE * 9, archive(member("a.ndjson", LINE))):
        assert fault_of(tmp_path, pack(data)).startswith("it is compressed with bzip2 or xz, which are not read")


def test_a_stream_behind_a_stream_is_read_or_fails(tmp_path: Path) -> None:
    """gzip's are read one after another; what is none fails, whichever byte of its header was changed."""
    first, second = gzip.compress(LINE, mtime=0), gzip.compress(LINE, mtime=0)
    (tmp_path / "given.ndjson").write_bytes(first + second)
    assert len(list(read_entries(tmp_path / "given.ndjson"))) == 2
    for place in range(4):
        for bit in range(8):
            changed = bytearray(second)
            changed[place] ^= 1 << bit
            (tmp_path / "given.ndjson").write_bytes(first + changed)
            try:
                assert len(list(read_entries(tmp_path / "given.ndjson"))) == 2
            except DamagedInput:
                continue
    assert "damaged" in fault_of(tmp_path, first + b"X" + second[1:])
    assert "damaged" in fault_of(tmp_path, first + bytes(100) + b"hidden")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_memory_does_not_grow_with_what_an_archive_holds(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Neither with the members' number, nor with their size, nor with a line's."""
    path = tmp_path / "given"

    def peak(count: int, size: int) -> int:
        members = [member(f"{number}.ndjson", b"[" * size) for number in range(count)]
        path.write_bytes(pack(archive(*members, member("README.txt", bytes(size)))))
        tracemalloc.start()
        try:
            for _ in read_entries(path):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2, 10)
    small = peak(2, 200_000)
    assert peak(2, 3_000_000) < small + 50_000
    assert peak(3000, 10) < small


@given(data=st.data())
@SETTINGS
def test_any_header_gives_documents_or_one_clear_line(folder: Path, data: st.DataObject) -> None:
    """Headers of which fields were overwritten, their checksums made true again."""
    whole = bytearray(archive(member("a.ndjson", LINE), pax(record(b"path", b"b.ndjson")), member("b", LINE)))
    fields = [(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]
    for header in data.draw(st.sets(st.sampled_from([0, 1024, 2048]), min_size=1)):
        start, length = data.draw(st.sampled_from(fields))
        value = data.draw(
            st.binary(max_size=length) | st.sampled_from([b"x", b"g", b"L", b"S", b"\x80" + b"\xff" * 11])
        )
        whole[header + start : header + start + len(value)] = value
        whole[header + 148 : header + 156] = b" " * 8
        total = sum(whole[header : header + 512])
        whole[header + 148 : header + 156] = b"%06o\0 " % total
    path = folder / "fuzzed"
    path.write_bytes(whole)
    try:
        assert all(len(entry.data) <= 65_538 for entry in read_entries(path))
    except (DamagedInput, CannotVerify) as fault:
        assert str(fault)


def test_reading_is_told(tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(gzip.compress(archive(member("a.ndjson", struct.pack("<5000I", *range(5000))))))
    told: list[int] = []
    list(read_entries(path, told.append))
    assert sum(told) == path.stat().st_size
