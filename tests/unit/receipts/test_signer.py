"""One signer: its files, its states, and what it signs."""

import hashlib
import json
import logging
import os
import pickle
import signal
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from nacl.signing import VerifyKey

from metering.statements import SignedStatement
from receipts.frost.aggregate import aggregate
from receipts.frost.errors import FrostError
from receipts.frost.round_one import NonceCommitment
from receipts.frost.signing_package import SigningPackage
from receipts.group_record import GroupRecord
from receipts.meter_enrolment import MAX_METERS, MeterEnrolment
from receipts.signer import MAX_BATCH, MAX_COMMITMENTS, Signer
from receipts.signer_messages import (
    CeremonyPlan,
    Refusal,
    ShareRefused,
    SignedMessage,
    SigningReply,
    SigningRequest,
)
from receipts.signer_store import ChainClaim, MarkStore, StatementNumber
from receipts.signing_errors import PolicyViolation, ShareUnusable, SigningError

SECRET = bytes(range(32))
MEMBERS = range(1, 6)


class ToyPolicy:
    """Signs JSON with account, seq and prev, whatever meters say; refuses what says that it is wrong."""

    def examine_stated(self, message: bytes, evidence: SignedStatement | None, *, key_id: str, meters) -> ChainClaim:
        return self.examine(message, key_id=key_id)

    def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
        assert len(key_id) == 16
        try:
            body = json.loads(message)
            previous = body["prev"]
        except (ValueError, KeyError):
            raise PolicyViolation("not a receipt") from None
        if body.get("wrong"):
            raise PolicyViolation("the arithmetic is wrong")
        return ChainClaim(
            account=body["account"],
            seq=body["seq"],
            prev_sha256=None if previous is None else bytes.fromhex(previous),
            sha256=hashlib.sha256(message).digest(),
        )


def chain(length: int, account: str = "acme", note: str = "") -> list[bytes]:
    messages: list[bytes] = []
    previous = None
    for seq in range(1, length + 1):
        body = {"account": account, "seq": seq, "prev": previous, "note": note}
        messages.append(json.dumps(body).encode())
        previous = hashlib.sha256(messages[-1]).hexdigest()
    return messages


def unstated(packages: Iterable[SigningPackage], heads: tuple[SignedMessage, ...] = ()) -> SigningRequest:
    """A request without evidence, which the toy policy doesn't ask for."""
    packages = tuple(packages)
    return SigningRequest(packages=packages, evidence=(None,) * len(packages), heads=heads)


def open_signer(folder: Path, identifier: int, **options: object) -> Signer:
    arguments: dict[str, object] = {
        "identifier": identifier,
        "folder": folder / f"signer-{identifier}",
        "share_secret": SECRET,
        "policy": ToyPolicy(),
        "random_bytes": os.urandom,
        **options,
    }
    return Signer(**arguments)  # type: ignore[arg-type]


