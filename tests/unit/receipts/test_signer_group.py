"""The coordinator: no one notices two dead or dishonest signers, and nothing is lost with three."""

import asyncio
import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.signing import VerifyKey

from metering.statements import SignedStatement
from receipts.frost.ciphersuite import Scalar, add, public_scalar
from receipts.frost.errors import FrostError
from receipts.group_record import GroupRecord
from receipts.meter_enrolling import enrol_meter
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer import Signer
from receipts.signer_exclusions import Exclusions
from receipts.signer_group import SignerGroup
from receipts.signer_messages import (
    CeremonyPlan,
    CommitmentBatch,
    HeadWanted,
    Refusal,
    RoundOnePackage,
    SealedShare,
    ShareRefused,
    SignedGroupStatement,
    SignedMessage,
    SigningRefused,
    SigningReply,
    SigningRequest,
)
from receipts.signer_ports import LocalSigner
from receipts.signer_store import ChainClaim
from receipts.signing_errors import (
    PolicyViolation,
    QuorumUnavailable,
    ShareUnusable,
    SignerUnavailable,
    SigningError,
)

SECRET = bytes(range(32))
MEMBERS = range(1, 6)


class ToyPolicy:
    """Signs JSON with account, seq and prev, whatever meters say; refuses what says that it is wrong."""

    def examine_stated(self, message: bytes, evidence: SignedStatement | None, *, key_id: str, meters) -> ChainClaim:
        return self.examine(message, key_id=key_id)

    def examine(self, message: bytes, *, key_id: str) -> ChainClaim:
        assert len(key_id) == 16
        body = json.loads(message)
        if body["wrong"]:
            raise PolicyViolation("the arithmetic is wrong")
        return ChainClaim(
            account=body["account"],
            seq=body["seq"],
            prev_sha256=None if body["prev"] is None else bytes.fromhex(body["prev"]),
            sha256=hashlib.sha256(message).digest(),
        )


def chain(length: int, account: str = "acme", wrong: Iterable[int] = ()) -> list[bytes]:
    messages: list[bytes] = []
    previous = None
    for seq in range(1, length + 1):
        body = {"account": account, "seq": seq, "prev": previous, "wrong": seq in wrong}
        messages.append(json.dumps(body).encode())
        previous = hashlib.sha256(messages[-1]).hexdigest()
    return messages


def unstated(messages: Iterable[bytes]) -> list[tuple[bytes, None]]:
    """Messages without evidence, which the toy policy doesn't ask for."""
    return [(each, None) for each in messages]


class Book:
    """A ledger's signed receipts."""

    def __init__(self) -> None:
        self.signed: dict[tuple[str, int], SignedMessage] = {}
        self.asked: list[tuple[str, int]] = []

    def keep(self, messages: Sequence[bytes], signatures: Sequence[bytes | SigningRefused]) -> None:
        for message, signature in zip(messages, signatures, strict=True):
            if isinstance(signature, bytes):
                body = json.loads(message)
                self.signed[body["account"], body["seq"]] = SignedMessage(message=message, signature=signature)

    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        self.asked.append((account, seq))
        return self.signed.get((account, seq))


class Port(LocalSigner):
    """A signer that can be dead, or dishonest in what it answers."""

    def __init__(self, signer: Signer) -> None:
        super().__init__(signer)
        self.dead = False
        self.calls: list[str] = []
        self.spoil_reply: Callable[[SigningReply], SigningReply] = lambda reply: reply
        self.spoil_commitments: Callable[[CommitmentBatch], CommitmentBatch] = lambda batch: batch
        self.spoil_statement: Callable[[SignedGroupStatement], SignedGroupStatement] = lambda signed: signed
        self.spoil_package: Callable[[RoundOnePackage], RoundOnePackage] = lambda package: package

    async def conclude(self, sealed: tuple[SealedShare, ...]) -> SignedGroupStatement:
        await self._meet("conclude")
        return self.spoil_statement(await super().conclude(sealed))

    async def _meet(self, call: str) -> None:
        self.calls.append(call)
        await asyncio.sleep(0)  # as a signer in another process, it lets other calls run meanwhile
        if self.dead:
            raise SignerUnavailable("dead")

    async def status(self):
        await self._meet("status")
        return await super().status()

    async def begin(self, plan: CeremonyPlan) -> RoundOnePackage:
        await self._meet("begin")
        return self.spoil_package(await super().begin(plan))

    async def activate(self, record: GroupRecord) -> None:
        await self._meet("activate")
        await super().activate(record)

    async def enrol_meter(self, enrolment: MeterEnrolment) -> None:
        await self._meet("enrol_meter")
        await super().enrol_meter(enrolment)

    async def commit(self, count: int) -> CommitmentBatch:
        await self._meet("commit")
        return self.spoil_commitments(await super().commit(count))

    async def sign(self, request: SigningRequest) -> SigningReply:
        await self._meet("sign")
        return self.spoil_reply(await super().sign(request))


