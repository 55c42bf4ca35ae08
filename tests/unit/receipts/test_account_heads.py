"""Account heads: signed by the group only if they end where the account's signed chain ends, now."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metering.statements import MeterKey, SignedStatement, StatementChain
from receipts.account_heads import AccountHeads
from receipts.canonical import canonical_bytes
from receipts.document import AccountHead, document_from, head_from_signed_bytes, signed_bytes, with_signature
from receipts.errors import ReadersBusy
from receipts.meter_enrolling import enrol_meter
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer import Signer
from receipts.signer_group import SignerGroup
from receipts.signer_messages import HeadEvidence, Refusal, ShareRefused, SignedMessage, SigningRefused, SigningRequest
from receipts.signer_policy import ReceiptRules
from receipts.signer_ports import LocalSigner
from receipts.signing_errors import HeadRefused, QuorumUnavailable, SignerUnavailable
from receipts.stored_receipt import StoredReceipt
from receipts.verify import verify_paths

TEMPLATE = Path(__file__).with_name("data") / "unsigned-receipt.json"
METER = MeterKey(bytes(range(32)))
ENROLMENT = MeterEnrolment(public_key=METER.public_key, node="host-1", maximum_power_milliwatts=100_000)
NOW_NS = 1_782_219_900_000_000_000
Message = tuple[bytes, SignedStatement]


class Meter:
    """States what receipts claim, and makes the receipts."""

    def __init__(self, key_id: str) -> None:
        self._document = json.loads(TEMPLATE.read_text())
        self._document["verification"]["key_id"] = key_id
        self._statements = StatementChain(METER, None)
        self._made = 0

    def chain(self, length: int, account: str = "acme") -> list[Message]:
        made: list[Message] = []
        for seq in range(1, length + 1):
            self._made += 1
            previous = hashlib.sha256(made[-1][0]).hexdigest() if made else None
            self._document["receipt_id"] = f"rcpt_{self._made:032x}"
            self._document["workload"]["account"] = account
            self._document["chain"] = {"seq": seq, "prev_sha256": previous}
            statement = self._statements.state(
                request_id=f"{self._made:032x}",
                outcome="finished",
                microjoules=round(self._document["energy"]["total_joules"] * 10**6),
                counted_microjoules=10**9,
                open_ns=0,
            )
            made.append((canonical_bytes(self._document), statement))
        return made


class Port(LocalSigner):
    def __init__(self, signer: Signer) -> None:
        super().__init__(signer)
        self.is_dead = False

    async def sign(self, request: SigningRequest):
        if self.is_dead:
            raise SignerUnavailable("dead")
        return await super().sign(request)


class NoBook:
    async def signed_receipt(self, account: str, seq: int) -> None:
        return None


@dataclass
class House:
    group: SignerGroup
    signers: dict[int, Signer]
    ports: dict[int, Port]
    meter: Meter

    async def signed(self, messages: list[Message]) -> list[SignedMessage]:
        signatures = await self.group.sign(messages)
        assert all(isinstance(each, bytes) for each in signatures), signatures
        return [
            SignedMessage(message=message, signature=signature)
            for (message, _), signature in zip(messages, signatures, strict=True)
        ]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    signers = {
        each: Signer(
            identifier=each,
            folder=tmp_path / f"signer-{each}",
            share_secret=bytes(range(32)),
            policy=ReceiptRules(wall_clock_ns=lambda: NOW_NS),
            random_bytes=os.urandom,
        )
        for each in range(1, 6)
    }
    ports = {each: Port(signer) for each, signer in signers.items()}
    group = await SignerGroup.start(ports, record_path=tmp_path / "group.json", heads=NoBook(), random_bytes=os.urandom)
    await enrol_meter(ports, ENROLMENT)
    yield House(group=group, signers=signers, ports=ports, meter=Meter(group.key_id))
    for signer in signers.values():
        signer.close()


def digest(signed: SignedMessage) -> str:
    return hashlib.sha256(signed.message).hexdigest()


def head_over(house: House, first: SignedMessage, last: SignedMessage, **changes: Any) -> AccountHead:
    ends = [json.loads(each.message) for each in (first, last)]
    members = {
        "typ": "joule-mesh.account-head/v1",
        "account": ends[1]["workload"]["account"],
        "as_of_unix_ns": NOW_NS,
        "first_seq": ends[0]["chain"]["seq"],
        "last_seq": ends[1]["chain"]["seq"],
        "first_sha256": digest(first),
        "last_sha256": digest(last),
        "key_id": house.group.key_id,
        "signature": None,
        **changes,
    }
    return AccountHead.model_validate(members)


def stored(signed: SignedMessage) -> StoredReceipt:
    document = json.loads(signed.message)
    return StoredReceipt(
        receipt_id=document["receipt_id"],
        account=document["workload"]["account"],
        seq=document["chain"]["seq"],
        signed_bytes=signed.message,
        signature=signed.signature,
        statement=None,
    )


class Readers:
    """Of an account's receipts; ``first_seq`` is the first since whenever. ``log`` has what was read, and how."""

    def __init__(self, receipts: list[StoredReceipt], first_seq: int | None = 1) -> None:
        self.receipts = receipts
        self.first_seq = first_seq
        self.log: list[str] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def call(self, account: str, work: Callable[["Readers"], Any]) -> Any:
        self.log.append(f"in line as {account}")
        await self.go_on.wait()
        return work(self)

    async def call_promptly(self, work: Callable[["Readers"], Any]) -> Any:
        self.log.append("promptly")
        return work(self)

    def first_seq_since(self, account: str, since_unix_ns: int) -> int | None:
        return self.first_seq

    def bounds(self, account: str, first_seq: int) -> tuple[StoredReceipt, StoredReceipt] | None:
        return (self.receipts[first_seq - 1], self.receipts[-1]) if self.receipts else None

    def heads(self, group: SignerGroup) -> AccountHeads:
        @asynccontextmanager
        async def at_rest() -> AsyncIterator[None]:
            self.log.append("at rest")
            yield

        return AccountHeads(self, group, at_rest=at_rest, wall_clock_ns=lambda: NOW_NS)


