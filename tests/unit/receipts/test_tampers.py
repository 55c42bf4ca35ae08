"""Whatever is done to an export without the group's key, `jc verify` tells: a list of tampers, and every byte.

Three exports are given together: all of acme's receipts, all of zeta's, and acme-eu's receipts with one tag. Each
tamper is the best that somebody without the key can do: checksums are made anew unless a test says otherwise. What
cannot be caught, because the group signed it and it is true, must be told in a note beside the count: the tests of
"told" are the whole list of that.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from receipts.canonical import canonical_bytes
from receipts.verify import verify_paths
from receipts.verify_input import read_entries

SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
LENGTH = 6
TAG = "night"
RECEIPTS = "receipts/000001.ndjson"
HEAD = "heads/acme.json"
MANIFEST = "manifest.json"
SEALED_NS = 1_782_219_900_000_000_000
OF_SELECTION = "where its chain ended as of 2026-06-23T13:05:00Z; whether these are all with that tag cannot be checked"
Json = Any


def lines_of(group, account: str, length: int, tags: Callable[[int], str | None] = lambda _seq: None) -> list[bytes]:
    """An account's first receipts; their ends ascend by a second each."""
    start = 1_782_219_000_000_000_000
    return group.chain(length, account, lambda seq: {"customer_tag": tags(seq), "start_unix_ns": start + seq * 10**9})


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What an auditor sees: findings, and the notes beside the count."""

    findings: list[str]
    notes: str
    passed: int


@pytest.fixture(scope="module")
def acme(group) -> list[bytes]:
    return lines_of(group, "acme", LENGTH, lambda seq: TAG if seq % 2 else None)


@pytest.fixture(scope="module")
def zeta(group) -> list[bytes]:
    return lines_of(group, "zeta", 3)


@pytest.fixture(scope="module")
def tagged(group) -> list[bytes]:
    """All receipts of acme-eu, of which the selection holds those with the tag."""
    return lines_of(group, "acme-eu", 8, lambda seq: TAG if seq in (2, 3, 5, 8) else "day")


@pytest.fixture(scope="module")
def exports(group, acme, zeta, tagged, make_export) -> dict[str, Any]:
    selected = [line for line in tagged if json.loads(line)["workload"]["customer_tag"] == TAG]
    return {
        "acme": make_export(group, acme, group.head(acme)),
        "zeta": make_export(group, zeta, group.head(zeta, "zeta"), "zeta", per_member=2),
        "tagged": make_export(group, selected, group.head(tagged, "acme-eu"), "acme-eu", customer_tag=TAG),
    }


@pytest.fixture(scope="module")
def verify(group, exports, tmp_path_factory) -> Callable[..., Told]:
    """Verify the three exports, some of them exchanged for others: an export, an archive's bytes, or None for none."""
    folder = tmp_path_factory.mktemp("tampers")
    archives = {name: each.to_tar() for name, each in exports.items()}

    def told(*further: bytes, **changed: Any) -> Told:
        paths = []
        contents = {**archives, **changed, **{f"further-{place}": data for place, data in enumerate(further)}}
        for name, content in contents.items():
            if content is not None:
                paths.append(folder / name)
                paths[-1].write_bytes(content if isinstance(content, bytes) else content.to_tar())
        report = verify_paths(paths, group.public_key)
        findings = [str(each).replace(f"{folder}/", "") for each in report]
        assert report.failed == len(findings)
        assert report.passed >= 0
        assert all("\n" not in each for each in findings)
        return Told(findings, "\n".join(report.notes), report.passed)

    return told


@pytest.fixture(scope="module")
def honest(verify) -> Told:
    return verify()


def of_lines(export, lines: Sequence[bytes], member: str = RECEIPTS):
    return export.with_member(member, b"".join(line + b"\n" for line in lines))