class House:
    """Five signers' folders, a book, and the group over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record_path = folder / "group.json"
        self.book = Book()
        self.max_batch = 256
        self.signers: dict[int, Signer] = {}
        self.ports: dict[int, Port] = {}
        for each in MEMBERS:
            self.reopen(each)

    def reopen(self, identifier: int, **options: object) -> None:
        if identifier in self.signers:
            self.signers[identifier].close()
        arguments: dict[str, object] = {
            "identifier": identifier,
            "folder": self.folder / f"signer-{identifier}",
            "share_secret": SECRET,
            "policy": ToyPolicy(),
            "random_bytes": os.urandom,
            **options,
        }
        self.signers[identifier] = Signer(**arguments)  # type: ignore[arg-type]
        if identifier in self.ports:
            self.ports[identifier]._signer = self.signers[identifier]
        else:
            self.ports[identifier] = Port(self.signers[identifier])

    async def start(self) -> SignerGroup:
        return await SignerGroup.start(
            self.ports,
            record_path=self.record_path,
            heads=self.book,
            random_bytes=os.urandom,
            max_batch=self.max_batch,
        )

    async def sign(self, group: SignerGroup, messages: Sequence[bytes]) -> list[bytes | SigningRefused]:
        """As the ledger does: sign, then keep what was signed."""
        signatures = await group.sign(unstated(messages))
        self.book.keep(messages, signatures)
        return signatures

    def close(self) -> None:
        for signer in self.signers.values():
            signer.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


@asynccontextmanager
async def dead(house: House, *identifiers: int) -> AsyncIterator[None]:
    for each in identifiers:
        house.ports[each].dead = True
    yield
    for each in identifiers:
        house.ports[each].dead = False


def verified(group: SignerGroup, messages: Sequence[bytes], signatures: Sequence[bytes | SigningRefused]) -> bool:
    """Whether all are signatures in the eyes of two other libraries."""
    for message, signature in zip(messages, signatures, strict=True):
        assert isinstance(signature, bytes), signature
        VerifyKey(group.public_key).verify(message, signature)
        Ed25519PublicKey.from_public_bytes(group.public_key).verify(signature, message)
    return True


def spoil_shares(reply: SigningReply) -> SigningReply:
    outcomes = tuple(
        add(Scalar(each), public_scalar(1)) if isinstance(each, bytes) else each for each in reply.outcomes
    )
    return replace(reply, outcomes=outcomes)


METER = MeterEnrolment(public_key=bytes(range(32)), node="host-1", maximum_power_milliwatts=250_000)


async def test_a_meter_is_enrolled_with_all_signers_that_answer(house: House, caplog) -> None:
    for _ in range(2):
        async with dead(house, 2, 4):
            await enrol_meter(house.ports, METER)
        assert [len(house.signers[each]._meters.by_key) for each in MEMBERS] == [1, 0, 1, 0, 1]
    assert "signer 2 cannot be told of the meter of host-1: dead" in caplog.text
    await enrol_meter(house.ports, METER)
    assert [dict(house.signers[each]._meters.by_key) for each in MEMBERS] == [{METER.public_key: METER}] * 5


async def test_telling_signers_again_says_only_what_changed(house: House, caplog) -> None:
    caplog.set_level(logging.INFO)
    other = replace(METER, public_key=bytes(32), node="host-2")
    async with dead(house, 2):
        for _ in range(3):
            await enrol_meter(house.ports, METER)
        await enrol_meter(house.ports, other)
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("WARNING", "signer 2 cannot be told of the meter of host-1: dead"),
        ("WARNING", "signer 2 cannot be told of the meter of host-2: dead"),
    ]
    caplog.clear()
    for _ in range(3):
        await enrol_meter(house.ports, METER)
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("INFO", "signer 2 knows the meter of host-1 now")
    ]
    caplog.clear()
    async with dead(house, 2):
        await enrol_meter(house.ports, METER)
    assert [each.levelname for each in caplog.records] == ["WARNING"], "down once more is news again"


async def test_telling_signers_again_does_not_disturb_signing(house: House) -> None:
    group = await house.start()
    messages = chain(12)
    done = asyncio.Event()

    async def enrol_without_end() -> None:
        while not done.is_set():
            await enrol_meter(house.ports, METER)

    enrolling = asyncio.create_task(enrol_without_end())
    for message in messages:
        assert verified(group, [message], await house.sign(group, [message]))
    done.set()
    await enrolling
    assert house.ports[1].calls.count("enrol_meter") >= len(messages)
    assert house.ports[1].calls.count("commit") == 1, "no nonces were lost"
    assert "sign" not in house.ports[4].calls + house.ports[5].calls, "one quorum served throughout"


async def test_a_meter_that_too_few_signers_know_is_said(house: House) -> None:
    async with dead(house, 1, 2, 5):
        with pytest.raises(QuorumUnavailable, match=r"meter of host-1 is not enrolled with 3 signers: .*dead"):
            await enrol_meter(house.ports, METER)


async def test_a_receipt_that_some_signers_cannot_vouch_for_is_signed_by_others(house: House) -> None:
    """One that does not know the meter yet, as after it was away when the meter was enrolled."""

    class Wary(ToyPolicy):
        def examine_stated(self, message, evidence, *, key_id, meters) -> ChainClaim:
            if evidence is None or not meters:
                raise PolicyViolation("its meter is not enrolled with this signer")
            return self.examine(message, key_id=key_id)

    evidence = SignedStatement(statement="the meter's word", signature="")
    for each in MEMBERS:
        house.reopen(each, policy=Wary())
    group = await house.start()
    (message,) = chain(1)
    (refused,) = await group.sign([(message, evidence)])
    assert isinstance(refused, SigningRefused)
    assert "not enrolled" in refused.reason
    async with dead(house, 1):
        await enrol_meter(house.ports, METER)
    assert verified(group, [message], await group.sign([(message, evidence)]))
    (refused,) = await group.sign([(message, None)])
    assert isinstance(refused, SigningRefused)


async def test_signatures_come_in_order_and_verify(house: House) -> None:
    group = await house.start()
    messages = [*chain(5), *chain(3, account="other")]
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert await group.sign(unstated([])) == []


async def test_a_call_longer_than_a_batch_is_cut(house: House) -> None:
    house.max_batch = 4
    group = await house.start()
    messages = chain(11)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert house.ports[1].calls.count("sign") == 3


async def test_the_group_survives_a_restart(house: House) -> None:
    group = await house.start()
    messages = chain(3)
    await house.sign(group, messages[:2])
    for each in MEMBERS:
        house.reopen(each)
    again = await house.start()
    assert again.public_key == group.public_key
    assert again.key_id == group.key_id == hashlib.sha256(group.public_key).hexdigest()[:16]
    assert verified(again, messages[2:], await again.sign(unstated(messages[2:])))


async def test_one_quorum_serves_while_it_answers(house: House) -> None:
    group = await house.start()
    messages = chain(4)
    for message in messages:
        await house.sign(group, [message])
    assert "sign" not in house.ports[4].calls + house.ports[5].calls
    assert house.ports[1].calls.count("commit") == 1
    assert house.book.asked == []


@pytest.mark.parametrize("gone", [(1,), (2, 3), (4, 5), (1, 5)])
async def test_two_dead_signers_go_unnoticed(house: House, gone: tuple[int, ...]) -> None:
    group = await house.start()
    messages = chain(6)
    await house.sign(group, messages[:3])
    async with dead(house, *gone):
        assert verified(group, messages[3:], await house.sign(group, messages[3:]))
    assert group.excluded == {}


async def test_a_signer_that_was_away_stays_the_spare(house: House) -> None:
    """Going back to it would make it catch up on every account at once, for nothing."""
    group = await house.start()
    messages = chain(3)
    async with dead(house, 1):
        await house.sign(group, messages[:1])
    calls = house.ports[1].calls.count("sign")
    await house.sign(group, messages[1:])
    assert house.ports[1].calls.count("sign") == calls


async def test_with_three_dead_receipts_wait_and_are_signed_later(house: House) -> None:
    group = await house.start()
    messages = chain(3)
    await house.sign(group, messages[:1])
    async with dead(house, 1, 3, 5):
        for _ in range(2):
            with pytest.raises(QuorumUnavailable, match="2 of 3"):
                await group.sign(unstated(messages[1:]))
    assert verified(group, messages, await house.sign(group, messages))


async def test_a_signer_that_died_after_marking_does_not_block_the_receipt(house: House) -> None:
    """Its mark has moved, no signature exists, and the same message is offered to everybody again."""
    group = await house.start()
    messages = chain(2)

    def die(_: SigningReply) -> SigningReply:
        raise SignerUnavailable("died with the share in its hands")

    for each in (1, 2, 3):
        house.ports[each].spoil_reply = die
    with pytest.raises(QuorumUnavailable):
        await group.sign(unstated(messages))
    for each in (1, 2, 3):
        house.ports[each].spoil_reply = lambda reply: reply
    assert verified(group, messages, await group.sign(unstated(messages)))


async def test_a_restarted_signer_is_asked_for_fresh_nonces(house: House) -> None:
    group = await house.start()
    messages = chain(2)
    await house.sign(group, messages[:1])
    house.reopen(2)
    assert verified(group, messages[1:], await house.sign(group, messages[1:]))
    assert "sign" not in house.ports[4].calls
    assert house.ports[2].calls.count("commit") == 2


async def test_a_signer_that_never_has_its_nonces_is_passed_over(house: House) -> None:
    group = await house.start()
    lost = ShareRefused(reason=Refusal.NONCE, detail="lost")
    house.ports[1].spoil_reply = lambda reply: replace(reply, outcomes=(lost,) * len(reply.outcomes))
    messages = chain(2)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert group.excluded == {}


@pytest.mark.parametrize("culprits", [(2,), (1, 3)])
async def test_wrong_shares_name_and_exclude_the_culprit(house: House, culprits: tuple[int, ...]) -> None:
    group = await house.start()
    for each in culprits:
        house.ports[each].spoil_reply = spoil_shares
    messages = chain(5)
    assert verified(group, messages, await house.sign(group, messages))
    assert sorted(group.excluded) == list(culprits)
    calls = len(house.ports[culprits[0]].calls)
    more = chain(6)[5:]
    assert verified(group, more, await house.sign(group, more))
    assert len(house.ports[culprits[0]].calls) == calls


async def test_an_exclusion_outlives_the_coordinator_and_is_lifted_by_a_person(house: House, caplog) -> None:
    group = await house.start()
    house.ports[2].spoil_reply = spoil_shares
    messages = chain(4)
    await house.sign(group, messages[:1])
    assert (
        "signer 2 is excluded: wrong signature shares from [2]; once it is seen to: jc signers readmit 2" in caplog.text
    )
    house.ports[2].spoil_reply = lambda reply: reply
    again = await house.start()
    assert again.excluded == {2: "wrong signature shares from [2]"}
    calls = house.ports[2].calls.count("sign")
    async with dead(house, 1, 3):
        with pytest.raises(QuorumUnavailable, match=r"signer 2: excluded: wrong signature shares"):
            await again.sign(unstated(messages[1:2]))
        await again.readmit(2)
        assert verified(again, messages[1:2], await house.sign(again, messages[1:2]))
    assert house.ports[2].calls.count("sign") > calls
    with pytest.raises(SigningError, match="signer 2 is not excluded"):
        await again.readmit(2)
    assert (await house.start()).excluded == {}


async def test_the_report_says_how_each_signer_is(house: House, tmp_path: Path) -> None:
    group = await house.start()
    house.ports[3].spoil_reply = spoil_shares
    no = ShareRefused(reason=Refusal.POLICY, detail="no")
    house.ports[2].spoil_reply = lambda reply: replace(reply, outcomes=(no,) * len(reply.outcomes))
    await house.sign(group, chain(3))
    async with dead(house, 4):
        one, two, three, four, five = await group.members(lambda: 7)
    assert (one.state, one.reason, one.status.accounts, one.status.vouched) == ("ready", None, 1, 0)
    assert one.status.unused_nonces > 0
    assert (two.state, three.state, four.state, five.state) == ("ready", "excluded", "away", "ready")
    assert (three.reason, four.reason) == ("wrong signature shares from [3]", "dead")
    assert four.status is None
    assert [each.last_refusal for each in (one, two, five)] == [None, "no", None]
    stranger = open_stranger(tmp_path)
    house.ports[1]._signer = stranger
    assert (await group.members(lambda: 7))[0].state == "no share"
    stranger.close()


def open_stranger(folder: Path) -> Signer:
    return Signer(
        identifier=1, folder=folder / "stranger", share_secret=SECRET, policy=ToyPolicy(), random_bytes=os.urandom
    )


async def test_calls_that_overlap_go_on_with_one_chain(house: House) -> None:
    """As the signing loop makes them: the next batch is at the signers while the last one's shares are put together."""
    house.max_batch = 4
    group = await house.start()
    messages = chain(40)
    batches = [messages[start : start + 4] for start in range(0, 40, 4)]
    results = await asyncio.gather(*(group.sign(unstated(batch)) for batch in batches))
    for batch, signatures in zip(batches, results, strict=True):
        assert verified(group, batch, signatures)
    assert "sign" not in house.ports[4].calls + house.ports[5].calls
    assert house.book.asked == []