class Five:
    """Five signers in one process, and a coordinator's steps by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signers = {each: open_signer(folder, each) for each in MEMBERS}

    def plan(self) -> CeremonyPlan:
        roster = tuple(self.signers[each].status().identity for each in MEMBERS)
        return CeremonyPlan(ceremony_id=os.urandom(32), threshold=3, roster=roster)

    def run_ceremony(self) -> GroupRecord:
        plan = self.plan()
        packages = tuple(self.signers[each].begin(plan) for each in MEMBERS)
        sealed = [share for each in MEMBERS for share in self.signers[each].exchange(packages)]
        signed = {
            each: self.signers[each].conclude(tuple(share for share in sealed if share.recipient == each))
            for each in MEMBERS
        }
        return GroupRecord(statement=signed[1].statement, signatures={each: signed[each].signature for each in MEMBERS})

    def found(self) -> GroupRecord:
        record = self.run_ceremony()
        for signer in self.signers.values():
            signer.activate(record)
        return record

    def restart(self, identifier: int, **options: object) -> Signer:
        self.signers[identifier].close()
        self.signers[identifier] = open_signer(self.folder, identifier, **options)
        return self.signers[identifier]

    def packages(self, messages: list[bytes], quorum: tuple[int, ...]) -> tuple[SigningPackage, ...]:
        batches = {each: self.signers[each].commit(len(messages)).commitments for each in quorum}
        return tuple(
            SigningPackage(message=message, commitments=tuple(batches[each][place] for each in quorum))
            for place, message in enumerate(messages)
        )

    def sign(
        self, messages: list[bytes], quorum: tuple[int, ...] = (1, 2, 3), heads: tuple[SignedMessage, ...] = ()
    ) -> dict[int, SigningReply]:
        request = unstated(self.packages(messages, quorum), heads)
        self.last_request = request
        return {each: self.signers[each].sign(request) for each in quorum}

    def signatures(self, record: GroupRecord, messages: list[bytes], quorum: tuple[int, ...]) -> list[bytes]:
        replies = self.sign(messages, quorum)
        signatures = []
        for place, package in enumerate(self.last_request.packages):
            shares = {}
            for each in quorum:
                outcome = replies[each].outcomes[place]
                assert isinstance(outcome, bytes)
                shares[each] = outcome
            signature = aggregate(
                package, shares, public_key=record.public_key, verifying_shares=record.verifying_shares
            )
            signatures.append(signature)
        return signatures


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Five]:
    five = Five(tmp_path)
    yield five
    for signer in five.signers.values():
        signer.close()


def reasons(reply: SigningReply) -> list[Refusal | None]:
    return [each.reason if isinstance(each, ShareRefused) else None for each in reply.outcomes]


def test_any_quorum_signs_what_others_verify(five: Five) -> None:
    record = five.found()
    messages = chain(3)
    for quorum in [(1, 2, 3), (1, 4, 5), (2, 3, 4)]:
        for message, signature in zip(messages, five.signatures(record, messages, quorum), strict=True):
            VerifyKey(record.public_key).verify(message, signature)


def test_a_restart_keeps_share_and_marks_and_drops_nonces(five: Five) -> None:
    record = five.found()
    messages = chain(2)
    five.signatures(record, messages, (1, 2, 3))
    packages = five.packages(messages, (1, 2, 3))
    signer = five.restart(1)
    assert signer.status().record == record
    assert reasons(signer.sign(unstated(packages))) == [Refusal.NONCE] * 2
    fork = chain(2, note="fork")
    assert reasons(five.sign(fork)[1]) == [Refusal.CHAIN, Refusal.WAITING]
    five.signatures(record, messages, (1, 2, 3))


def test_nonces_are_consumed_whatever_becomes_of_the_message(five: Five) -> None:
    five.found()
    messages = [b"not a receipt", *chain(1)]
    assert reasons(five.sign(messages)[1]) == [Refusal.POLICY, None]
    request = five.last_request
    good = chain(1)[0]
    again = unstated(tuple(replace(each, message=good) for each in request.packages))
    assert reasons(five.signers[1].sign(again)) == [Refusal.NONCE] * 2


def test_one_commitment_twice_in_a_request_serves_once(five: Five) -> None:
    five.found()
    first, second = chain(2)
    (package,) = five.packages([first], (1, 2, 3))
    reply = five.signers[1].sign(unstated((package, replace(package, message=second))))
    assert reasons(reply) == [None, Refusal.NONCE]


def test_a_package_without_our_commitment_gets_nothing(five: Five) -> None:
    five.found()
    (package,) = five.packages(chain(1), (2, 3, 4))
    assert reasons(five.signers[1].sign(unstated((package,)))) == [Refusal.NONCE]


def test_another_signers_bad_commitment_or_a_small_quorum_is_a_package_refusal(five: Five) -> None:
    five.found()
    bad = NonceCommitment(identifier=3, hiding=bytes(32), binding=bytes(32))
    first, second = five.packages([chain(1)[0]] * 2, (1, 2, 3))
    spoiled = replace(first, commitments=(*first.commitments[:2], bad))
    small = replace(second, commitments=second.commitments[:2])
    reply = five.signers[1].sign(unstated((spoiled, small)))
    assert reasons(reply) == [Refusal.PACKAGE] * 2


def test_the_mark_is_written_before_the_share_is_released(five: Five) -> None:
    """A signer whose marks cannot be written releases nothing, and its nonces are gone."""
    five.found()
    message = chain(1)
    packages = five.packages(message, (1, 2, 3))
    path = five.folder / "signer-1" / "marks.sqlite3"
    blocker = sqlite3.connect(path)
    blocker.executescript("CREATE TRIGGER full BEFORE INSERT ON vouched BEGIN SELECT RAISE(ABORT, 'disk full'); END;")
    with pytest.raises(SigningError, match="disk full"):
        five.signers[1].sign(unstated(packages))
    blocker.executescript("DROP TRIGGER full")
    assert reasons(five.signers[1].sign(unstated(packages))) == [Refusal.NONCE]
    assert reasons(five.sign(message)[1]) == [None]
    assert blocker.execute("SELECT seq FROM account").fetchall() == [(1,)]
    blocker.close()


def test_a_signer_that_was_down_catches_up_on_proof_only(five: Five) -> None:
    record = five.found()
    messages = chain(4)
    signatures = five.signatures(record, messages[:3], (1, 2, 3))
    last = messages[3:]
    assert reasons(five.sign(last, (2, 3, 4))[4]) == [Refusal.BEHIND]
    unsigned = SignedMessage(message=messages[2], signature=bytes(64))
    of_another = SignedMessage(message=messages[2], signature=signatures[1])
    assert reasons(five.sign(last, (2, 3, 4), heads=(unsigned, of_another))[4]) == [Refusal.BEHIND]
    proof = SignedMessage(message=messages[2], signature=signatures[2])
    assert reasons(five.sign(last, (2, 3, 4), heads=(proof,))[4]) == [None]
    assert reasons(five.sign(chain(4, note="fork")[3:], (2, 3, 4))[4]) == [Refusal.CHAIN]


def test_a_policy_that_lies_about_the_hash_or_the_place_is_not_believed(five: Five, tmp_path: Path) -> None:
    record = five.found()
    five.signers[1].close()

    class LyingPolicy(ToyPolicy):
        def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
            claim = super().examine(message, key_id=key_id)
            return replace(claim, sha256=bytes(32)) if claim.seq == 1 else replace(claim, seq=2**63)

    five.signers[1] = open_signer(tmp_path, 1, policy=LyingPolicy())
    five.signers[1].activate(record)
    assert reasons(five.sign(chain(2))[1]) == [Refusal.POLICY] * 2


METER = MeterEnrolment(public_key=bytes(range(32)), node="host-1", maximum_power_milliwatts=250_000)


class EvidencePolicy(ToyPolicy):
    """Takes as a statement's number what stands in the evidence, of meters that are enrolled."""

    def examine_stated(self, message: bytes, evidence: SignedStatement | None, *, key_id: str, meters) -> ChainClaim:
        if evidence is None or METER.public_key not in meters:
            raise PolicyViolation(f"{evidence} with {len(meters)} meters")
        assert meters[METER.public_key] == METER
        number = StatementNumber(meter=METER.public_key, sequence=int(evidence.statement))
        return replace(self.examine(message, key_id=key_id), stated=number)