def test_untampered_exports_pass(honest: Told) -> None:
    assert honest.findings == []
    assert honest.passed == LENGTH + 3 + 4
    assert honest.notes.splitlines() == [
        "account acme: receipts 1 to 6; its chain ended at receipt 6 as of 2026-06-23T13:05:00Z",
        "account zeta: receipts 1 to 3; its chain ended at receipt 3 as of 2026-06-23T13:05:00Z",
        f"account acme-eu: 4 receipts with tag 'night' among 1 to 8, {OF_SELECTION}",
    ]


def test_several_exports_of_one_account_pass_together(group, acme, make_export, verify) -> None:
    """A month each: the second begins where the first ended."""
    january = make_export(group, acme[:2], group.head(acme[:2], as_of_unix_ns=SEALED_NS - 5))
    february = make_export(group, acme[2:], group.head(acme[2:], first_seq=3), since_unix_ns=end_of(acme[2]))
    told = verify(acme=february, january=january)
    assert told.findings == []
    assert "account acme: receipts 1 to 6; its chain ended at receipt 6" in told.notes


# Every member of a document: changed, null, gone, renamed, and one more.


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Json]]:
    """Every member and item, objects and arrays included, by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name), inner
        yield from places(inner, (*path, name))


def others_like(value: Json, path: tuple[Any, ...]) -> list[Json]:
    """Other values that the schema would take in this place, as near as can be."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value * 2 + 1, 0, 1]
    if isinstance(value, str):
        turned = value[:-1] + ("0" if value[-1] != "0" else "1")
        return [turned, value + "x", "L1", "DE", "rapl", "estimated", "acme", "zeta"]
    if value is None:
        return [1, 0.5, "x", "ab" * 32]
    return [[], {}] if value else [["x"], [1]]


def tampered_members(document: bytes) -> Iterator[tuple[str, bytes]]:
    original = json.loads(document)

    def changed(path: tuple[Any, ...], change: Callable[[Json, Any], None]) -> bytes:
        value = json.loads(document)
        holder = value
        for step in path[:-1]:
            holder = holder[step]
        change(holder, path[-1])
        return canonical_bytes(value)

    for path, value in places(original):
        name = ".".join(map(str, path))
        for other in [*others_like(value, path), None]:
            if other != value or type(other) is not type(value):
                yield f"{name} = {other!r}", changed(path, lambda holder, key, to=other: holder.__setitem__(key, to))
        yield f"{name} gone", changed(path, lambda holder, key: holder.__delitem__(key))
        if isinstance(path[-1], str):
            yield f"{name} renamed", changed(path, lambda holder, key: holder.__setitem__(key + "s", holder.pop(key)))
        if isinstance(value, dict):
            yield f"{name} has one more", changed(path, lambda holder, key: holder[key].__setitem__("more", 1))
    yield "one more at the top", canonical_bytes({**original, "more": 1})
    yield "another typ at the top", canonical_bytes({**original, "typ": "joule-mesh.receipt/v2"})


@pytest.mark.parametrize("place", [0, 2, LENGTH - 1])
def test_every_member_of_a_receipt(acme, exports, verify, place: int) -> None:
    count = 0
    for name, changed in tampered_members(acme[place]):
        lines = [*acme[:place], changed, *acme[place + 1 :]]
        assert verify(acme=of_lines(exports["acme"], lines), zeta=None, tagged=None).findings, name
        count += 1
    assert count > 500


def test_every_member_of_a_head(group, acme, exports, verify) -> None:
    for name, changed in tampered_members(group.head(acme)):
        assert verify(acme=exports["acme"].with_member(HEAD, changed), zeta=None, tagged=None).findings, name


