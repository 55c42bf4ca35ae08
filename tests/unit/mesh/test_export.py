"""The export's tar: what is in it, that it is whole or not there, and that it takes no more memory for more."""

import errno
import hashlib
import json
import os
import resource
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import MeshAway, MeshError
from mesh.export import RECEIPTS_PER_MEMBER, SIGNING_WAIT_S, ExportSummary, write_export
from receipts.canonical import canonical_bytes
from receipts.ed25519 import key_id_of
from receipts.export_manifest import ExportManifest
from receipts.moments import parse_moment, rfc3339

NOW_NS = 1_782_219_834_000_123_456
PUBLIC_KEY = bytes(range(32))
KEY_ID = key_id_of(PUBLIC_KEY)


def line(seq: int, *, tag: str | None = None, signature: str | None = "ab" * 64, key_id: str = KEY_ID) -> bytes:
    """What an export looks at in a receipt."""
    document = {
        "chain": {"prev_sha256": None, "seq": seq},
        "execution": {"end_unix_ns": NOW_NS + seq},
        "receipt_id": f"rcpt_{seq:032x}",
        "verification": {"key_id": key_id, "signature": signature},
        "workload": {"customer_tag": tag},
    }
    return canonical_bytes(document) + b"\n"


@dataclass
class FakeMesh:
    """``count`` receipts, of which the first ``signed`` are, and of which every ``tagged``-th has the tag ``blue``."""

    count: int = 25
    signed: int = 25
    first: int = 1
    tagged: int = 5
    page: int = 10
    signed_after_polls: int | None = None
    leave_out: set[int] = field(default_factory=set)
    breaks_at: int | None = None
    head_fails: list[Exception] = field(default_factory=list)
    head_key_id: str = KEY_ID
    earlier_key: set[int] = field(default_factory=set)
    order: tuple[int, ...] | None = None
    on_page: Callable[[int], None] = lambda _: None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def group_key(self) -> dict[str, Any]:
        return {"public_key": PUBLIC_KEY.hex(), "key_id": KEY_ID}

    def receipt(self, receipt_id: str) -> bytes:
        if self.signed_after_polls is not None:
            self.signed_after_polls -= 1
            if self.signed_after_polls <= 0:
                self.signed = self.count
        return self._line(int(receipt_id[5:], 16)).strip()

    def account_head(self, since_unix_ns: int | None) -> bytes:
        if self.head_fails:
            raise self.head_fails.pop(0)
        if self.signed < self.first:
            raise MeshError("the account has no signed receipt since then")
        sha256 = {name: f"{seq:064x}" for name, seq in (("first_sha256", self.first), ("last_sha256", self.signed))}
        head = {
            "typ": "joule-mesh.account-head/v1",
            "account": "acme",
            "as_of_unix_ns": NOW_NS,
            "first_seq": self.first,
            "last_seq": self.signed,
            "key_id": self.head_key_id,
            "signature": "cd" * 64,
        }
        return canonical_bytes({**head, **sha256})

    def receipt_pages(
        self,
        *,
        customer_tag: str | None = None,
        first_seq: int | None = None,
        last_seq: int | None = None,
        limit: int = 1000,
        newest_first: bool = False,
    ) -> Iterator[bytes]:
        self.asked.append({"customer_tag": customer_tag, "first_seq": first_seq, "last_seq": last_seq})
        seqs = [
            seq
            for seq in range(first_seq or 1, min(last_seq or self.count, self.count) + 1)
            if (customer_tag is None or seq % self.tagged == 0) and seq not in self.leave_out
        ]
        if newest_first:
            seqs.reverse()
        elif self.order is not None:
            seqs = list(self.order)
        for begin in range(0, len(seqs), min(limit, self.page)):
            if begin == self.breaks_at:
                raise MeshAway("the connection was lost")
            if first_seq is not None:
                self.on_page(begin)
            yield b"".join(self._line(seq) for seq in seqs[begin : begin + min(limit, self.page)])

    def _line(self, seq: int) -> bytes:
        tag = None if seq % self.tagged else "blue"
        key_id = "e" * 16 if seq in self.earlier_key else KEY_ID
        return line(seq, tag=tag, signature="ab" * 64 if seq <= self.signed else None, key_id=key_id)


@dataclass
class FakeClock:
    now_s: float = 0.0

    def time_ns(self) -> int:
        return NOW_NS + int(self.now_s * 1e9)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class View:
    notes: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advanced(self, done: int, total: int) -> None:
        self.places.append((done, total))


