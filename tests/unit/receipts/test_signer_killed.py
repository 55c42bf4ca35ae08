"""A signer killed at any line of a sign call: no nonce serves twice, no place in a chain is vouched for twice.

A second share from one pair of nonces gives the key share away by subtraction. Nonces are made, kept and used up in
one process's memory, so its death takes them along; what this tests is that nothing brings them back.
"""

import hashlib
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import receipts
from receipts.frost import round_one
from receipts.frost.round_one import NonceCommitment
from receipts.frost.signing_package import SigningPackage
from receipts.group_record import GroupRecord
from receipts.signer import Signer
from receipts.signer_messages import CeremonyPlan, Refusal, ShareRefused, SigningReply, SigningRequest
from receipts.signer_store import ChainClaim

SECRET = bytes(range(32))
KILLS = 60
_OURS = str(Path(receipts.__file__).parent)


class ToyPolicy:
    """Signs JSON with account, seq and prev."""

    def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
        body = json.loads(message)
        previous = None if body["prev"] is None else bytes.fromhex(body["prev"])
        digest = hashlib.sha256(message).digest()
        return ChainClaim(account="acme", seq=body["seq"], prev_sha256=previous, sha256=digest)

    def examine_stated(self, message: bytes, evidence: None, *, key_id: str, meters: object) -> ChainClaim:
        return self.examine(message, key_id=key_id)


def open_signer(folder: Path, identifier: int) -> Signer:
    return Signer(
        identifier=identifier,
        folder=folder / f"signer-{identifier}",
        share_secret=SECRET,
        policy=ToyPolicy(),  # type: ignore[arg-type]
        random_bytes=os.urandom,
    )


def found_group(folder: Path) -> None:
    signers = {each: open_signer(folder, each) for each in (1, 2, 3)}
    roster = tuple(each.status().identity for each in signers.values())
    plan = CeremonyPlan(ceremony_id=os.urandom(32), threshold=3, roster=roster)
    packages = tuple(each.begin(plan) for each in signers.values())
    sealed = [share for each in signers.values() for share in each.exchange(packages)]
    signed = {
        number: each.conclude(tuple(share for share in sealed if share.recipient == number))
        for number, each in signers.items()
    }
    record = GroupRecord(statement=signed[1].statement, signatures={each: signed[each].signature for each in signed})
    for each in signers.values():
        each.activate(record)
        each.close()


def message(seq: int, previous: bytes | None, note: str = "") -> bytes:
    body = {"seq": seq, "prev": None if previous is None else hashlib.sha256(previous).hexdigest(), "note": note}
    return json.dumps(body).encode()


def in_a_child(work: Callable[[Callable[[object], None]], None]) -> list[Any]:
    """Do ``work`` in a process of its own; what it said until its end, even if that was sudden."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(lambda said: os.write(writing, pickle.dumps(said)) and None)
        finally:
            os._exit(0)
    os.close(writing)
    heard: list[Any] = []
    with os.fdopen(reading, "rb") as pipe:
        while True:
            try:
                heard.append(pickle.load(pipe))  # noqa: S301 - our own child's
            except EOFError:
                break
    os.waitpid(child, 0)
    return heard


def killed_at(line: int | None, counted: list[int]) -> Callable[[FrameType, str, object], Any]:
    """A trace function that ends the process at its so-many-th line of our own code; None only counts."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        if event == "line":
            counted[0] += 1
            if counted[0] == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def request(commitments: tuple[NonceCommitment, ...], messages: list[bytes]) -> SigningRequest:
    """The others' commitments are any: what matters is the share that this signer gives."""
    others = [[round_one.commit(each, bytes(32), os.urandom).commitment for each in (2, 3)] for _ in messages]
    packages = tuple(
        SigningPackage(message=each, commitments=(own, *theirs))
        for each, own, theirs in zip(messages, commitments, others, strict=True)
    )
    return SigningRequest(packages=packages, evidence=(None,) * len(packages), fresh=2)