async def test_only_what_is_short_is_read_while_signing_rests(house: House) -> None:
    readers = Readers([stored(each) for each in await house.signed(house.meter.chain(3))], first_seq=2)
    heads = readers.heads(house.group)
    assert json.loads(await heads.signed("acme", 5))["first_seq"] == 2
    assert readers.log == ["in line as acme", "at rest", "promptly"]
    assert json.loads(await heads.signed("acme", None))["first_seq"] == 1
    readers.receipts = []
    assert await heads.signed("acme", None) is None
    readers.first_seq = None
    assert await heads.signed("acme", 5) is None
    assert readers.log[-1] == "in line as acme", "nothing to sign is no reason to rest"


async def test_one_head_of_an_account_at_a_time(house: House) -> None:
    readers = Readers([stored(each) for each in await house.signed(house.meter.chain(2))])
    heads = readers.heads(house.group)
    readers.go_on.clear()
    first = asyncio.create_task(heads.signed("acme", 5))
    await asyncio.sleep(0)
    with pytest.raises(ReadersBusy, match="being signed already"):
        await heads.signed("acme", 5)
    other = asyncio.create_task(heads.signed("other", 5))
    await asyncio.sleep(0)
    assert readers.log == ["in line as acme", "in line as other"]
    other.cancel()
    readers.go_on.set()
    assert await first
    assert await heads.signed("acme", 5), "there is room again"


