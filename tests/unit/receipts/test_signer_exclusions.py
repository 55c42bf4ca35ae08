"""Who broke the protocol stays out until a person takes it back."""

from pathlib import Path

import pytest

from receipts.signer_exclusions import Exclusions
from receipts.signing_errors import SigningError


@pytest.fixture
def record_path(tmp_path: Path) -> Path:
    return tmp_path / "group.json"


def test_they_outlive_the_process_and_are_lifted_one_by_one(record_path: Path) -> None:
    exclusions = Exclusions.beside(record_path)
    assert exclusions.reasons == {}
    exclusions.add(4, "wrong signature shares")
    exclusions.add(2, "its reply is malformed")
    again = Exclusions.beside(record_path)
    assert again.reasons == {2: "its reply is malformed", 4: "wrong signature shares"}
    again.lift(2)
    assert Exclusions.beside(record_path).reasons == {4: "wrong signature shares"}
    with pytest.raises(SigningError, match="signer 2 is not excluded"):
        again.lift(2)


def test_one_that_could_not_be_written_down_holds_until_the_end(record_path: Path) -> None:
    exclusions = Exclusions.beside(record_path)
    blocker = record_path.with_name("excluded-signers.json.new")
    blocker.mkdir()
    with pytest.raises(OSError, match="directory"):
        exclusions.add(3, "wrong signature shares")
    assert exclusions.reasons == {3: "wrong signature shares"}
    with pytest.raises(SigningError, match=r"excluded-signers\.json could not be written"):
        exclusions.lift(3)
    assert exclusions.reasons == {3: "wrong signature shares"}
    blocker.rmdir()
    exclusions.lift(3)
    assert Exclusions.beside(record_path).reasons == {}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"four": "why"}', b"{", b"\xff"])
def test_a_damaged_note_is_said_with_what_to_do(record_path: Path, content: bytes) -> None:
    record_path.with_name("excluded-signers.json").write_bytes(content)
    with pytest.raises(SigningError, match=r"excluded-signers\.json cannot be read .*remove it to take all"):
        Exclusions.beside(record_path)