async def test_a_spare_signer_takes_over_in_the_middle_of_overlapping_calls(house: House) -> None:
    """It is behind on receipts that were signed in the calls before, which the ledger does not have yet."""
    house.max_batch = 4
    group = await house.start()
    messages = chain(40)
    answered = 0

    def die_later(reply: SigningReply) -> SigningReply:
        nonlocal answered
        answered += 1
        if answered > 3:
            raise SignerUnavailable("gone")
        return reply

    house.ports[2].spoil_reply = die_later
    batches = [messages[start : start + 4] for start in range(0, 40, 4)]
    results = await asyncio.gather(*(group.sign(unstated(batch)) for batch in batches))
    for batch, signatures in zip(batches, results, strict=True):
        assert verified(group, batch, signatures)
    assert [each.last_refusal for each in await group.members(lambda: 7)] == [None] * 5, "nobody was unwilling"


async def test_a_call_waits_in_vain_for_an_earlier_one_that_is_refused(house: House) -> None:
    house.max_batch = 4
    group = await house.start()
    messages = chain(12, wrong=[6])
    async with dead(house, 4, 5):
        await house.sign(group, messages[:4])
    async with dead(house, 1, 2), asyncio.timeout(20):
        results = await asyncio.gather(*(group.sign(unstated(messages[each : each + 4])) for each in (4, 8)))
    assert [isinstance(each, bytes) for signatures in results for each in signatures] == [True] + [False] * 7