def export(mesh: FakeMesh, output: Path, view: View | None = None, **changes: Any) -> ExportSummary:
    wanted = {"since": None, "customer_tag": None, "overwrite": False, "clock": FakeClock(), **changes}
    return write_export(mesh, output, view=view, **wanted)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "receipts.tar"


@pytest.fixture(autouse=True)
def _folder(output: Path) -> None:
    output.parent.mkdir()


def test_the_members_and_their_order(output: Path) -> None:
    mesh, view = FakeMesh(), View()
    summary = export(mesh, output, view, since="30d")
    found = members(output)
    assert list(found) == [
        "manifest.json",
        "README.txt",
        "signer_pubkey.hex",
        "heads/acme.json",
        "receipts/000001.ndjson",
        "SHA256SUMS",
    ]
    manifest = ExportManifest.from_json(found["manifest.json"])
    assert (manifest.account, manifest.key_id, manifest.created_unix_ns) == ("acme", KEY_ID, NOW_NS)
    assert manifest.selection.since_unix_ns == parse_moment("30d", NOW_NS)
    assert manifest.selection.customer_tag is None
    assert found["signer_pubkey.hex"] == PUBLIC_KEY.hex().encode() + b"\n"
    assert found["heads/acme.json"] == mesh.account_head(None) + b"\n"
    assert found["receipts/000001.ndjson"] == b"".join(mesh._line(seq) for seq in range(1, 26))
    assert summary == ExportSummary(
        output=output, account="acme", key_id=KEY_ID, receipts=25, first_seq=1, last_seq=25, unsigned=0
    )
    assert view.places == [(10, 25), (20, 25), (25, 25), (25, 25)]
    assert [path.name for path in output.parent.iterdir()] == ["receipts.tar"]


def test_the_checksums_are_those_of_the_members_before_them(output: Path) -> None:
    export(FakeMesh(), output)
    *contents, (_, checksums) = members(output).items()
    expected = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents)
    assert checksums.decode() == expected


def test_members_hold_so_many_receipts_and_no_more(output: Path) -> None:
    export(FakeMesh(count=2 * RECEIPTS_PER_MEMBER + 1, signed=2 * RECEIPTS_PER_MEMBER + 1, page=1000), output)
    parts = {name: content.count(b"\n") for name, content in members(output).items() if name.startswith("receipts/")}
    assert parts == {
        "receipts/000001.ndjson": RECEIPTS_PER_MEMBER,
        "receipts/000002.ndjson": RECEIPTS_PER_MEMBER,
        "receipts/000003.ndjson": 1,
    }


def test_no_empty_member_ends_an_export_of_a_round_number(output: Path) -> None:
    export(FakeMesh(count=RECEIPTS_PER_MEMBER, signed=RECEIPTS_PER_MEMBER, page=1000), output)
    assert [name for name in members(output) if name.startswith("receipts/")] == ["receipts/000001.ndjson"]