def with_evidence(five: Five, messages: list[bytes], *numbers: int) -> SigningRequest:
    evidence = tuple(SignedStatement(statement=str(each), signature="") for each in numbers)
    return SigningRequest(packages=five.packages(messages, (1, 2, 3)), evidence=evidence)


def test_each_message_is_examined_with_its_own_evidence_and_the_enrolled_meters(five: Five, tmp_path: Path) -> None:
    record = five.found()
    five.restart(1, policy=EvidencePolicy())
    messages = chain(2)
    assert reasons(five.signers[1].sign(with_evidence(five, messages, 1, 2))) == [Refusal.POLICY] * 2
    five.signers[1].enrol_meter(METER)
    assert reasons(five.sign(messages)[1]) == [Refusal.POLICY] * 2
    assert reasons(five.signers[1].sign(with_evidence(five, messages, 1, 2))) == [None, None]
    assert reasons(five.signers[1].sign(with_evidence(five, messages, 1, 2))) == [None, None]
    other = chain(1, "other")
    assert reasons(five.signers[1].sign(with_evidence(five, other, 2))) == [Refusal.CHAIN]
    assert five.signers[1].status().record == record


def test_one_piece_of_evidence_goes_with_each_message(five: Five) -> None:
    five.found()
    for numbers in [(), (1,), (1, 2, 3)]:
        with pytest.raises(SigningError, match="one piece of evidence"):
            five.signers[1].sign(with_evidence(five, chain(2), *numbers))


def test_a_proved_head_needs_no_evidence(five: Five, tmp_path: Path) -> None:
    record = five.found()
    messages = chain(2)
    signatures = five.signatures(record, messages, (1, 2, 3))
    signer = five.restart(4, policy=EvidencePolicy())
    signer.enrol_meter(METER)
    heads = (SignedMessage(message=messages[1], signature=signatures[1]),)
    evidence = (SignedStatement(statement="7", signature=""),)
    packages = five.packages(chain(3)[2:], (2, 3, 4))
    assert reasons(signer.sign(SigningRequest(packages=packages, evidence=evidence, heads=heads))) == [None]