async def test_more_commitments_are_asked_for_when_too_few_are_left(house: House) -> None:
    """As with a signer that gives none along with its shares."""
    house.max_batch = 4
    group = await house.start()
    for each in (1, 2, 3):
        house.ports[each].spoil_reply = lambda reply: replace(reply, fresh=None)
    messages = chain(22)
    for start, end in ((0, 4), (4, 8), (8, 11), (11, 15), (15, 18), (18, 22)):
        assert verified(group, messages[start:end], await house.sign(group, messages[start:end]))
    assert house.ports[1].calls.count("commit") == 2, "twelve at a time"


async def test_fresh_commitments_come_with_the_shares(house: House) -> None:
    house.max_batch = 4
    group = await house.start()
    messages = chain(60)
    for start in range(0, 60, 4):
        await house.sign(group, messages[start : start + 4])
    assert [house.ports[each].calls.count("commit") for each in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fresh: replace(fresh, identifier=1),
        lambda fresh: replace(fresh, commitments=fresh.commitments * 300),
        lambda fresh: replace(fresh, commitments=(replace(fresh.commitments[0], identifier=1), *fresh.commitments[1:])),
    ],
)
async def test_malformed_fresh_commitments_exclude_their_sender(house: House, spoil) -> None:
    group = await house.start()
    house.ports[3].spoil_reply = lambda reply: replace(reply, fresh=spoil(reply.fresh))
    messages = chain(2)
    assert verified(group, messages, await house.sign(group, messages))
    assert sorted(group.excluded) == [3]


