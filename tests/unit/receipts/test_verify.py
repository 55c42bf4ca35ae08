"""What an auditor is told: every tamper is caught, with one clear line, and honest files pass."""

import gzip
import itertools
import json
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import receipts
from receipts.canonical import canonical_bytes
from receipts.document import document_from, signed_bytes, with_signature
from receipts.errors import CannotVerify
from receipts.verify import Finding, VerificationReport, public_key_from_hex, verify_paths
from receipts.verify_chain import AccountChains, Link, Place

LENGTH = 6


def verify(group, *paths: Path) -> tuple[list[str], VerificationReport]:
    report = verify_paths(paths, group.public_key)
    findings = list(report)
    assert report.failed == len(findings)
    return [str(each) for each in findings], report


def verify_one(group, folder: Path, data: bytes) -> list[str]:
    path = folder / "receipt.json"
    path.write_bytes(data)
    findings, report = verify(group, path)
    assert report.passed + report.failed == documents_in(data)
    return [each.removeprefix(f"{folder}/") for each in findings]


def documents_in(data: bytes) -> int:
    """A line break in place of the comma between two objects makes a file of two lines, and each of them fails."""
    return 1 + data.count(b"}\n{")


def verify_lines(group, folder: Path, lines: Sequence[bytes]) -> tuple[list[str], VerificationReport]:
    path = folder / "receipts.ndjson"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    findings, report = verify(group, path)
    return [each.removeprefix(f"{folder}/") for each in findings], report


@pytest.fixture(scope="session")
def receipt(group) -> bytes:
    # A price of less than a pico-dollar per joule spells an exponent, where two spellings of one number differ.
    return group.receipt(1, 1, None, usd_per_kwh=1e-7)