def test_enrolled_meters_outlive_a_restart(five: Five, tmp_path: Path) -> None:
    signer = five.signers[1]
    signer.enrol_meter(METER)  # before there is a group, even
    second = replace(METER, public_key=bytes(32), node="host-2")
    signer.enrol_meter(second)
    file = tmp_path / "signer-1" / "meters.sealed"
    written = file.stat().st_mtime_ns
    signer.enrol_meter(METER)
    assert file.stat().st_mtime_ns == written, "the same again writes nothing"
    stronger = replace(METER, maximum_power_milliwatts=300_000)
    signer.enrol_meter(stronger)
    assert five.restart(1)._meters.by_key == {METER.public_key: stronger, second.public_key: second}
    assert five.restart(2)._meters.by_key == {}


def test_a_meter_that_misses_a_gpu_today_keeps_the_power_that_waiting_receipts_need(five: Five, tmp_path: Path) -> None:
    signer = five.signers[1]
    signer.enrol_meter(METER)
    file = tmp_path / "signer-1" / "meters.sealed"
    written = file.read_bytes()
    weaker = replace(METER, maximum_power_milliwatts=1)
    signer.enrol_meter(weaker)
    assert signer._meters.by_key == {METER.public_key: METER}
    assert file.read_bytes() == written, "sealed anew it would differ"
    signer.enrol_meter(replace(weaker, node="renamed"))
    assert five.restart(1)._meters.by_key == {METER.public_key: replace(METER, node="renamed")}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"public_key": b""}, "has 0 bytes, not 32"),
        ({"public_key": bytes(33)}, "has 33 bytes, not 32"),
        ({"node": ""}, "no name"),
        ({"node": "x" * 256}, "too long"),
        ({"maximum_power_milliwatts": -1}, "negative maximum power"),
    ],
)
def test_a_malformed_enrolment_is_refused(five: Five, changes: dict[str, object], says: str) -> None:
    with pytest.raises(SigningError, match=says):
        five.signers[1].enrol_meter(replace(METER, **changes))
    assert not (five.folder / "signer-1" / "meters.sealed").exists()


def test_meters_are_not_enrolled_without_end(five: Five) -> None:
    signer = five.signers[1]
    many = {bytes([*divmod(n, 256), *bytes(30)]): METER for n in range(MAX_METERS)}
    signer._meters._meters = many
    with pytest.raises(SigningError, match="1024 meters are enrolled"):
        signer.enrol_meter(METER)


def test_a_damaged_or_exposed_file_of_meters_is_said(five: Five, tmp_path: Path) -> None:
    five.signers[1].enrol_meter(METER)
    five.signers[1].close()
    file = tmp_path / "signer-1" / "meters.sealed"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(ShareUnusable, match=r"meters\.sealed is damaged"):
        open_signer(tmp_path, 1)
    file.write_bytes(content)
    file.chmod(0o644)
    with pytest.raises(ShareUnusable, match="can be read by other users"):
        open_signer(tmp_path, 1)


def test_an_enrolment_that_cannot_be_written_is_not_believed(five: Five, tmp_path: Path) -> None:
    (tmp_path / "signer-1" / "meters.sealed.new").mkdir()
    with pytest.raises(SigningError, match="could not be written"):
        five.signers[1].enrol_meter(METER)
    assert five.signers[1]._meters.by_key == {}


def test_limits(five: Five) -> None:
    with pytest.raises(SigningError, match="no active key share"):
        five.signers[1].commit(1)
    five.found()
    for count in (0, -1, MAX_COMMITMENTS + 1):
        with pytest.raises(SigningError, match="commitments asked for"):
            five.signers[1].commit(count)
    (package,) = five.packages(chain(1), (1, 2, 3))
    with pytest.raises(SigningError, match="at most"):
        five.signers[1].sign(unstated((package,) * (MAX_BATCH + 1)))
    assert reasons(five.signers[1].sign(unstated((package,)))) == [None]


def test_the_oldest_unused_nonces_are_dropped(five: Five) -> None:
    five.found()
    oldest = five.packages(chain(1), (1, 2, 3))
    five.signers[1].commit(MAX_COMMITMENTS)
    assert reasons(five.signers[1].sign(unstated(oldest))) == [Refusal.NONCE]


def test_a_share_in_use_cannot_be_overwritten(five: Five) -> None:
    record = five.found()
    with pytest.raises(SigningError, match="takes part in no ceremony"):
        five.signers[1].begin(five.plan())
    five.signers[1].activate(record)
    assert five.signers[1].status().record == record


