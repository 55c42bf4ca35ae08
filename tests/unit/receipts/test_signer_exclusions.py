"""Who broke the protocol stays out until a person takes it back."""

import asyncio
import re
from pathlib import Path

import pytest

from receipts.signer_exclusions import Exclusions
from receipts.signing_errors import SigningError

MEMBERS = range(1, 6)


@pytest.fixture
def record_path(tmp_path: Path) -> Path:
    return tmp_path / "group.json"


async def test_they_outlive_the_process_and_are_lifted_one_by_one(record_path: Path) -> None:
    exclusions = Exclusions.beside(record_path, MEMBERS)
    assert exclusions.reasons == {}
    exclusions.add(4, "wrong signature shares")
    exclusions.add(2, "its reply is malformed")
    await exclusions.note()
    again = Exclusions.beside(record_path, MEMBERS)
    assert again.reasons == {2: "its reply is malformed", 4: "wrong signature shares"}
    await again.lift(2)
    assert Exclusions.beside(record_path, MEMBERS).reasons == {4: "wrong signature shares"}
    with pytest.raises(SigningError, match="signer 2 is not excluded"):
        await again.lift(2)


async def test_one_that_could_not_be_written_down_holds_until_the_end(record_path: Path) -> None:
    exclusions = Exclusions.beside(record_path, MEMBERS)
    blocker = record_path.with_name("excluded-signers.json.new")
    blocker.mkdir()
    exclusions.add(3, "wrong signature shares")
    with pytest.raises(OSError, match="directory"):
        await exclusions.note()
    assert exclusions.reasons == {3: "wrong signature shares"}
    with pytest.raises(SigningError, match=r"excluded-signers\.json could not be written"):
        await exclusions.lift(3)
    assert exclusions.reasons == {3: "wrong signature shares"}
    blocker.rmdir()
    await exclusions.lift(3)
    assert Exclusions.beside(record_path, MEMBERS).reasons == {}


async def test_one_is_out_until_it_is_written_that_it_is_back(record_path: Path) -> None:
    exclusions = Exclusions.beside(record_path, MEMBERS)
    exclusions.add(3, "wrong signature shares")
    await exclusions.note()
    seen = exclusions.reasons
    lifting = asyncio.create_task(exclusions.lift(3))
    await asyncio.sleep(0)
    assert 3 in exclusions.reasons
    exclusions.add(5, "its reply is malformed")
    await asyncio.gather(lifting, exclusions.note())
    assert (dict(seen), exclusions.reasons) == ({3: "wrong signature shares"}, {5: "its reply is malformed"})
    assert Exclusions.beside(record_path, MEMBERS).reasons == {5: "its reply is malformed"}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"four": "why"}', b"{", b"\xff", b'{"6": "why"}', b'{"1": 1}'])
async def test_with_a_damaged_note_all_are_out_until_a_person_says(record_path: Path, caplog, content: bytes) -> None:
    record_path.with_name("excluded-signers.json").write_bytes(content)
    exclusions = Exclusions.beside(record_path, MEMBERS)
    assert sorted(exclusions.reasons) == list(MEMBERS)
    assert re.search(r"excluded-signers\.json cannot be read .*jc signers readmit N", caplog.text)
    await exclusions.lift(2)
    assert sorted(Exclusions.beside(record_path, MEMBERS).reasons) == [1, 3, 4, 5]