def test_every_member_of_the_manifest_has_its_type(exports, verify) -> None:
    """Nobody signed it: what is another valid value is below, member by member."""
    value = json.loads(exports["acme"].member(MANIFEST))
    for wrong in (
        *({each: member for each, member in value.items() if each != name} for name in value),
        *({**value, name: None} for name in value),
        *({**value, name: 1.5} for name in value),
        {**value, "more": 1},
        {**value, "typ": "joule-mesh.export/v2"},
        {**value, "selection": {"customer_tag": None}},
        {**value, "selection": {**value["selection"], "region": "local"}},
    ):
        changed = exports["acme"].with_member(MANIFEST, canonical_bytes(wrong) + b"\n")
        assert verify(acme=changed).findings, wrong
    spaced = exports["acme"].with_member(MANIFEST, json.dumps(value).encode())
    assert "acme/manifest.json: the export's manifest is not in canonical form" in verify(acme=spaced).findings


def manifest_with(export, **changes: Any):
    value = json.loads(export.member(MANIFEST))
    selection = {
        **value["selection"],
        **{name: changes.pop(name) for name in list(changes) if name in value["selection"]},
    }
    return export.with_member(MANIFEST, canonical_bytes({**value, **changes, "selection": selection}) + b"\n")


def previous_of(line: bytes) -> str:
    return json.loads(line)["chain"]["prev_sha256"]


def end_of(line: bytes) -> int:
    return json.loads(line)["execution"]["end_unix_ns"]


def test_a_manifest_that_lies(group, stranger, acme, exports, verify) -> None:
    for changes, says in (
        ({"account": "zeta"}, "it is account acme's, but this is an export of account zeta"),
        ({"key_id": stranger.key_id}, f"not under the given key {group.key_id}"),
        ({"customer_tag": TAG}, "it has not the customer tag that the export says it selects"),
        ({"since_unix_ns": end_of(acme[0]) + 1}, "but its first receipt ended before"),
    ):
        findings = verify(acme=manifest_with(exports["acme"], **changes)).findings
        assert any(says in each for each in findings), changes
    for changes in ({"customer_tag": "day"}, {"customer_tag": None}, {"account": "acme"}):
        assert verify(tagged=manifest_with(exports["tagged"], **changes)).findings, changes


# Every byte.


def small_export(group, make_export):
    lines = lines_of(group, "acme", 2)
    return make_export(group, lines, group.head(lines))


def what_is_read(path: Path) -> list[bytes]:
    return [entry.data for entry in read_entries(path)]


def test_every_byte_of_an_archive(group, make_export, verify, tmp_path: Path) -> None:
    """A bit in every seventh byte, and in every byte of the headers.

    Not evidence are the filling between a member and the next header, and how a header's checksum is spelled:
    changed there, an archive gives the same documents.
    """
    whole = small_export(group, make_export).to_tar()
    path = tmp_path / "changed.tar"
    path.write_bytes(whole)
    honest = what_is_read(path)
    filling, headers = regions(whole)
    spellings = {header + place for header in headers for place in range(148, 156)}
    in_headers = {header + place for header in headers for place in range(512)}
    uncaught = set()
    for offset in range(len(whole)):
        if offset % 7 and offset not in in_headers:
            continue
        changed = bytearray(whole)
        changed[offset] ^= 1 << (offset * 5 % 8)
        if not verify(acme=bytes(changed), zeta=None, tagged=None).findings:
            uncaught.add(offset)
            path.write_bytes(changed)
            assert what_is_read(path) == honest, offset
    assert uncaught <= filling | spellings
    assert uncaught & filling