async def test_one_wrong_share_among_many_costs_only_that_message_another_try(house: House) -> None:
    """The spare signer is behind by then; the head that it needs was signed in this very call."""
    group = await house.start()

    def spoil_fourth(reply: SigningReply) -> SigningReply:
        outcomes = list(reply.outcomes)
        outcomes[3] = bytes(32)
        return replace(reply, outcomes=tuple(outcomes))

    house.ports[2].spoil_reply = spoil_fourth
    messages = chain(6)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert sorted(group.excluded) == [2]


async def test_three_dishonest_signers_are_one_too_many(house: House) -> None:
    group = await house.start()
    for each in (1, 2, 5):
        house.ports[each].spoil_reply = spoil_shares
    with pytest.raises(QuorumUnavailable, match=r"signer 1.*signer 2.*signer 5"):
        await group.sign(unstated(chain(1)))
    assert sorted(group.excluded) == [1, 2, 5]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda reply: replace(reply, outcomes=reply.outcomes[:-1]),
        lambda reply: replace(reply, identifier=1),
        lambda reply: replace(reply, outcomes=("text",) * len(reply.outcomes)),
        lambda reply: replace(reply, outcomes=(b"short",) * len(reply.outcomes)),
        lambda reply: replace(reply, outcomes=(ShareRefused(reason="no", detail="no"),) * len(reply.outcomes)),
        lambda reply: replace(reply, outcomes=(behind("acme", 2**80),) * len(reply.outcomes)),
        lambda reply: replace(reply, outcomes=(behind("\ud800", 1),) * len(reply.outcomes)),
        lambda reply: replace(reply, outcomes=(behind(["acme"], 1),) * len(reply.outcomes)),
        lambda _: None,
    ],
)
async def test_a_malformed_reply_excludes_its_sender(
    house: House, spoil: Callable[[SigningReply], SigningReply]
) -> None:
    group = await house.start()
    house.ports[3].spoil_reply = spoil
    messages = chain(3)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert sorted(group.excluded) == [3]


def behind(account, seq) -> ShareRefused:
    wanted = HeadWanted(account=account, seq=seq, sha256=None)
    return ShareRefused(reason=Refusal.BEHIND, detail="behind", head_wanted=wanted)


@pytest.mark.parametrize("call", ["activate", "commit", "sign"])
async def test_a_signer_that_raises_whatever_it_likes_is_passed_over_and_named(house: House, caplog, call: str) -> None:
    await house.start()
    group = await house.start()

    async def fail(*_) -> None:
        raise OSError(28, "No space left on device")

    if call == "activate":
        async with dead(house, 1):
            await house.sign(group, chain(1))
            await group.members(lambda: 7)
    setattr(house.ports[1], call, fail)
    messages = chain(4)
    async with dead(house, 2):
        assert verified(group, messages, await house.sign(group, messages))
        async with dead(house, 3):
            with pytest.raises(QuorumUnavailable, match=r"signer 1: OSError: .*No space left"):
                await house.sign(group, messages)
    assert "signer 1 cannot sign: OSError: [Errno 28] No space left on device" in caplog.text
    one, *_ = await group.members(lambda: 7)
    assert (one.state, "No space left" in one.reason) == ("away", True)
    assert group.excluded == {}