@pytest.mark.parametrize("name", ["one.tar", "one.tar.gz", "one.tgz"])
def test_the_same_export_has_the_same_bytes(tmp_path: Path, name: str) -> None:
    written = []
    for folder in ("a", "b"):
        path = tmp_path / folder / name
        path.parent.mkdir()
        export(FakeMesh(), path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert (written[0][:2] == b"\x1f\x8b") == (not name.endswith(".tar"))
    if not name.endswith(".tar"):
        assert written[0][3:8] == bytes(5), "RFC 1952: no name, no time"
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_the_readme_tells_an_auditor_where_the_key_has_to_come_from(output: Path) -> None:
    export(FakeMesh(), output, since="2026-01-31T08:00:00Z")
    readme = members(output)["README.txt"].decode()
    for told in ("jc verify", "somewhere else", KEY_ID, "acme", "2026-01-31T08:00:00.000000000Z", "sha256sum --check"):
        assert told in readme
    for told in (
        "joule-mesh",
        "pip install",
        "pyproject.toml",
        "total_joules",
        "usd_picos",
        "does not say that the meter",
    ):
        assert told in readme, "whoever gets it has nothing else"
    assert max(map(len, readme.splitlines())) <= 120
    assert len(readme.splitlines()) < 70


def test_a_selection_says_that_nobody_can_tell_what_it_leaves_out(output: Path) -> None:
    mesh = FakeMesh(first=3, signed=23)
    summary = export(mesh, output, customer_tag="blue", clock=FakeClock(-SIGNING_WAIT_S))
    found = members(output)
    assert found["receipts/000001.ndjson"] == b"".join(mesh._line(seq) for seq in (5, 10, 15, 20))
    assert ExportManifest.from_json(found["manifest.json"]).selection.customer_tag == "blue"
    assert "no one can tell" in found["README.txt"].decode()
    assert (summary.receipts, summary.first_seq, summary.last_seq, summary.unsigned) == (4, 3, 23, 1)
    assert {"customer_tag": "blue", "first_seq": 3, "last_seq": 23} in mesh.asked


def test_a_tag_that_no_receipt_has_makes_no_file(output: Path) -> None:
    with pytest.raises(MeshError, match="no signed receipt of that time has the customer tag 'blue'"):
        export(FakeMesh(count=3, signed=3), output, customer_tag="blue")
    assert list(output.parent.iterdir()) == []


def test_signatures_are_waited_for(output: Path) -> None:
    mesh, view, clock = FakeMesh(signed=3, signed_after_polls=4), View(), FakeClock()
    summary = export(mesh, output, view, clock=clock)
    assert (summary.receipts, summary.unsigned) == (25, 0)
    assert view.notes == ["waiting for signatures"] * 4
    assert 0 < clock.now_s < SIGNING_WAIT_S


def test_but_not_for_ever_and_what_is_left_out_is_said(output: Path) -> None:
    clock = FakeClock()
    summary = export(FakeMesh(signed=20), output, clock=clock)
    assert (summary.receipts, summary.last_seq, summary.unsigned) == (20, 20, 5)
    assert SIGNING_WAIT_S <= clock.now_s < 2 * SIGNING_WAIT_S


def test_an_account_without_receipts_is_told_so(output: Path) -> None:
    with pytest.raises(MeshError, match="no receipts yet"):
        export(FakeMesh(count=0, signed=0), output)
    with pytest.raises(MeshError, match="no signed receipt since"):
        export(FakeMesh(signed=0), output)
    assert list(output.parent.iterdir()) == []


def test_signers_that_are_away_for_a_moment_are_asked_again(output: Path) -> None:
    assert export(FakeMesh(head_fails=[MeshAway("503"), MeshAway("503")]), output).receipts == 25
    with pytest.raises(MeshAway, match="still away"):
        export(FakeMesh(head_fails=[MeshAway("still away")] * 9), output, overwrite=True)


@pytest.mark.parametrize(
    ("left_out", "said"),
    [({1}, "after receipt 0"), ({7}, "after receipt 6"), ({10, 11}, "after receipt 9"), ({25}, "no receipt after 24")],
)
def test_a_receipt_that_the_mesh_leaves_out_is_noticed(output: Path, left_out: set[int], said: str) -> None:
    with pytest.raises(MeshError, match=said):
        export(FakeMesh(count=26, signed=25, leave_out=left_out, signed_after_polls=None), output)
    assert list(output.parent.iterdir()) == []


def test_a_head_of_another_key_is_noticed(output: Path) -> None:
    with pytest.raises(MeshError, match="signed under key 0000000000000000"):
        export(FakeMesh(head_key_id="0" * 16), output)


def test_a_file_that_is_there_stays_unless_told(output: Path) -> None:
    output.write_bytes(b"mine")
    with pytest.raises(MeshError, match="is there already"):
        export(FakeMesh(), output)
    assert output.read_bytes() == b"mine"
    export(FakeMesh(), output, overwrite=True)
    assert "manifest.json" in members(output)


def test_exports_beside_each_other_each_write_a_file_of_their_own(output: Path) -> None:
    """Under --force the later one to be done wins; what is there is whole at every moment."""

    def second(begin: int) -> None:
        if begin == 10:
            assert export(FakeMesh(), output, customer_tag="blue", overwrite=True).receipts == 5
            assert members(output)["receipts/000001.ndjson"].count(b"\n") == 5

    assert export(FakeMesh(on_page=second), output, overwrite=True).receipts == 25
    assert members(output)["receipts/000001.ndjson"].count(b"\n") == 25
    assert list(output.parent.iterdir()) == [output]


def test_a_file_that_came_there_meanwhile_stays(output: Path) -> None:
    def other(_begin: int) -> None:
        export(FakeMesh(), output, customer_tag="blue", overwrite=True)

    with pytest.raises(MeshError, match="is there already"):
        export(FakeMesh(on_page=other), output)
    assert members(output)["receipts/000001.ndjson"].count(b"\n") == 5
    assert list(output.parent.iterdir()) == [output]


def test_a_disk_without_links_takes_an_export_too(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_paths: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert export(FakeMesh(), output).receipts == 25
    assert list(output.parent.iterdir()) == [output]
    whole, other = output.read_bytes(), output.with_name("other.tar")
    with pytest.raises(MeshError, match="is there already"):
        export(FakeMesh(on_page=lambda _: other.write_bytes(b"another's")), other)
    assert (output.read_bytes(), other.read_bytes()) == (whole, b"another's")


def test_a_folder_is_no_file_and_that_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    mesh, folder = FakeMesh(), tmp_path / "folder.tar"
    folder.mkdir()
    with pytest.raises(MeshError, match=r"folder\.tar is a folder"):
        export(mesh, folder, overwrite=True)
    assert mesh.asked == []


@pytest.mark.parametrize("tag", ["", "x" * 129, "a\nb"])
def test_a_tag_that_no_receipt_can_have_is_said_before_anything_is_asked(output: Path, tag: str) -> None:
    mesh = FakeMesh()
    with pytest.raises(MeshError, match=r"^customer_tag: "):
        export(mesh, output, customer_tag=tag)
    assert mesh.asked == []


@pytest.mark.parametrize("customer_tag", [None, "blue"])
def test_receipts_of_an_earlier_key_are_noticed_and_since_when_there_are_none(output: Path, customer_tag) -> None:
    with pytest.raises(MeshError, match="not signed under") as raised:
        export(FakeMesh(earlier_key={5, 6, 7, 8}), output, customer_tag=customer_tag)
    assert f"--since {rfc3339(NOW_NS + 9)}" in str(raised.value), "receipt 8 ended a nanosecond before"
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("customer_tag", "order"),
    [(None, (1, 3, 3, *range(4, 26))), (None, (2, 1, *range(3, 26))), ("blue", (5, 20, 10, 25)), ("blue", (5, 5))],
)
def test_the_order_inside_a_page_is_looked_at_too(output: Path, customer_tag, order) -> None:
    with pytest.raises(MeshError, match="did not give what its signers say"):
        export(FakeMesh(order=order, page=100), output, customer_tag=customer_tag)


@pytest.mark.parametrize("name", ["receipts.zip", "receipts", "tar", "receipts.tar.bz2"])
def test_the_name_says_what_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(MeshError, match=r"\.tar, \.tar\.gz or \.tgz"):
        export(FakeMesh(), tmp_path / name)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="No such file or directory"):
        export(FakeMesh(), tmp_path / "nowhere" / "receipts.tar")