def regions(archive: bytes) -> tuple[set[int], list[int]]:
    """Offsets of the filling behind each member, and of the headers; the last header is the end mark's."""
    filling: set[int] = set()
    headers: list[int] = []
    offset = 0
    while archive[offset] != 0:
        headers.append(offset)
        size = int(archive[offset + 124 : offset + 135], 8)
        end = offset + 512 + size
        offset = -(-end // 512) * 512
        filling |= set(range(end, offset))
    return filling, headers


def test_every_byte_of_a_compressed_archive(group, make_export, verify, tmp_path: Path) -> None:
    """What is not caught is another spelling of the same: gzip's own header (RFC 1952) names a time and a system, and
    deflate can point to any of two equal places.
    """
    whole = gzip.compress(small_export(group, make_export).to_tar(), mtime=0)
    path = tmp_path / "changed.tar.gz"
    path.write_bytes(whole)
    honest = what_is_read(path)
    for offset in range(len(whole)):
        changed = bytearray(whole)
        changed[offset] ^= 1 << (offset * 5 % 8)
        if not verify(acme=bytes(changed), zeta=None, tagged=None).findings:
            path.write_bytes(changed)
            assert what_is_read(path) == honest


def test_an_archive_cut_anywhere(group, make_export, verify) -> None:
    whole = small_export(group, make_export).to_tar()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in [*range(2048), *range(2048, end + 1, 61), end]:
        assert verify(acme=whole[:length], zeta=None, tagged=None).findings, length
    packed = gzip.compress(whole, mtime=0)
    for length in range(0, len(packed), 5):
        assert verify(acme=packed[:length], zeta=None, tagged=None).findings, length


@given(data=st.data())
@SETTINGS
def test_random_damage_in_several_places(exports, verify, data: st.DataObject) -> None:
    """Somewhere in the members, whose checksums stay what they were."""
    export = exports[data.draw(st.sampled_from(sorted(exports)))]
    name, content = data.draw(st.sampled_from(export.members))
    changed = bytearray(content)
    for offset in data.draw(st.sets(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        changed[offset] ^= data.draw(st.integers(1, 255))
    archive = export.with_member(name, bytes(changed)).to_tar(export.checksums())
    which = next(key for key in exports if exports[key] is export)
    assert verify(**{which: archive}).findings


def test_another_spelling_of_the_same_values(acme, exports, verify) -> None:
    """What is signed is one spelling; another is nobody's word."""
    value = json.loads(acme[1])
    for spelled in (
        json.dumps(value).encode(),
        json.dumps(value, separators=(",", ":")).encode().replace(b'"DE"', b'"\\u0044E"', 1),
        acme[1].replace(b"0.31,", b"0.310,"),
        acme[1].replace(b'"seq":2', b'"seq":2.0'),
        acme[1] + b" ",
        b" " + acme[1],
    ):
        assert spelled != acme[1]
        assert verify(acme=of_lines(exports["acme"], [acme[0], spelled, *acme[2:]]), zeta=None).findings, spelled


# Order, dropping, replaying.


@given(order=st.permutations(range(LENGTH)), cut=st.integers(1, LENGTH))
@SETTINGS
def test_any_other_order(group, acme, make_export, verify, order: list[int], cut: int) -> None:
    """In one member, or across several."""
    export = make_export(group, [acme[each] for each in order], group.head(acme), per_member=cut)
    assert bool(verify(acme=export, zeta=None, tagged=None).findings) == (order != sorted(order))


def test_members_exchanged(zeta, exports, verify) -> None:
    first, second = (exports["zeta"].member(f"receipts/00000{number}.ndjson") for number in (1, 2))
    changed = exports["zeta"].with_member(RECEIPTS, second).with_member("receipts/000002.ndjson", first)
    assert verify(zeta=changed).findings


@given(kept=st.sets(st.integers(0, LENGTH - 1), max_size=LENGTH - 1))
@SETTINGS
def test_dropped_receipts(acme, exports, verify, kept: set[int]) -> None:
    """Inside, at both ends, or all of them."""
    changed = of_lines(exports["acme"], [acme[each] for each in sorted(kept)])
    assert verify(acme=changed, zeta=None, tagged=None).findings


@given(which=st.integers(0, LENGTH - 1), to=st.integers(0, LENGTH))
@SETTINGS
def test_a_receipt_replayed_in_its_file(acme, exports, verify, which: int, to: int) -> None:
    changed = of_lines(exports["acme"], [*acme[:to], acme[which], *acme[to:]])
    assert verify(acme=changed, zeta=None, tagged=None).findings


def test_a_receipt_replayed_elsewhere(acme, zeta, tagged, exports, verify) -> None:
    for line in (acme[0], acme[3]):
        assert verify(line).findings
        assert verify(zeta=of_lines(exports["zeta"], [*zeta[:2], line])).findings
    assert verify(exports["acme"].to_tar()).findings
    assert verify(exports["tagged"].to_tar()).findings


@given(place=st.integers(0, LENGTH - 1))
@SETTINGS
def test_chains_of_two_accounts_spliced(acme, zeta, exports, verify, place: int) -> None:
    spliced = of_lines(exports["acme"], [*acme[:place], *zeta[place:], *acme[max(place, 3) :]])
    assume(place < 3)
    assert verify(acme=spliced, zeta=None).findings


def test_a_receipt_moved_to_another_account(acme, zeta, exports, verify) -> None:
    moved = canonical_bytes({**json.loads(zeta[2]), "workload": {**json.loads(zeta[2])["workload"], "account": "acme"}})
    assert verify(acme=of_lines(exports["acme"], [*acme[:2], moved, *acme[3:]])).findings


# Keys and signatures.


def signed_anew(signer, document: bytes, **verification: Any) -> bytes:
    value = json.loads(document)
    holder = value.get("verification", value)
    del holder["signature"]
    holder.update(verification)
    holder["signature"] = signer.sign(canonical_bytes(value)).hex()
    return canonical_bytes(value)


@pytest.mark.parametrize("place", range(LENGTH))
def test_signed_by_another_key(group, stranger, acme, exports, verify, place: int) -> None:
    for key_id in (group.key_id, stranger.key_id):
        lines = [*acme[:place], signed_anew(stranger, acme[place], key_id=key_id), *acme[place + 1 :]]
        assert verify(acme=of_lines(exports["acme"], lines)).findings


def test_a_whole_export_by_another_key(group, stranger, acme, exports, make_export, verify) -> None:
    """With everything that names the key changed along."""
    lines = lines_of(stranger, "acme", LENGTH)
    told = verify(acme=make_export(stranger, lines, stranger.head(lines)), zeta=None, tagged=None)
    assert told.passed == 0
    assert len(told.findings) >= LENGTH
    head = exports["acme"].with_member(HEAD, stranger.head(acme))
    assert verify(acme=head).findings
    assert verify(acme=exports["acme"].with_member(HEAD, signed_anew(stranger, group.head(acme)))).findings


@given(places=st.lists(st.integers(0, LENGTH - 1), min_size=2, max_size=2, unique=True))
@SETTINGS
def test_signatures_exchanged(acme, exports, verify, places: list[int]) -> None:
    values = [json.loads(line) for line in acme]
    one, other = (values[place]["verification"] for place in places)
    one["signature"], other["signature"] = other["signature"], one["signature"]
    told = verify(acme=of_lines(exports["acme"], [canonical_bytes(value) for value in values]))
    assert len(told.findings) == 2


def test_a_signature_taken_away(acme, exports, verify) -> None:
    value = json.loads(acme[-1])
    value["verification"]["signature"] = None
    assert verify(acme=of_lines(exports["acme"], [*acme[:-1], canonical_bytes(value)])).findings


# Heads.


def test_a_true_head_that_is_not_this_exports(group, acme, zeta, exports, make_export, verify) -> None:
    older = group.head(acme[:4], as_of_unix_ns=SEALED_NS - 10**9)
    later = group.head(acme[1:], first_seq=2)
    for head, lines, says in (
        (older, acme, "seq 5 is outside of the export's account head, 1 to 4"),
        (later, acme, "seq 1 is outside of the export's account head, 2 to 6"),
        (later, acme[1:], "says that it begins with the account's first receipt, but begins at 2"),
        (group.head(zeta, "zeta"), acme, "it is account zeta's, but this is an export of account acme"),
        (group.head(acme), acme[:5], "receipt 6 of account acme is missing"),
        (group.head(acme), acme[1:], "receipt 1 of account acme is missing"),
    ):
        findings = verify(acme=make_export(group, lines, head), zeta=None).findings
        assert any(says in each for each in findings), says


def test_a_head_in_the_wrong_place(exports, verify) -> None:
    acme = exports["acme"]
    gone = acme.with_member(HEAD, None)
    head = (HEAD, acme.member(HEAD))
    for members, says in (
        (gone.members, "holds no valid account head: its ends were not checked"),
        ((*gone.members, head), "comes before its receipts"),
        ((acme.members[0], head, *acme.members[1:]), "holds a second account head"),
    ):
        findings = verify(acme=dataclasses.replace(acme, members=members)).findings
        assert any(says in each for each in findings), says


def test_two_heads_that_contradict_each_other(group, acme, make_export, verify) -> None:
    """Both truly signed: the group, or the operator with its consent, rolled a chain back."""
    fork = group.receipt(99, 4, previous_of(acme[3]))
    for shorter, as_of_unix_ns, says in (
        (acme[:4], SEALED_NS + 1, "the chain cannot end at receipt 6"),
        ([*acme[:3], fork], SEALED_NS - 1, "receipt 4 in"),
        ([*acme[:3], fork, acme[4], fork], SEALED_NS, "it names another receipt 6 than the head in"),
    ):
        head = group.head(shorter, as_of_unix_ns=as_of_unix_ns)
        for further in ((), (head,)):
            exported = make_export(group, acme, group.head(acme))
            first = {"acme": None, "head": head, "acme_export": exported} if not further else {"acme": exported}
            findings = verify(*further, **first).findings
            assert findings, says
        assert any(says in each for each in verify(acme=None, head=head, acme_export=exported).findings), says


# Members of the archive.


def test_members_added_hidden_or_left_out(exports, verify, make_tar) -> None:
    export = exports["acme"]
    sums = ("SHA256SUMS", export.checksums())
    hidden = tuple((name.replace(".ndjson", ".txt"), data) for name, data in export.members)
    for members, says in (
        (export.members, "the export has no SHA256SUMS"),
        ((*export.members, sums, ("more.txt", b"")), "comes after SHA256SUMS"),
        ((*export.members, ("more.txt", b""), sums), "SHA256SUMS does not list the members before it as they are"),
        ((*export.members[:2], *export.members[3:], sums), "SHA256SUMS does not list the members before it"),
        (hidden, "receipts 1 to 6 of account acme are missing"),
        ((*export.members, export.members[0]), "not its archive's first member"),
        (sorted((*export.members, sums)), "the members were reordered or repacked"),
    ):
        findings = verify(acme=make_tar(*members), zeta=None, tagged=None).findings
        assert any(says in each for each in findings), says


def test_a_full_export_without_its_manifest_is_judged_by_its_head(acme, exports, verify, make_tar) -> None:
    bare = exports["acme"].with_member(MANIFEST, None)
    told = verify(acme=make_tar(*bare.members), zeta=None, tagged=None)
    assert (told.findings, told.passed) == ([], LENGTH)
    assert verify(acme=make_tar(*of_lines(bare, acme[:-1]).members)).findings


def test_a_selection_tampered_with(acme, tagged, exports, verify) -> None:
    selected = [tagged[seq - 1] for seq in (2, 3, 5, 8)]
    for lines, says in (
        ([*selected[:2], tagged[3], *selected[2:]], "has not the customer tag"),
        ([selected[1], selected[0], *selected[2:]], "out of order or given twice"),
        ([selected[0], *selected], "given twice"),
        ([acme[0], *selected], "it is account acme's, but this is an export of account acme-eu"),
        ([*selected[:3], selected[3].replace(b'"night"', b'"bight"')], "the signature is not the group's"),
    ):
        findings = verify(tagged=of_lines(exports["tagged"], lines)).findings
        assert any(says in each for each in findings), says
    bare = dataclasses.replace(exports["tagged"], members=exports["tagged"].members[1:])
    assert any("are missing before" in each or "is missing before" in each for each in verify(tagged=bare).findings)


def test_a_selection_given_with_other_receipts_of_its_account(
    group, acme, tagged, exports, make_export, verify
) -> None:
    """A fork, or the same receipts twice: between a selection's gaps nobody can tell. In any order of the files."""
    fork = group.receipt(99, 5, previous_of(tagged[4]), "acme-eu", customer_tag=TAG)
    by_day = group.receipt(98, 5, previous_of(tagged[4]), "acme-eu", customer_tag="day")
    head = group.head(tagged, "acme-eu")
    whole = make_export(group, tagged, head, "acme-eu").to_tar()
    forked = make_export(group, [tagged[1], fork], head, "acme-eu", customer_tag=TAG)
    day = make_export(group, [by_day], head, "acme-eu", customer_tag="day").to_tar()
    for selection, further, span, other in (
        (exports["tagged"], whole, "2 to 8", "further-0/receipts/000001.ndjson"),
        (forked, whole, "2 to 5", "further-0/receipts/000001.ndjson"),
        (forked, tagged[3], "2 to 5", "further-0"),
    ):
        finding = (
            f"tagged/manifest.json: its receipts {span} cannot be compared with those in {other}, which overlap them; "
            "verify them one at a time"
        )
        assert verify(further, acme=None, zeta=None, tagged=selection).findings == [finding]
    (finding,) = verify(day, tagged=forked).findings
    assert finding.startswith("further-0/manifest.json: its receipts 5 to 5 cannot be compared with those in tagged/")
    (finding,) = verify(forked.to_tar(), tagged=day).findings
    assert finding.startswith("further-0/manifest.json: its receipts 2 to 5 cannot be compared with those in tagged/")


def test_selections_of_one_account_that_do_not_overlap(group, tagged, make_export, verify) -> None:
    """But a later head that names another receipt than the earlier selection holds is compared with it."""
    of_january = (group.head(tagged[:5], "acme-eu", as_of_unix_ns=SEALED_NS - 5), "acme-eu")
    january = make_export(group, [tagged[1], tagged[4]], *of_january, customer_tag=TAG)
    february = make_export(
        group,
        [tagged[7]],
        group.head(tagged[5:], "acme-eu", first_seq=6),
        "acme-eu",
        customer_tag=TAG,
        since_unix_ns=end_of(tagged[5]),
    )
    assert verify(february.to_tar(), tagged=january).findings == []
    fork = group.receipt(99, 5, previous_of(tagged[4]), "acme-eu", customer_tag=TAG)
    head = group.head(tagged[4:], "acme-eu", first_seq=5, as_of_unix_ns=SEALED_NS)
    forked = make_export(group, [tagged[1], fork], group.head(tagged[:6], "acme-eu"), "acme-eu", customer_tag=TAG)
    later = february.with_member("heads/acme-eu.json", head)
    assert any("receipt 5 in tagged" in each for each in verify(later.to_tar(), tagged=forked).findings)


def test_exports_that_overlap(group, acme, make_export, verify) -> None:
    """The whole range is named, and no receipt is counted twice."""
    older = make_export(group, acme[:4], group.head(acme[:4], as_of_unix_ns=SEALED_NS - 5)).to_tar()
    newer = make_export(group, acme, group.head(acme)).to_tar()
    for first, second in ((older, newer), (newer, older)):
        told = verify(second, acme=first, zeta=None, tagged=None)
        assert told.passed == LENGTH
        # A head that names a receipt within what was read before it asks to be read first.
        *_head, finding = told.findings
        assert len(told.findings) == 1 + (first == newer)
        assert finding.startswith("further-0/receipts/000001.ndjson:1: rcpt_")
        assert (
            ": given twice: receipts 1 to 4 of account acme, here and after acme/receipts/000001.ndjson:1; "
            "of exports that overlap give the newest only"
        ) in finding


def test_a_tag_cannot_speak_for_the_check(group, make_export, verify) -> None:
    tag = "x among 1 to 6; receipts 1 to 6; its chain ended"
    lines = lines_of(group, "acme", 2, lambda _seq: tag)
    told = verify(acme=make_export(group, lines, group.head(lines), customer_tag=tag), zeta=None, tagged=None)
    assert f"2 receipts with tag '{tag}' among 1 to 2, where" in told.notes


def test_a_forked_selection(group, tagged, exports, verify) -> None:
    """Receipts next to each other are chained, and those that the head names are the ones that it names."""
    selected = [tagged[seq - 1] for seq in (2, 3, 5, 8)]
    for place, says in ((1, "prev_sha256 is not the hash of receipt 2"), (3, "receipt 8 in")):
        seq = json.loads(selected[place])["chain"]["seq"]
        fork = group.receipt(99, seq, "ab" * 32, "acme-eu", customer_tag=TAG)
        lines = [*selected[:place], fork, *selected[place + 1 :]]
        findings = verify(tagged=of_lines(exports["tagged"], lines)).findings
        assert any(says in each for each in findings), says


# What cannot be caught is told. Each of these is true as far as it goes, and the group signed it.


def test_told_an_older_export_in_place_of_the_newest(group, acme, make_export, honest, verify) -> None:
    """A head says where the chain ended at its time; who wants to know about later asks for a later head."""
    older = group.head(acme[:4], as_of_unix_ns=SEALED_NS - 60 * 10**9)
    told = verify(acme=make_export(group, acme[:4], older))
    assert told.findings == []
    assert "account acme: receipts 1 to 4; its chain ended at receipt 4 as of 2026-06-23T13:04:00Z" in told.notes


def test_told_an_export_that_begins_later(group, acme, make_export, verify) -> None:
    later = make_export(group, acme[2:], group.head(acme[2:], first_seq=3), since_unix_ns=end_of(acme[1]) - 1)
    told = verify(acme=later)
    assert told.findings == []
    assert "account acme: receipts 3 to 6;" in told.notes
    assert "what came before receipt 3 was not given" in told.notes
    assert "that all before receipt 3 ended before 2026-06-23T12:50:02Z is the export's own word" in told.notes


def test_told_a_full_export_turned_into_a_selection(acme, exports, verify) -> None:
    some = of_lines(manifest_with(exports["acme"], customer_tag=TAG), acme[::2])
    told = verify(acme=some, zeta=None, tagged=None)
    assert told.findings == []
    assert told.notes == f"account acme: 3 receipts with tag 'night' among 1 to 6, {OF_SELECTION}"


def test_told_a_selection_with_receipts_left_out(tagged, exports, verify) -> None:
    told = verify(tagged=of_lines(exports["tagged"], [tagged[1], tagged[7]]))
    assert told.findings == []
    assert "account acme-eu: 2 receipts with tag 'night'" in told.notes
    assert "whether these are all with that tag cannot be checked" in told.notes


def test_told_an_export_without_manifest_and_head(acme, exports, verify, make_tar) -> None:
    bare = make_tar(("receipts.ndjson", b"\n".join(acme[1:4])))
    told = verify(acme=bare)
    assert told.findings == []
    assert "account acme: receipts 2 to 4; ends not checked: no account head was given" in told.notes


def test_told_by_its_absence_a_whole_export_left_out(verify) -> None:
    told = verify(zeta=None)
    assert told.findings == []
    assert "zeta" not in told.notes


def test_what_nobody_signed_is_no_evidence(group, stranger, exports, honest, verify) -> None:
    """The page for the auditor, the key that comes along, when it was made, how its lines are spread over members."""
    export = exports["acme"]
    for changed in (
        export.with_member("README.txt", b"trust me\n"),
        export.with_member("signer_pubkey.hex", stranger.public_key.hex().encode()),
        manifest_with(export, created_unix_ns=0),
    ):
        assert verify(acme=changed) == honest