async def test_a_signer_whose_status_fails_does_not_hide_the_others(house: House) -> None:
    group = await house.start()

    async def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    house.ports[3].status = fail  # type: ignore[method-assign]
    reports = await group.members(lambda: 7)
    assert [each.state for each in reports] == ["ready", "ready", "away", "ready", "ready"]
    assert reports[2].reason == "OperationalError: disk I/O error"


async def test_signers_that_answer_and_cannot_sign_are_not_ready(house: House) -> None:
    group = await house.start()
    messages = chain(2)

    def full(_: SigningReply) -> SigningReply:
        raise SigningError("its disk is full")

    for each in (1, 2, 3):
        house.ports[each].spoil_reply = full
    with pytest.raises(QuorumUnavailable, match="its disk is full"):
        await house.sign(group, messages)
    reports = await group.members(lambda: 7)
    assert [each.state for each in reports] == ["away", "away", "away", "ready", "ready"]
    assert reports[0].reason == "when it was asked last it could not sign: its disk is full"
    for each in (1, 2, 3):
        house.ports[each].spoil_reply = lambda reply: reply
    assert verified(group, messages, await house.sign(group, messages))
    assert [each.state for each in await group.members(lambda: 7)].count("ready") >= 3
    async with dead(house, 1, 4):
        assert verified(group, messages, await house.sign(group, messages))
    assert [each.state for each in await group.members(lambda: 7)][1:] == ["ready"] * 4, "who was dead is ready"


async def test_each_signers_answer_has_the_time_at_which_it_came(house: House) -> None:
    group = await house.start()
    now_ns, come_back, status = 10, asyncio.Event(), house.ports[4].status

    async def hang():
        await come_back.wait()
        return await status()

    house.ports[4].status = hang  # type: ignore[method-assign]
    asking = asyncio.create_task(group.members(lambda: now_ns))
    await asyncio.sleep(0.01)
    now_ns = 4_000_000_010
    come_back.set()
    assert [each.answered_unix_ns for each in await asking] == [10, 10, 10, 4_000_000_010, 10]


async def test_a_signer_that_refuses_what_others_sign_is_asked_last(house: House, caplog) -> None:
    class Wrong(ToyPolicy):
        def examine_stated(self, message, evidence, *, key_id, meters) -> ChainClaim:
            raise PolicyViolation("its clock is wrong")

    house.reopen(1, policy=Wrong())
    group = await house.start()
    for message in chain(10):
        assert verified(group, [message], await house.sign(group, [message]))
    assert house.ports[1].calls.count("sign") == 1
    said = "signer 1 refuses what others sign, and is asked last: its clock is wrong"
    assert [each.message for each in caplog.records].count(said) == 1


async def test_a_receipt_that_all_refuse_sets_no_signer_back(house: House) -> None:
    group = await house.start()
    await house.sign(group, chain(1, wrong=[1]))
    asked = [house.ports[each].calls.count("sign") for each in MEMBERS]
    messages = chain(3, account="other")
    await house.sign(group, messages)
    assert [house.ports[each].calls.count("sign") for each in MEMBERS] == [each + 1 for each in asked[:3]] + asked[3:]


async def test_a_signer_that_never_has_its_nonces_is_asked_last(house: House) -> None:
    group = await house.start()
    lost = ShareRefused(reason=Refusal.NONCE, detail="lost")
    house.ports[1].spoil_reply = lambda reply: replace(reply, outcomes=(lost,) * len(reply.outcomes))
    for message in chain(6):
        assert verified(group, [message], await house.sign(group, [message]))
    assert house.ports[1].calls.count("sign") == 2
    one, *_ = await group.members(lambda: 7)
    assert (one.state, one.reason) == ("away", "when it was asked last it could not sign: it does not keep its nonces")


@pytest.mark.parametrize("note", ['{"1": "x"', "[]", '{"9": "y"}', '{"1": 5}', '{"one": "x"}', ""])
async def test_without_knowing_who_is_excluded_the_group_starts_and_signs_nothing(
    house: House, caplog, note: str
) -> None:
    await house.start()
    house.record_path.with_name("excluded-signers.json").write_text(note)
    group = await house.start()
    assert "excluded-signers.json cannot be read" in caplog.text
    with pytest.raises(QuorumUnavailable, match=r"signer 1: excluded: .*cannot be read"):
        await group.sign(unstated(chain(1)))
    for each in MEMBERS:
        await group.readmit(each)
    assert verified(group, chain(1), await group.sign(unstated(chain(1))))
    assert (await house.start()).excluded == {}