def test_a_pending_share_outlives_a_crash_and_is_not_used(five: Five) -> None:
    """The coordinator wrote the record down and died before it could activate anybody."""
    record = five.run_ceremony()
    for each in MEMBERS:
        signer = five.restart(each)
        assert signer.status().record is None
        with pytest.raises(SigningError, match="no active key share"):
            signer.commit(1)
        signer.activate(record)
    five.signatures(record, chain(1), (1, 2, 3))


def test_a_ceremony_that_was_never_recorded_gives_way_to_a_new_one(five: Five) -> None:
    abandoned = five.run_ceremony()
    five.restart(2)
    record = five.found()
    assert record.public_key != abandoned.public_key
    with pytest.raises(ShareUnusable, match="another group"):
        five.signers[1].activate(abandoned)


def test_a_key_that_somebody_did_not_sign_for_is_not_used(five: Five) -> None:
    record = five.run_ceremony()
    with pytest.raises(SigningError, match="signer 5 did not sign"):
        five.signers[1].activate(replace(record, signatures={**record.signatures, 5: bytes(64)}))
    assert five.signers[1].status().record is None


def test_steps_of_a_ceremony_need_a_ceremony(five: Five) -> None:
    with pytest.raises(SigningError, match="no ceremony is under way"):
        five.signers[1].exchange(())
    with pytest.raises(SigningError, match="no ceremony is under way"):
        five.signers[1].conclude(())


def test_a_share_that_fails_to_open_leaves_no_share_behind(five: Five) -> None:
    plan = five.plan()
    packages = tuple(five.signers[each].begin(plan) for each in MEMBERS)
    five.signers[1].exchange(packages)
    with pytest.raises(FrostError):
        five.signers[1].conclude(())
    assert not (five.folder / "signer-1" / "share.sealed").exists()


def test_an_enrolled_roster_is_the_only_one_taken(five: Five, tmp_path: Path) -> None:
    plan = five.plan()
    enrolled = {each.identifier: each.identity_key for each in plan.roster}
    five.signers[1].close()
    five.signers[1] = open_signer(tmp_path, 1, enrolled=enrolled)
    five.signers[1].begin(plan)
    five.signers[1].close()
    five.signers[1] = open_signer(tmp_path, 1, enrolled={**enrolled, 4: bytes(32)})
    with pytest.raises(SigningError, match="not the enrolled one"):
        five.signers[1].begin(plan)


def test_the_share_of_another_group_is_said(five: Five, tmp_path: Path) -> None:
    five.found()
    others = Five(tmp_path / "others")
    theirs = others.found()
    with pytest.raises(ShareUnusable, match="signer 1 holds a share of another group"):
        five.signers[1].activate(theirs)
    five.signers[1].close()
    share = "share.sealed"
    (tmp_path / "signer-1" / share).write_bytes((tmp_path / "others" / "signer-1" / share).read_bytes())
    with pytest.raises(ShareUnusable, match="group without this signer"):
        open_signer(tmp_path, 1)
    identity = "identity.sealed"
    (tmp_path / "signer-1" / identity).write_bytes((tmp_path / "others" / "signer-1" / identity).read_bytes())
    with pytest.raises(ShareUnusable, match="sqlite3 belongs to another signing group"):
        open_signer(tmp_path, 1)
    for signer in others.signers.values():
        signer.close()


def test_a_share_that_does_not_fit_its_group_is_said(five: Five, tmp_path: Path) -> None:
    """Such a file verifies as sealed, so only its own content can give it away."""
    record = five.found()
    signer, other = five.signers[1], five.signers[2]
    share, wrong = signer._active[0], other._active[0].secret  # type: ignore[index]
    signer._write_share(replace(share, secret=wrong), record.statement, signatures=record.signatures)
    signer.close()
    with pytest.raises(ShareUnusable, match="is of another group"):
        open_signer(tmp_path, 1)


def test_a_folder_is_one_process_s_at_a_time(five: Five, tmp_path: Path) -> None:
    """Two starts that overlap would each take the other's epoch of the marks for a copy's, for good."""
    five.found()
    with pytest.raises(SigningError, match=r"another process uses .*signer-1; end it, or wait") as raised:
        open_signer(tmp_path, 1)
    assert not isinstance(raised.value, ShareUnusable), "it may be tried again"
    five.signers[1].close()
    with pytest.raises(ShareUnusable, match="another share secret"):
        open_signer(tmp_path, 1, share_secret=bytes(32))
    five.signers[1] = open_signer(tmp_path, 1)
    assert five.signers[1].status().record is not None