def a_life(folder: Path, messages: list[bytes], line: int | None) -> list[Any]:
    """Open, commit, sign; killed at a line of the sign call. Says its commitments, its reply, its lines."""

    def live(say: Callable[[object], None]) -> None:
        signer = open_signer(folder, 1)
        commitments = signer.commit(len(messages)).commitments
        say(commitments)
        asked = request(commitments, messages)
        counted = [0]
        sys.settrace(killed_at(line, counted))
        reply = signer.sign(asked)
        sys.settrace(None)
        say(reply)
        say(counted[0])

    return in_a_child(live)


def reasons(reply: SigningReply) -> list[Refusal | None]:
    return [each.reason if isinstance(each, ShareRefused) else None for each in reply.outcomes]


def test_a_signer_killed_at_any_line_uses_no_nonce_twice_and_signs_no_fork(tmp_path: Path) -> None:
    found_group(tmp_path)
    released: set[NonceCommitment] = set()
    previous: bytes | None = None
    lines: int | None = None
    killed = died_marked = 0
    for life, kill in enumerate(kill_lines()):
        seq = life * 2 + 1
        first = message(seq, previous)
        second = message(seq + 1, first)
        fork = message(seq, previous, note="another")
        line = None if kill is None or lines is None else max(1, round(kill * lines))
        heard = a_life(tmp_path, [first, second], line)
        commitments = heard[0]
        if line is None:
            lines = heard[2]
            assert reasons(heard[1]) == [None, None]
            assert lines > KILLS
        else:
            assert len(heard) == 1, "it was killed before it could answer"
            killed += 1

        def come_back(say: Callable[[object], None], old=commitments, asked=(first, second, fork)) -> None:
            first, second, fork = asked
            signer = open_signer(tmp_path, 1)
            assert signer._marks is not None
            say(signer._marks.mark("acme"))
            say(signer.sign(request(old, [first, second])))
            say(signer.sign(request(old, [fork, second])))
            fresh = signer.commit(3).commitments
            say(fresh)
            say(signer.sign(request(fresh[:2], [first, second])))
            say(signer.sign(request(fresh[:2], [first, second])))
            say(signer.sign(request(fresh[2:], [fork])))

        mark, again, forked, fresh, signed, twice, late_fork = in_a_child(come_back)
        assert reasons(again) == [Refusal.NONCE] * 2, "the nonces of its earlier life"
        assert reasons(forked) == [Refusal.CHAIN, Refusal.WAITING]
        died_marked += line is not None and mark is not None and mark.seq == seq + 1
        assert reasons(signed) == [None, None], "the same receipts, as often as it takes"
        assert reasons(twice) == [Refusal.NONCE] * 2
        assert reasons(late_fork) == [Refusal.CHAIN]
        for each in (*commitments, *fresh):
            assert each not in released
            released.add(each)
        previous = second
    assert killed == KILLS
    assert 0 < died_marked < KILLS, "it died before its marks were written, and after"


def kill_lines() -> Iterator[float | None]:
    """First not at all, to count lines (a new account takes some more); then all over the call, to its last line."""
    yield None
    yield None
    for each in range(1, KILLS + 1):
        yield each / KILLS


def test_a_request_that_is_sent_again_over_the_wire_finds_no_nonces(tmp_path: Path) -> None:
    """As when a coordinator, or whoever recorded it, repeats a call: pickled and all."""
    found_group(tmp_path)
    signer = open_signer(tmp_path, 1)
    asked = request(signer.commit(1).commitments, [message(1, None)])
    copy = pickle.loads(pickle.dumps(asked))  # noqa: S301 - our own
    assert copy == asked
    assert reasons(signer.sign(copy)) == [None]
    assert reasons(signer.sign(asked)) == [Refusal.NONCE]
    assert reasons(signer.sign(replace(copy, packages=asked.packages))) == [Refusal.NONCE]
    signer.close()