@pytest.mark.parametrize("hung", [(1,), (2, 5)])
async def test_a_known_group_does_not_wait_for_signers_that_hang(house: House, hung: tuple[int, ...]) -> None:
    await house.start()
    go_on = asyncio.Event()
    for each in hung:
        activate = house.ports[each].activate

        async def hang(record: GroupRecord, activate=activate) -> None:
            await go_on.wait()
            await activate(record)

        house.ports[each].activate = hang  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        group = await house.start()
        messages = chain(2)
        assert verified(group, messages, await house.sign(group, messages))
    go_on.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert verified(group, messages, await house.sign(group, messages))
    assert "sign" in house.ports[hung[0]].calls, "it has its place in the order again"
    async with dead(house, *(set(MEMBERS) - {*hung, 3, 4})):
        async with asyncio.timeout(10):
            assert verified(group, messages, await house.sign(group, messages))
    assert [each.state for each in await group.members(lambda: 7)] == ["ready"] * 5


async def test_an_invalid_commitment_excludes_its_owner_and_nobody_else(house: House) -> None:
    group = await house.start()

    def spoil(batch: CommitmentBatch) -> CommitmentBatch:
        return replace(batch, commitments=tuple(replace(each, hiding=bytes(32)) for each in batch.commitments))

    house.ports[2].spoil_commitments = spoil
    messages = chain(3)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert sorted(group.excluded) == [2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda batch: batch.commitments[:1],
        lambda batch: batch.commitments * 2,
        lambda batch: tuple(replace(each, hiding=None) for each in batch.commitments),
        lambda batch: tuple(replace(each, binding=b"short") for each in batch.commitments),
        lambda batch: tuple("text" for each in batch.commitments),
        lambda batch: None,
    ],
)
async def test_a_malformed_batch_of_commitments_excludes_its_sender(house: House, spoil) -> None:
    group = await house.start()
    house.ports[2].spoil_commitments = lambda batch: replace(batch, commitments=spoil(batch))
    messages = chain(3)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert sorted(group.excluded) == [2]


async def test_a_receipt_that_breaks_a_rule_is_refused_and_blocks_only_its_account(house: House) -> None:
    group = await house.start()
    messages = [*chain(40, wrong=[2]), *chain(2, account="other")]
    signatures = await house.sign(group, messages)
    assert verified(group, messages[:1], signatures[:1])
    assert verified(group, messages[40:], signatures[40:])
    refused = signatures[1:40]
    assert all(isinstance(each, SigningRefused) for each in refused)
    assert re.search("signer 1: the arithmetic is wrong", str(refused[0]))


async def test_one_strict_signer_does_not_stop_the_others(house: House) -> None:
    group = await house.start()
    no = ShareRefused(reason=Refusal.POLICY, detail="no")
    house.ports[1].spoil_reply = lambda reply: replace(reply, outcomes=(no, *reply.outcomes[1:]))
    messages = chain(3)
    assert verified(group, messages, await group.sign(unstated(messages)))
    assert group.excluded == {}


async def test_a_fork_is_refused(house: House) -> None:
    group = await house.start()
    messages = chain(3)
    await house.sign(group, messages)
    fork = json.dumps({**json.loads(messages[1]), "note": "another"}).encode()
    (refused,) = await group.sign(unstated([fork]))
    assert isinstance(refused, SigningRefused)
    assert "another receipt has that place" in refused.reason


async def test_spare_signers_catch_up_from_the_book(house: House) -> None:
    group = await house.start()
    acme, other = chain(8), chain(4, account="other")
    await house.sign(group, [*acme[:6], *other[:2]])
    async with dead(house, 1, 2):
        messages = [*acme[6:], *other[2:]]
        assert verified(group, messages, await house.sign(group, messages))
    assert set(house.book.asked) == {("acme", 6), ("other", 2)}


async def test_without_the_head_a_receipt_waits(house: House) -> None:
    group = await house.start()
    messages = chain(3)
    await group.sign(unstated(messages[:2]))  # the ledger never kept these
    async with dead(house, 1, 2):
        signatures = await group.sign(unstated(messages[2:]))
        assert all(isinstance(each, SigningRefused) for each in signatures)
    assert verified(group, messages[2:], await group.sign(unstated(messages[2:])))


async def test_a_signer_that_lies_about_being_behind_is_passed_over(house: House) -> None:
    group = await house.start()
    messages = chain(2)
    await house.sign(group, messages)
    wanted = HeadWanted(account="acme", seq=1, sha256=None)
    behind = ShareRefused(reason=Refusal.BEHIND, detail="behind", head_wanted=wanted)
    waiting = ShareRefused(reason=Refusal.WAITING, detail="waiting", waits_for=77)
    for lie in (behind, waiting):
        house.ports[1].spoil_reply = lambda reply, lie=lie: replace(reply, outcomes=(lie,) * len(reply.outcomes))
        assert verified(group, messages, await group.sign(unstated(messages)))
    assert group.excluded == {}