async def test_only_a_few_heads_are_under_way_at_once(house: House) -> None:
    """Receipts wait while they are signed."""
    receipts = await house.signed(house.meter.chain(1))
    readers = Readers([stored(each) for each in receipts])
    heads = readers.heads(house.group)
    readers.go_on.clear()
    waiting = [asyncio.create_task(heads.signed(f"account-{each}", 5)) for each in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(ReadersBusy, match="too many account heads"):
        await asyncio.wait_for(heads.signed("acme", 5), 5)
    readers.go_on.set()
    assert all(await asyncio.gather(*waiting))
    assert await heads.signed("acme", 5), "there is room again"


async def test_a_head_without_a_quorum_is_no_refusal(house: House) -> None:
    receipts = await house.signed(house.meter.chain(1))
    for each in (1, 2, 3):
        house.ports[each].is_dead = True
    with pytest.raises(QuorumUnavailable, match="2 of 3 needed signers answer"):
        await Readers([stored(receipts[0])]).heads(house.group).signed("acme", None)


async def test_a_head_is_signed_and_holds_the_receipts_together(house: House, tmp_path: Path) -> None:
    receipts = await house.signed(house.meter.chain(4))
    head = await Readers([stored(each) for each in receipts], first_seq=2).heads(house.group).signed("acme", 5)
    document = document_from(json.loads(head))
    assert isinstance(document, AccountHead)
    assert (document.first_seq, document.last_seq, document.as_of_unix_ns) == (2, 4, NOW_NS)
    lines = [with_signature(each.message, each.signature) for each in receipts[1:]]
    for given, is_whole in ((lines, True), (lines[:-1], False), (lines[1:], False)):
        file = tmp_path / "receipts.ndjson"
        file.write_bytes(b"".join(line + b"\n" for line in [*given, head]))
        report = verify_paths([file], house.group.public_key)
        assert (not list(report)) == is_whole


async def test_one_receipt_is_a_chain_too(house: House) -> None:
    (only,) = await house.signed(house.meter.chain(1))
    assert await house.group.sign_head(head_over(house, only, only), only, only)


Change = Callable[[House, list[SignedMessage], list[SignedMessage]], tuple[AccountHead, SignedMessage, SignedMessage]]
REFUSED: dict[str, tuple[Change, str]] = {
    "it leaves out the newest receipt": (
        lambda house, acme, other: (head_over(house, acme[0], acme[2]), acme[0], acme[2]),
        "the account has at least 4",
    ),
    "another receipt's hash at its end": (
        lambda house, acme, other: (head_over(house, acme[0], acme[3], last_sha256=digest(acme[1])), acme[0], acme[3]),
        "not the receipt 4 that the head names",
    ),
    "another receipt's hash at its beginning": (
        lambda house, acme, other: (head_over(house, acme[0], acme[3], first_sha256=digest(acme[1])), acme[0], acme[3]),
        "not the receipt 1 that the head names",
    ),
    "another account": (
        lambda house, acme, other: (head_over(house, acme[0], acme[3], account="other"), acme[0], acme[3]),
        "receipt 1 of account acme is not",
    ),
    "it ends with another account's receipt": (
        lambda house, acme, other: (head_over(house, other[0], other[1], account="acme"), other[0], other[1]),
        "of account other is not",
    ),
    "a place further on": (
        lambda house, acme, other: (head_over(house, acme[0], acme[3], last_seq=5), acme[0], acme[3]),
        "is not the receipt 5",
    ),
    "yesterday's time": (
        lambda house, acme, other: (
            head_over(house, acme[0], acme[3], as_of_unix_ns=NOW_NS - 86_400 * 10**9),
            acme[0],
            acme[3],
        ),
        r"its time is -86400.0 s off this signer's clock",
    ),
    "tomorrow's time": (
        lambda house, acme, other: (
            head_over(house, acme[0], acme[3], as_of_unix_ns=NOW_NS + 86_400 * 10**9),
            acme[0],
            acme[3],
        ),
        r"its time is \+86400.0 s off",
    ),
    "a time after its signature": (
        lambda house, acme, other: (
            head_over(house, acme[0], acme[3], as_of_unix_ns=NOW_NS + 21 * 10**8),
            acme[0],
            acme[3],
        ),
        r"its time is \+2.1 s off this signer's clock",
    ),
    "another key": (
        lambda house, acme, other: (head_over(house, acme[0], acme[3], key_id="ab" * 8), acme[0], acme[3]),
        "it names the key abababab",
    ),
    "an end that is not signed": (
        lambda house, acme, other: (
            head_over(house, acme[0], acme[3]),
            acme[0],
            SignedMessage(message=acme[3].message, signature=acme[2].signature),
        ),
        "the group has not signed what is given as receipt 4",
    ),
    "ends the wrong way round": (
        lambda house, acme, other: (head_over(house, acme[0], acme[3]), acme[3], acme[0]),
        "is not the receipt 1",
    ),
}


@pytest.mark.parametrize("off_ns", [-60 * 10**9, 2 * 10**9])
async def test_clocks_may_differ_a_little(house: House, off_ns: int) -> None:
    """A head says what was signed before it, so it may be late by more than early."""
    acme = await house.signed(house.meter.chain(2))
    assert await house.group.sign_head(
        head_over(house, acme[0], acme[1], as_of_unix_ns=NOW_NS + off_ns), acme[0], acme[1]
    )


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
async def test_no_quorum_signs_a_head_with(house: House, change: Change, says: str) -> None:
    acme = await house.signed(house.meter.chain(4))
    other = await house.signed(house.meter.chain(2, "other"))
    head, first, last = change(house, acme, other)
    with pytest.raises(HeadRefused, match=says):
        await house.group.sign_head(head, first, last)
    assert await house.group.sign_head(head_over(house, acme[0], acme[3]), acme[0], acme[3])


async def test_the_kind_of_evidence_does_not_choose_the_rules(house: House) -> None:
    """A receipt is no head because it comes with receipts, and a head is no receipt because it comes with a meter."""
    messages = house.meter.chain(3)
    first, second = await house.signed(messages[:2])
    head = signed_bytes(head_over(house, first, second))
    as_head = (messages[2][0], HeadEvidence(first=first, last=second))
    for message, evidence in (as_head, (head, messages[2][1]), (head, None)):
        (refused,) = await house.group.sign([(message, evidence)])
        assert isinstance(refused, SigningRefused)
        assert "not an account head" in refused.reason or "not a receipt" in refused.reason
    assert head_from_signed_bytes(head).signature is None


async def test_spare_signers_sign_heads_on_proof(house: House) -> None:
    receipts = await house.signed(house.meter.chain(3))
    for each in (1, 2):
        house.ports[each].is_dead = True
    assert await house.group.sign_head(head_over(house, receipts[0], receipts[2]), receipts[0], receipts[2])
    with pytest.raises(HeadRefused, match="at least 3"):
        await house.group.sign_head(head_over(house, receipts[0], receipts[1]), receipts[0], receipts[1])


async def test_who_has_vouched_for_a_later_receipt_signs_no_head_before_it(house: House) -> None:
    """It may be signed by now: this signer cannot know. The others can sign while they are enough."""
    messages = house.meter.chain(3)
    receipts = await house.signed(messages[:2])

    async def vouch(*signers: int) -> None:
        for each in signers:
            package = SigningRequest(packages=(await package_of(house, messages[2][0]),), evidence=(messages[2][1],))
            assert isinstance(house.signers[each].sign(package).outcomes[0], (bytes, ShareRefused))

    head = head_over(house, receipts[0], receipts[1])
    await vouch(1, 2)
    assert await house.group.sign_head(head, receipts[0], receipts[1])
    await vouch(3)
    with pytest.raises(HeadRefused, match=r"signer 1.*signer 2.*signer 3"):
        await house.group.sign_head(head, receipts[0], receipts[1])
    last = await house.signed(messages[2:])
    assert await house.group.sign_head(head_over(house, receipts[0], last[0]), receipts[0], last[0])


async def package_of(house: House, message: bytes):
    from receipts.frost.signing_package import SigningPackage

    commitments = tuple(house.signers[each].commit(1).commitments[0] for each in (1, 2, 3))
    return SigningPackage(message=message, commitments=commitments)


async def test_a_head_moves_a_mark_up_and_never_down(house: House) -> None:
    receipts = await house.signed(house.meter.chain(3))
    head = head_over(house, receipts[0], receipts[1])
    evidence = HeadEvidence(first=receipts[0], last=receipts[1])
    request = SigningRequest(packages=(await package_of(house, signed_bytes(head)),), evidence=(evidence,))
    (refused,) = house.signers[1].sign(request).outcomes
    assert isinstance(refused, ShareRefused)
    assert refused.reason is Refusal.CHAIN
    assert house.signers[1]._marks.mark("acme").seq == 3  # type: ignore[union-attr]