@pytest.fixture(scope="session")
def chain(group) -> list[bytes]:
    return group.chain(LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For Hypothesis, which runs many examples in one test."""
    return tmp_path_factory.mktemp("verify")


def test_an_honest_receipt_passes(group, receipt: bytes, tmp_path: Path) -> None:
    for data in (receipt, receipt + b"\n"):
        assert verify_one(group, tmp_path, data) == []
    findings, report = verify(group, tmp_path / "receipt.json")
    assert (findings, report.summary) == ([], "Verified: 1 passed, 0 failed")


def test_a_later_receipt_alone_is_not_failed_for_its_predecessors(group, chain, tmp_path: Path) -> None:
    assert verify_one(group, tmp_path, chain[-1]) == []


def test_a_reformatted_receipt_counts_by_its_values(group, receipt: bytes, tmp_path: Path) -> None:
    value = json.loads(receipt)
    for text in (
        json.dumps(value, indent=2),
        json.dumps(value),
        json.dumps(value, indent=4, ensure_ascii=False) + "\n",
    ):
        assert verify_one(group, tmp_path, text.encode()) == []
    other = {**value, "price": {**value["price"], "version": "2026-02"}}
    assert "the signature is not the group's" in verify_one(group, tmp_path, json.dumps(other, indent=2).encode())[0]


def test_every_changed_byte_is_caught(group, receipt: bytes, tmp_path: Path) -> None:
    """Every position, a few other values each; with and without the newline that a terminal adds."""
    choose = random.Random(8785)
    for data in (receipt, receipt + b"\n"):
        for place, byte in enumerate(data):
            changed = bytearray(data)
            changed[place] = choose.choice([byte ^ 1 << bit for bit in range(8)] + [*b' \n\t0"'])
            if changed != data:
                findings = verify_one(group, tmp_path, bytes(changed))
                assert len(findings) == documents_in(changed), (place, changed[place])
                assert all("\n" not in each for each in findings)


@pytest.mark.parametrize(("turn", "wrong"), [*enumerate(b' \t\n"0Ee+-.,:{}[]\x00\xff')])
def test_no_byte_can_become_this_one(group, receipt: bytes, tmp_path: Path, turn: int, wrong: int) -> None:
    """By turns, so that every place has two of them at least."""
    for place in range(turn % 8, len(receipt), 8):
        changed = bytearray(receipt)
        changed[place] = wrong
        if changed != receipt:
            assert len(verify_one(group, tmp_path, bytes(changed))) == documents_in(changed), place


def test_another_spelling_of_a_number_is_caught(group, receipt: bytes, tmp_path: Path) -> None:
    assert receipt.count(b"1e-7") == 1
    (finding,) = verify_one(group, tmp_path, receipt.replace(b"1e-7", b"1E-7"))
    assert finding == (
        f"receipt.json: rcpt_{1:032x}: not in canonical form, and no reformatted receipt either: a byte was changed"
    )


def test_every_removed_or_doubled_byte_is_caught(group, receipt: bytes, tmp_path: Path) -> None:
    for place in range(len(receipt)):
        shorter = receipt[:place] + receipt[place + 1 :]
        longer = receipt[:place] + receipt[place : place + 1] + receipt[place:]
        for changed in (shorter, longer):
            assert len(verify_one(group, tmp_path, changed)) == 1, place


@pytest.mark.parametrize("space", [b" ", b"\n", b"\t", b"\r"])
def test_a_single_added_space_is_caught(group, receipt: bytes, tmp_path: Path, space: bytes) -> None:
    for place in [0, len(receipt), *(each.end() for each in re.finditer(rb"[{},:]", receipt))]:
        changed = receipt[:place] + space + receipt[place:]
        if changed != receipt + b"\n":
            assert len(verify_one(group, tmp_path, changed)) == 1, place


def test_a_receipt_cut_short_is_caught(group, receipt: bytes, tmp_path: Path) -> None:
    for length in range(0, len(receipt), 7):
        assert len(verify_one(group, tmp_path, receipt[:length])) == 1, length


def test_every_changed_member_is_caught_even_when_reformatted(group, receipt: bytes, tmp_path: Path) -> None:
    def leaves(value, path=()):
        if isinstance(value, dict):
            for name in value:
                yield from leaves(value[name], (*path, name))
        else:
            yield path, value

    for path, value in leaves(json.loads(receipt)):
        for other in (1, 0.5, "x", "ab" * 32, None, True, [], ["x"], {}):
            if other == value and type(other) is type(value):
                continue
            document = json.loads(receipt)
            inner = document
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = other
            findings = verify_one(group, tmp_path, json.dumps(document, indent=1).encode())
            assert len(findings) == 1, (path, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"zone"', '"zone":"FR","zone"'), "the member 'zone' is there twice"),
        (lambda text: text.replace(":0.5", ":NaN", 1).replace(":0.31,", ":NaN,"), "NaN is not a JSON number"),
        (lambda text: text.replace('"acme"', '"acm\\ud800"'), "lone surrogate"),
        (lambda text: "[" * 5000 + text, "nested deeper than 16 levels"),
        (lambda text: text + " " * 70_000, "larger than 65536 bytes"),
        (lambda text: text.replace("receipt/v1", "receipt/v2"), "unknown typ 'joule-mesh.receipt/v2'"),
        (lambda text: text.replace('"typ"', '"type"'), ": it has no typ; known are joule-mesh.receipt/v1"),
        (lambda text: "{}", ": it has no typ; known are joule-mesh.receipt/v1"),
        (lambda text: "", "the file is empty"),
        (lambda text: "hello", "not JSON"),
    ],
)
def test_malformed_files_get_one_clear_line(group, receipt: bytes, tmp_path: Path, change, says: str) -> None:
    changed = change(receipt.decode()).encode()
    assert changed != receipt
    (finding,) = verify_one(group, tmp_path, changed)
    assert says in finding


def test_a_pending_receipt_is_not_signed_yet(group, receipt: bytes, tmp_path: Path) -> None:
    pending = with_signature(signed_bytes(document_from(json.loads(receipt))), None)
    assert verify_one(group, tmp_path, pending) == [f"receipt.json: rcpt_{1:032x}: not signed yet"]


def test_a_receipt_of_another_group_is_named_so(group, stranger, tmp_path: Path) -> None:
    (finding,) = verify_one(group, tmp_path, stranger.receipt(1, 1, None))
    assert f"signed under key {stranger.key_id}, not under the given key {group.key_id}" in finding


def test_a_strangers_signature_under_the_groups_name_fails(group, stranger, receipt: bytes, tmp_path: Path) -> None:
    signed = signed_bytes(document_from(json.loads(receipt)))
    (finding,) = verify_one(group, tmp_path, with_signature(signed, stranger.sign(signed)))
    assert "the signature is not the group's" in finding


def test_wrong_arithmetic_under_a_good_signature_fails(group, receipt: bytes, tmp_path: Path) -> None:
    value = json.loads(receipt)
    value["price"]["usd_picos"] += 1
    del value["verification"]["signature"]
    signed = canonical_bytes(value)
    (finding,) = verify_one(group, tmp_path, with_signature(signed, group.sign(signed)))
    assert "price.usd_picos is" in finding


def test_a_finding_cannot_command_the_terminal() -> None:
    finding = Finding(file="a\x1b[2Jb", line=3, receipt_id="rcpt_\n", fault="\u202ewrong")
    assert str(finding) == "a\ufffd[2Jb:3: rcpt_\ufffd: \ufffdwrong"


def test_lines_in_order_pass(group, chain, tmp_path: Path) -> None:
    findings, report = verify_lines(group, tmp_path, chain)
    assert (findings, report.passed) == ([], LENGTH)


def test_accounts_may_be_mixed(group, chain, tmp_path: Path) -> None:
    other = group.chain(LENGTH, "other")
    mixed = [each for pair in zip(chain, other, strict=True) for each in pair]
    assert verify_lines(group, tmp_path, mixed)[0] == []


@pytest.mark.parametrize("dropped", range(1, LENGTH - 1))
def test_a_dropped_line_is_one_gap(group, chain, tmp_path: Path, dropped: int) -> None:
    findings, report = verify_lines(group, tmp_path, chain[:dropped] + chain[dropped + 1 :])
    (finding,) = findings
    assert finding.startswith(f"receipts.ndjson:{dropped + 1}: rcpt_")
    assert finding.endswith(f": receipt {dropped + 1} of account acme is missing before seq {dropped + 2}")
    assert report.passed == LENGTH - 2


def test_several_dropped_lines_are_one_gap(group, chain, tmp_path: Path) -> None:
    (finding,), _ = verify_lines(group, tmp_path, [chain[0], *chain[4:]])
    assert "receipts 2 to 4 of account acme are missing before seq 5" in finding


@given(place=st.integers(0, LENGTH - 2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_exchanged_lines_are_caught(group, chain, folder: Path, place: int) -> None:
    lines = list(chain)
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    (finding,), report = verify_lines(group, folder, lines)
    assert f":{place + 2}: " in finding
    assert f"seq {place + 1} comes after seq {place + 2} of its account: out of order or given twice" in finding
    assert report.passed == LENGTH - 1


@given(st.permutations(range(LENGTH)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_other_order_is_caught(group, chain, folder: Path, order: Sequence[int]) -> None:
    findings, report = verify_lines(group, folder, [chain[each] for each in order])
    assert (findings == []) == (list(order) == sorted(order))
    assert report.passed + report.failed == LENGTH


@given(st.lists(st.integers(0, LENGTH - 1), unique=True, min_size=1).map(sorted))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_line_per_gap_however_many_are_dropped(group, chain, folder: Path, kept: list[int]) -> None:
    findings, report = verify_lines(group, folder, [chain[each] for each in kept])
    gaps = sum(later - earlier > 1 for earlier, later in itertools.pairwise(kept))
    assert len(findings) == gaps
    assert report.passed == len(kept) - gaps


@pytest.mark.parametrize("place", range(LENGTH))
def test_a_doubled_line_is_one_finding(group, chain, tmp_path: Path, place: int) -> None:
    (finding,), report = verify_lines(group, tmp_path, [*chain[: place + 1], *chain[place:]])
    assert f"seq {place + 1} of its account is given twice, here and in" in finding
    assert report.passed == LENGTH


@pytest.mark.parametrize("place", range(LENGTH))
def test_a_changed_line_is_one_finding_and_leaves_no_gap(group, chain, tmp_path: Path, place: int) -> None:
    lines = list(chain)
    lines[place] = lines[place].replace(b'"region":"local"', b'"region":"lokal"')
    (finding,), report = verify_lines(group, tmp_path, lines)
    assert f"receipts.ndjson:{place + 1}: rcpt_" in finding
    assert report.passed == LENGTH - 1


def test_several_changed_lines_are_a_finding_each_and_leave_no_gap(group, chain, tmp_path: Path) -> None:
    lines = [each.replace(b"local", b"lokal") if place in (1, 2, 4) else each for place, each in enumerate(chain)]
    findings, report = verify_lines(group, tmp_path, lines)
    assert [each.split(":")[1] for each in findings] == ["2", "3", "5"]
    assert report.passed == LENGTH - 3


def test_lines_must_be_canonical(group, chain, tmp_path: Path) -> None:
    for line in (
        json.dumps(json.loads(chain[2])).encode(),
        chain[2] + b" ",
        chain[2] + b"\r",
        b" " + chain[2],
    ):
        (finding,), _ = verify_lines(group, tmp_path, [*chain[:2], line, *chain[3:]])
        assert finding.endswith(": not in canonical form")
    (finding,), _ = verify_lines(group, tmp_path, [*chain[:2], b"", *chain[2:]])
    assert finding.startswith("receipts.ndjson:3: not JSON")


def test_an_endless_line_is_one_finding(group, chain, tmp_path: Path) -> None:
    (finding,), report = verify_lines(group, tmp_path, [chain[0], b"[" * 1_000_000, *chain[1:]])
    assert finding == "receipts.ndjson:2: larger than 65536 bytes"
    assert report.passed == LENGTH


def test_a_fork_is_caught(group, chain, tmp_path: Path) -> None:
    """Two receipts with one seq, each signed: the group itself broke its promise."""
    fork = group.receipt(99, 3, json.loads(chain[2])["chain"]["prev_sha256"])
    (finding,), _ = verify_lines(group, tmp_path, [*chain[:3], fork, *chain[3:]])
    assert "a different receipt with seq 3 of its account is in" in finding
    (finding,), _ = verify_lines(group, tmp_path, [*chain[:2], fork, *chain[3:]])
    assert f"its prev_sha256 is not the hash of receipt 3 ({tmp_path}/receipts.ndjson:3)" in finding


def test_files_come_in_any_order(group, chain, tmp_path: Path) -> None:
    paths = [tmp_path / f"{place}.json" for place in range(LENGTH)]
    for path, document in zip(paths, chain, strict=True):
        path.write_bytes(document)
    assert verify(group, *reversed(paths))[0] == []
    findings, report = verify(group, paths[4], paths[1])
    assert findings == [f"{paths[4]}: {json.loads(chain[4])['receipt_id']}: " + findings[0].split(": ", 2)[2]]
    assert "receipts 3 to 4 of account acme are missing before seq 5" in findings[0]
    assert report.summary == "Verified: 1 passed, 1 failed"
    (finding,), _ = verify(group, *paths[2:4], paths[3])
    assert "seq 4 of its account is given twice, here and in" in finding


def test_pieces_of_a_chain_are_joined_across_files(group, chain, tmp_path: Path) -> None:
    first, second, third = tmp_path / "a.ndjson", tmp_path / "b.ndjson", tmp_path / "c.json"
    first.write_bytes(b"\n".join(chain[:2]))
    second.write_bytes(b"\n".join(chain[3:]))
    third.write_bytes(chain[2])
    assert verify(group, second, third, first)[0] == []
    (finding,), _ = verify(group, second, first)
    assert "receipt 3 of account acme is missing before seq 4" in finding
    (finding,), _ = verify(group, first, second, third, third)
    assert "given twice" in finding
    second.write_bytes(b"\n".join(chain[1:]))
    (finding,), _ = verify(group, first, second)
    assert "given twice" in finding
    first.write_bytes(b"\n".join(chain[:5]))
    second.write_bytes(b"\n".join(chain[1:3]))
    third.write_bytes(chain[5])
    (finding,), _ = verify(group, first, second, third)
    assert f"given twice: receipts 2 to 3 of account acme, here and after {first}:1" in finding


def test_a_gap_does_not_hide_in_the_failure_of_another_receipt(group, chain, tmp_path: Path) -> None:
    lines = [chain[0], chain[1].replace(b"local", b"lokal"), *chain[3:]]
    findings, _ = verify_lines(group, tmp_path, lines)
    assert len(findings) == 2
    assert "receipts 2 to 3 of account acme are missing before seq 4" in findings[1]


def link(seq: int, file: str = "") -> Link:
    """A receipt whose hash is its seq."""
    previous = f"{seq - 1:064}" if seq > 1 else None
    place = Place(file=file or f"{seq}.json", line=None, receipt_id=f"rcpt_{seq:032x}")
    return Link(seq=seq, prev_sha256=previous, sha256=f"{seq:064}", place=place)


def test_any_number_of_files_in_any_order() -> None:
    """More than the pieces that are kept, of which none fits to the one before."""
    count = 80_000
    order = list(range(1, count + 1))
    random.Random(5).shuffle(order)
    chains = AccountChains()
    assert not any(chains.add("acme", link(seq)) for seq in order)
    assert list(chains.finish()) == []
    assert list(chains.notes()) == [f"account acme: receipts 1 to {count}; ends not checked: no account head was given"]


def test_a_gap_is_found_when_pieces_were_joined_on_the_way() -> None:
    chains = AccountChains()
    for seq in [*range(70_000, 1, -1)]:
        if seq != 300:
            assert chains.add("acme", link(seq)) == ()
    (fault,) = chains.finish()
    assert (fault.place.file, fault.fault) == ("301.json", "receipt 300 of account acme is missing before seq 301")


def test_memory_is_bounded_even_where_every_line_leaves_a_gap() -> None:
    """It is said once that there are too many gaps, and none of the receipts is called missing."""
    chains = AccountChains()
    (fault,) = (fault for seq in range(2, 140_000, 2) for fault in chains.add("acme", link(seq, "gaps.ndjson")))
    assert chains._chains["acme"].pieces == []
    assert fault.place == Place(file="gaps.ndjson", line=None, receipt_id=None)
    assert "too many gaps" in fault.fault
    assert list(chains.finish()) == []
    assert list(chains.notes()) == ["account acme: its chain was not checked"]


def test_a_forked_file_given_twice_is_counted_once(group, chain, tmp_path: Path) -> None:
    fork = group.receipt(99, 3, json.loads(chain[2])["chain"]["prev_sha256"])
    for name in ("a.ndjson", "b.ndjson"):
        (tmp_path / name).write_bytes(b"\n".join([*chain[:2], fork, *chain[3:]]))
    findings, report = verify(group, tmp_path / "a.ndjson", tmp_path / "b.ndjson")
    assert (len(findings), report.passed) == (3, LENGTH - 1)


def test_findings_beyond_a_thousand_of_a_file_are_counted_only(group, chain, tmp_path: Path) -> None:
    bomb, other = tmp_path / "bomb.ndjson.gz", tmp_path / "other.ndjson"
    bomb.write_bytes(gzip.compress(b"\n" * 70_000))
    other.write_bytes(b"\n" * 2 + chain[0])
    report = verify_paths([bomb, other], group.public_key)
    shown = list(report)
    assert [each.file for each in shown] == [str(bomb)] * 1000 + [str(other)] * 2
    assert report.summary == "Verified: 1 passed, 70002 failed"
    assert report.notes[0] == f"69000 more failures in {bomb} are not shown"


def test_blank_lines_before_receipts_are_not_the_end(group, chain, tmp_path: Path) -> None:
    path = tmp_path / "receipts"
    path.write_bytes(b"\n" * 70_000 + chain[0])
    report = verify_paths([path], group.public_key)
    assert "not JSON" in next(iter(report)).fault
    path.write_bytes(b" \n" * 70_000)
    assert verify_paths([path], group.public_key).passed == 0


class TestAccountHeads:
    """Signed by the group, they catch what is dropped at the ends."""

    def test_a_whole_chain_passes(self, group, chain, tmp_path: Path) -> None:
        for lines in (
            [*chain, group.head(chain)],
            [group.head(chain), *chain],
            [*chain[2:], group.head(chain[2:], first_seq=3)],
        ):
            findings, report = verify_lines(group, tmp_path, lines)
            assert (findings, report.passed) == ([], len(lines) - 1)

    @pytest.mark.parametrize("dropped", range(1, LENGTH))
    def test_dropping_at_an_end_is_caught(self, group, chain, tmp_path: Path, dropped: int) -> None:
        head = group.head(chain)
        for kept, missing in (
            (chain[dropped:], (1, dropped)),
            (chain[:-dropped], (LENGTH - dropped + 1, LENGTH)),
        ):
            (finding,), report = verify_lines(group, tmp_path, [*kept, head])
            first, last = missing
            words = (
                f"receipt {first} of account acme is"
                if first == last
                else f"receipts {first} to {last} of account acme are"
            )
            assert finding == f"receipts.ndjson:{len(kept) + 1}: {words} missing"
            assert report.passed == len(kept)

    def test_dropping_all_is_caught(self, group, chain, tmp_path: Path) -> None:
        (finding,), _ = verify_lines(group, tmp_path, [group.head(chain)])
        assert "receipts 1 to 6 of account acme are missing" in finding

    def test_receipts_past_the_head_are_welcome(self, group, chain, tmp_path: Path) -> None:
        assert verify_lines(group, tmp_path, [group.head(chain[:3]), *chain])[0] == []

    def test_another_last_receipt_is_caught(self, group, chain, tmp_path: Path) -> None:
        for wrong in ({"last_sha256": "ab" * 32}, {"first_sha256": "ab" * 32}):
            (finding,), _ = verify_lines(group, tmp_path, [*chain, group.head(chain, **wrong)])
            assert "is not the one that the head names" in finding

    def test_every_changed_byte_of_a_head_is_caught(self, group, chain, tmp_path: Path) -> None:
        head = group.head(chain)
        for place in range(len(head)):
            changed = bytearray(head)
            changed[place] ^= 1
            findings, _ = verify_lines(group, tmp_path, [*chain, bytes(changed)])
            assert len(findings) == 1, place

    def test_a_head_of_another_group_is_caught(self, group, stranger, chain, tmp_path: Path) -> None:
        (finding,), _ = verify_lines(group, tmp_path, [*chain, stranger.head(chain)])
        assert "not under the given key" in finding


def tar(folder: Path, name: str, option: str, *members: str) -> Path:
    subprocess.run(["tar", f"-c{option}f", str(folder / name), "-C", str(folder), *members], check=True)
    return folder / name


class TestArchives:
    @pytest.mark.parametrize(("name", "option"), [("e.tar", ""), ("e.tgz", "z")])
    def test_an_archive_is_read_whatever_its_compression(
        self, group, chain, tmp_path: Path, name: str, option: str
    ) -> None:
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "receipts.ndjson").write_bytes(b"\n".join(chain[1:]) + b"\n")
        (tmp_path / "export" / "first.json").write_bytes(chain[0])
        (tmp_path / "export" / "heads.ndjson").write_bytes(group.head(chain) + b"\n")
        (tmp_path / "export" / "README.txt").write_text("for the auditor")
        findings, report = verify(group, tar(tmp_path, name, option, "export"))
        assert (findings, report.passed) == ([], LENGTH)

    def test_a_line_in_an_archive_is_named(self, group, chain, tmp_path: Path) -> None:
        (tmp_path / "r.ndjson").write_bytes(b"\n".join([chain[0], chain[1].replace(b"local", b"lokal")]))
        (finding,), _ = verify(group, tar(tmp_path, "e.tar", "", "r.ndjson"))
        assert finding.startswith(f"{tmp_path}/e.tar/r.ndjson:2: rcpt_")

    def test_members_must_be_canonical(self, group, chain, tmp_path: Path) -> None:
        (tmp_path / "r.json").write_text(json.dumps(json.loads(chain[0]), indent=2))
        (finding,), _ = verify(group, tar(tmp_path, "e.tar", "", "r.json"))
        assert finding.endswith(": not in canonical form")

    @pytest.mark.parametrize(("name", "option"), [("e.tar", ""), ("e.tgz", "z")])
    def test_an_archive_cut_anywhere_is_caught(self, group, chain, tmp_path: Path, name: str, option: str) -> None:
        for place, document in enumerate(chain):
            (tmp_path / f"{place}.json").write_bytes(document)
        path = tar(tmp_path, name, option, *(f"{place}.json" for place in range(LENGTH)))
        whole = path.read_bytes()
        assert verify(group, path)[0] == []
        # A plain archive ends with its first block of zeros; what follows is filling.
        end = len(whole) if option else len(whole.rstrip(b"\0")) // 512 * 512 + 1024
        for length in range(300, end, 97 if option else 256):
            path.write_bytes(whole[:length])
            findings, _ = verify(group, path)
            assert findings, length
            assert re.search("damaged|cut short|larger|not UTF-8|not JSON", findings[-1])

    def test_a_damaged_header_does_not_end_an_archive_in_silence(self, group, chain, tmp_path: Path) -> None:
        for place, document in enumerate(chain):
            (tmp_path / f"{place}.json").write_bytes(document)
        path = tar(tmp_path, "e.tar", "", *(f"{place}.json" for place in range(LENGTH)))
        data = bytearray(path.read_bytes())
        data[data.index(b"3.json")] ^= 1
        path.write_bytes(data)
        findings, report = verify(group, path)
        assert findings == [
            f"{path}: the archive is damaged or cut short: bad checksum where a member or the end mark should be"
        ]
        assert report.passed == 3

    def test_a_compressed_archives_checksum_is_checked(self, group, chain, tmp_path: Path) -> None:
        (tmp_path / "r.ndjson").write_bytes(b"\n".join(chain))
        path = tar(tmp_path, "e.tar", "", "r.ndjson")
        # Filled up with zeros, as tar does with large records: the end mark is far from the end.
        data = bytearray(gzip.compress(path.read_bytes() + bytes(500_000)))
        data[-5] ^= 1  # in the last eight bytes, which are checksum and length
        path.write_bytes(data)
        (finding,), report = verify(group, path)
        assert "the archive is damaged" in finding
        assert report.passed == LENGTH

    def test_an_archive_without_receipts_is_no_success(self, group, tmp_path: Path) -> None:
        (tmp_path / "README.txt").write_text("nothing here")
        (finding,), _ = verify(group, tar(tmp_path, "e.tar", "", "README.txt"))
        assert "the archive holds no receipts" in finding

    def test_a_link_cannot_stand_in_for_receipts(self, group, tmp_path: Path) -> None:
        (tmp_path / "r.ndjson").symlink_to("/etc/passwd")
        (finding,), _ = verify(group, tar(tmp_path, "e.tar", "", "r.ndjson"))
        assert finding.endswith("its member r.ndjson is not a file")


def test_a_file_that_cannot_be_read_stops_it(group, tmp_path: Path) -> None:
    for path, says in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CannotVerify, match=says):
            verify(group, path)


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 33])
def test_a_key_that_is_none_stops_it(text: str) -> None:
    with pytest.raises(CannotVerify, match="64 hex digits"):
        public_key_from_hex(text)
    with pytest.raises(CannotVerify, match="32 bytes"):
        verify_paths([], text.encode()[:31])


def test_a_key_file_may_end_in_a_newline(group) -> None:
    assert public_key_from_hex(f" {group.public_key.hex()}\n") == group.public_key


@given(data=st.binary(max_size=400), cut=st.integers(0, 2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_gives_findings_and_no_exception(group, chain, folder: Path, data: bytes, cut: int) -> None:
    for content in (data, chain[0][:cut] + data, b"\x1f\x8b" + data, data.ljust(257, b"x") + b"ustar" + data):
        path = folder / "any"
        path.write_bytes(content)
        findings, report = verify(group, path)
        assert bool(findings) or report.passed == 1


def test_memory_does_not_grow_with_the_number_of_receipts(group, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.ndjson"
        path.write_bytes(b"".join(each + b"\n" for each in group.chain(count)))
        tracemalloc.start()
        try:
            assert verify(group, path)[1].passed == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(400) < peak(40) + 50_000


def test_the_auditors_page_shows_a_check_without_our_code_that_works(group, receipt: bytes, tmp_path: Path) -> None:
    page = Path(receipts.__file__).with_name("README.md").read_text()
    program, *_of_statements = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "signer_pubkey.hex").write_text(group.public_key.hex() + "\n")
    for data, passes in ((receipt + b"\n", True), (receipt.replace(b"local", b"lokal"), False)):
        (tmp_path / "receipt.json").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-W", "ignore::ResourceWarning", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == passes, done.stderr