@pytest.mark.parametrize("earlier", [None, b"last week's"])
def test_a_connection_that_is_lost_leaves_no_half_file(output: Path, earlier: bytes | None) -> None:
    if earlier is not None:
        output.write_bytes(earlier)
    with pytest.raises(MeshAway, match="connection was lost"):
        export(FakeMesh(breaks_at=20), output, overwrite=True)
    assert [path.read_bytes() for path in output.parent.iterdir()] == ([earlier] if earlier else [])


def test_ctrl_c_leaves_no_half_file(output: Path) -> None:
    class Interrupting(View):
        def advanced(self, done: int, total: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(FakeMesh(), output, Interrupting())
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("earlier", "left"), [(None, "nothing is left of it"), (b"last week's", "what was there is unchanged")]
)
def test_a_full_disk_is_said_and_leaves_nothing(output: Path, earlier: bytes | None, left: str) -> None:
    """A limit on file sizes stands in: the system refuses the write in the same way."""
    if earlier is not None:
        output.write_bytes(earlier)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(MeshError, match=rf"receipts.tar could not be written: File too large; {left}"):
            export(FakeMesh(count=5000, signed=5000, page=1000), output, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.read_bytes() for path in output.parent.iterdir()] == ([earlier] if earlier else [])


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_said_before_anything_is_asked(output: Path, since: str) -> None:
    mesh = FakeMesh()
    with pytest.raises(MeshError, match="since: "):
        export(mesh, output, since=since)
    assert mesh.asked == []


def test_a_line_is_not_changed_on_its_way(output: Path) -> None:
    mesh = FakeMesh(count=1, signed=1)
    separators = "\x85\u2028".encode()  # where str.splitlines would part a line
    noted = line(1).replace(b'"receipt_id"', b'"note":"%s","receipt_id"' % separators)
    mesh._line = lambda seq: noted
    export(mesh, output)
    assert members(output)["receipts/000001.ndjson"] == mesh._line(1)
    assert json.loads(mesh._line(1))["chain"]["seq"] == 1