def test_a_successor_waits_for_a_process_that_is_ending(five: Five, tmp_path: Path) -> None:
    five.found()
    five.signers[1].close()
    is_ready, has_opened = os.pipe()
    ending = os.fork()
    if ending == 0:
        signer = open_signer(tmp_path, 1)
        os.write(has_opened, b"1")
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
        signer.close()
    assert os.read(is_ready, 1) == b"1"
    five.signers[1] = open_signer(tmp_path, 1)
    os.waitpid(ending, 0)
    for each in (is_ready, has_opened):
        os.close(each)


@pytest.mark.parametrize("put_in_their_place", ["nothing", "an empty file", "an empty store"])
def test_a_signer_whose_marks_and_epoch_are_lost_does_not_sign(
    five: Five, tmp_path: Path, put_in_their_place: str
) -> None:
    record = five.found()
    folder = tmp_path / "signer-1"
    five.signers[1].close()
    for each in (*folder.glob("marks.sqlite3*"), folder / "marks-epoch.sealed"):
        each.unlink()
    if put_in_their_place == "an empty file":
        (folder / "marks.sqlite3").touch()
    elif put_in_their_place == "an empty store":
        MarkStore.open(folder / "marks.sqlite3", public_key=record.public_key).close()
    for _ in range(2):
        with pytest.raises(ShareUnusable, match=r"lost its marks|not what it wrote last"):
            open_signer(tmp_path, 1)


def test_a_share_from_before_epochs_is_taken_over_once(five: Five, tmp_path: Path) -> None:
    record = five.found()
    folder = tmp_path / "signer-1"
    share, _ = five.signers[1]._active  # type: ignore[misc]
    texts = {each: signature.hex() for each, signature in record.signatures.items()}
    old = {"secret": share.secret.hex(), "statement": record.statement.to_document(), "signatures": texts}
    five.signers[1]._vault.write("share", json.dumps(old).encode())
    five.signers[1].close()
    (folder / "marks-epoch.sealed").unlink()
    for each in folder.glob("marks.sqlite3*"):
        each.unlink()
    MarkStore.open(folder / "marks.sqlite3", public_key=record.public_key).close()
    open_signer(tmp_path, 1).close()
    open_signer(tmp_path, 1).close()
    (folder / "marks-epoch.sealed").unlink()
    for each in folder.glob("marks.sqlite3*"):
        each.unlink()
    MarkStore.open(folder / "marks.sqlite3", public_key=record.public_key).close()
    with pytest.raises(ShareUnusable, match="not what it wrote last"):
        open_signer(tmp_path, 1)


def test_missing_wrong_and_misplaced_files_are_said(five: Five, tmp_path: Path) -> None:
    record = five.found()
    for each in (1, 2):
        five.signers[each].close()
    with pytest.raises(ShareUnusable, match="share secret is missing"):
        open_signer(tmp_path, 1, share_secret=b"")
    with pytest.raises(ShareUnusable, match="another share secret"):
        open_signer(tmp_path, 1, share_secret=bytes(32))
    (tmp_path / "swapped").mkdir()
    (tmp_path / "signer-2").rename(tmp_path / "swapped" / "signer-1")
    with pytest.raises(ShareUnusable, match="belongs to signer 2, not to signer 1"):
        open_signer(tmp_path / "swapped", 1)
    (tmp_path / "swapped" / "signer-1").rename(tmp_path / "signer-2")
    (tmp_path / "signer-1" / "identity.sealed").unlink()
    with pytest.raises(ShareUnusable, match="lost its identity"):
        open_signer(tmp_path, 1)
    (tmp_path / "signer-2" / "share.sealed").unlink()
    five.signers[2] = open_signer(tmp_path, 2)
    with pytest.raises(ShareUnusable, match="holds no key share"):
        five.signers[2].activate(record)


def test_nothing_of_a_signer_is_shown_logged_or_pickled(five: Five, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    five.signatures(five.found(), chain(2), (1, 2, 3))
    signer = five.signers[1]
    assert repr(signer) == "<Signer redacted>"
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(signer)
    assert caplog.records == []
    secrets = [signer._active[0].secret, SECRET]  # type: ignore[index]
    for file in (five.folder / "signer-1").iterdir():
        for secret in secrets:
            assert secret not in file.read_bytes()
            assert secret.hex().encode() not in file.read_bytes()


def test_files_are_private(five: Five) -> None:
    five.signatures(five.found(), chain(1), (1, 2, 3))
    for file in (five.folder / "signer-1").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