async def test_signatures_made_before_the_quorum_was_lost_are_kept(house: House) -> None:
    house.max_batch = 2
    group = await house.start()
    messages = chain(4)
    answered = 0

    def die_later(reply: SigningReply) -> SigningReply:
        nonlocal answered
        answered += 1
        if answered > 3:
            raise SignerUnavailable("gone")
        return reply

    for each in MEMBERS:
        house.ports[each].spoil_reply = die_later
    signatures = await house.sign(group, messages)
    assert verified(group, messages[:2], signatures[:2])
    assert all(isinstance(each, SigningRefused) for each in signatures[2:])


async def test_concurrent_calls_do_not_mix(house: House) -> None:
    house.max_batch = 3
    group = await house.start()
    batches = [chain(4, account=f"account-{each}") for each in range(5)]
    results = await asyncio.gather(*(group.sign(unstated(batch)) for batch in batches))
    for batch, signatures in zip(batches, results, strict=True):
        assert verified(group, batch, signatures)


async def test_a_new_group_needs_all_signers(house: House) -> None:
    async with dead(house, 4):
        with pytest.raises(SignerUnavailable):
            await house.start()
    assert not house.record_path.exists()
    await house.start()


async def test_a_cheat_in_the_key_generation_is_named_and_the_next_one_works(house: House) -> None:
    house.ports[3].spoil_package = lambda package: replace(package, proof=bytes(64))
    with pytest.raises(FrostError) as caught:
        await house.start()
    assert caught.value.culprits == {3}
    house.ports[3].spoil_package = lambda package: package
    await house.start()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda signed: replace(signed, signature=bytes(64)),
        lambda signed: replace(signed, statement=replace(signed.statement, transcript_sha256=bytes(32))),
    ],
)
async def test_a_group_that_one_signer_did_not_sign_for_is_not_recorded(
    house: House, spoil: Callable[[SignedGroupStatement], SignedGroupStatement]
) -> None:
    house.ports[1].spoil_statement = spoil
    with pytest.raises(SigningError, match="did not sign the group's statement"):
        await house.start()
    assert not house.record_path.exists()


async def test_a_known_group_starts_with_signers_missing_and_takes_them_in_later(house: House) -> None:
    group = await house.start()
    async with dead(house, *MEMBERS):
        again = await house.start()
        assert again.public_key == group.public_key
        with pytest.raises(QuorumUnavailable):
            await again.sign(unstated(chain(1)))
    assert verified(again, chain(1), await again.sign(unstated(chain(1))))


async def test_a_crash_between_record_and_activation_is_made_good(house: House) -> None:
    class Crash(BaseException):
        pass

    async def crash(_: GroupRecord) -> None:
        raise Crash

    honest = [house.ports[each].activate for each in MEMBERS]
    for each in (2, 3, 4, 5):
        house.ports[each].activate = crash  # type: ignore[method-assign]
    with pytest.raises(Crash):
        await house.start()
    for each, activate in zip(MEMBERS, honest, strict=True):
        house.ports[each].activate = activate  # type: ignore[method-assign]
        house.reopen(each)
    group = await house.start()
    assert verified(group, chain(2), await group.sign(unstated(chain(2))))


async def test_a_lost_record_is_restored_from_the_signers(house: House) -> None:
    group = await house.start()
    before = house.record_path.read_bytes()
    house.record_path.unlink()
    async with dead(house, 1, 2, 3):
        again = await house.start()
    assert again.public_key == group.public_key
    assert house.record_path.read_bytes() == before


async def test_a_damaged_record_is_said_with_its_path(house: House) -> None:
    await house.start()
    house.record_path.write_text("{}")
    with pytest.raises(SigningError, match=re.escape(str(house.record_path))):
        await house.start()


async def test_a_wrong_share_secret_is_what_the_user_reads(house: House) -> None:
    await house.start()
    with pytest.raises(ShareUnusable, match="another share secret"):
        house.reopen(1, share_secret=bytes(32))


async def test_too_many_signers_of_another_group_stop_the_start(house: House, tmp_path: Path) -> None:
    await house.start()
    stranger = House(tmp_path / "strangers")
    await stranger.start()
    for each in (1, 2):
        house.ports[each]._signer = stranger.signers[each]
    group = await house.start()
    assert verified(group, chain(1), await group.sign(unstated(chain(1))))
    house.ports[3]._signer = stranger.signers[3]
    with pytest.raises(ShareUnusable, match="another group"):
        await house.start()
    house.record_path.unlink()
    with pytest.raises(SigningError, match="different groups"):
        await house.start()
    stranger.close()


async def test_the_ports_must_be_the_groups(house: House) -> None:
    group = await house.start()
    ports = {each: house.ports[each] for each in (1, 2, 3, 4)}
    with pytest.raises(SigningError, match="were started"):
        SignerGroup(
            record=group.record,
            ports=ports,
            heads=house.book,
            exclusions=Exclusions.beside(house.record_path, MEMBERS),
        )
    with pytest.raises(SigningError, match="1 to 1024"):
        SignerGroup(
            record=group.record,
            ports=house.ports,
            heads=house.book,
            exclusions=Exclusions.beside(house.record_path, MEMBERS),
            max_batch=0,
        )
