"""The signing group on a real local Ray: five actor processes, killed and started again."""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
from nacl.signing import VerifyKey
from ray.exceptions import RayTaskError

from metering.statements import MeterKey, SignedStatement, StatementChain
from receipts.canonical import canonical_bytes
from receipts.frost.ciphersuite import Scalar, add, public_scalar
from receipts.frost.signing_package import SigningPackage
from receipts.meter_enrolling import enrol_meter
from receipts.meter_enrolment import MeterEnrolment
from receipts.share_secret import ShareSecretSource, create_development_secret
from receipts.signer import Signer
from receipts.signer_actors import RaySigner, SignerActor, SignerSettings, signers_of, start_signers, stop_signers
from receipts.signer_group import SignerGroup
from receipts.signer_messages import (
    Refusal,
    ShareRefused,
    SignedMessage,
    SignerStatus,
    SigningRefused,
    SigningReply,
    SigningRequest,
)
from receipts.signer_policy import ReceiptRules
from receipts.signing_errors import QuorumUnavailable, ShareUnusable, SignerUnavailable, SigningError

TEMPLATE = Path(__file__).parents[1] / "unit" / "receipts" / "data" / "unsigned-receipt.json"
METER = MeterKey(bytes(range(32)))
ENROLMENT = MeterEnrolment(public_key=METER.public_key, node="host-1", maximum_power_milliwatts=100_000)


def chain(length: int, key_id: str) -> list[tuple[bytes, SignedStatement]]:
    """Signed bytes of one account's first receipts, each with its meter's statement."""
    document = json.loads(TEMPLATE.read_text())
    document["verification"]["key_id"] = key_id
    statements = StatementChain(METER, None)
    messages: list[tuple[bytes, SignedStatement]] = []
    for seq in range(1, length + 1):
        previous = hashlib.sha256(messages[-1][0]).hexdigest() if messages else None
        document["chain"] = {"seq": seq, "prev_sha256": previous}
        statement = statements.state(
            request_id=document["receipt_id"].removeprefix("rcpt_"),
            outcome="finished",
            microjoules=round(document["energy"]["total_joules"] * 10**6),
            counted_microjoules=10**9,
            open_ns=0,
        )
        messages.append((canonical_bytes(document), statement))
    return messages


class Book:
    """A ledger's signed receipts."""

    def __init__(self) -> None:
        self.signed: dict[int, SignedMessage] = {}

    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        assert account == "acme"
        return self.signed.get(seq)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().get_node_id()
    ray.shutdown()


class House:
    """Folders that outlive the actors, whose names begin with ``name``."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self.folder = folder
        self.name = f"signer-of-{folder.name}"
        self.node_id = node_id
        self.started: list[dict[int, RaySigner]] = []
        self.book = Book()
        self.secret = folder / "share-secret"
        create_development_secret(self.secret, os.urandom)

    def start_actors(
        self,
        secret: Path | None = None,
        life: str = "",
        signer_types: Mapping[int, Callable[..., Signer]] | None = None,
    ) -> dict[int, RaySigner]:
        settings = [
            SignerSettings(
                identifier=each,
                folder=self.folder / f"signer-{each}",
                share_secret=ShareSecretSource(file=secret or self.secret),
                make_policy=partial(ReceiptRules, wall_clock_ns=time.time_ns),
                signer_type=(signer_types or {}).get(each, Signer),
            )
            for each in range(1, 6)
        ]
        self.started.append(start_signers(settings, [self.node_id], name_prefix=self.name + life))
        return self.started[-1]

    async def start_group(self, ports: dict[int, RaySigner]) -> SignerGroup:
        return await SignerGroup.start(
            ports, record_path=self.folder / "group.json", heads=self.book, random_bytes=os.urandom
        )

    async def sign(self, group: SignerGroup, messages: Sequence[tuple[bytes, SignedStatement]]) -> None:
        """Sign, verify with another library, and keep as the ledger does."""
        for (message, _), signature in zip(messages, await group.sign(messages), strict=True):
            assert not isinstance(signature, SigningRefused), signature
            VerifyKey(group.public_key).verify(message, signature)
            self.book.signed[json.loads(message)["chain"]["seq"]] = SignedMessage(message=message, signature=signature)


@pytest.fixture
def house(local_ray: str, tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, local_ray)
    yield made
    for actors in made.started:
        stop_signers(actors)


async def status_once_back(actor: RaySigner) -> SignerStatus:
    """Calls fail while Ray brings the process up again."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            return await actor.status()
        except SignerUnavailable:
            await asyncio.sleep(0.1)
    return await actor.status()


async def test_the_life_of_a_signing_group(house: House) -> None:
    actors = house.start_actors()
    group = await house.start_group(actors)
    messages = chain(58, group.key_id)
    (refused,) = await group.sign(messages[:1])
    assert isinstance(refused, SigningRefused)
    assert "not enrolled" in refused.reason
    await enrol_meter(actors, ENROLMENT)
    await house.sign(group, messages[:50])

    # Ray starts a killed actor again, without its nonces; nobody notices.
    ray.kill(actors[1].handle, no_restart=False)
    await house.sign(group, messages[50:52])

    for each in (1, 2):
        ray.kill(actors[each].handle, no_restart=True)
    await house.sign(group, messages[52:54])

    ray.kill(actors[3].handle, no_restart=True)
    with pytest.raises(QuorumUnavailable, match="2 of 3"):
        await group.sign(messages[54:56])
    stop_signers(actors)

    successors = house.start_actors(life=" again")
    again = await house.start_group(successors)
    assert again.public_key == group.public_key
    await house.sign(again, messages[54:58])
    stop_signers(successors)

    wrong = house.folder / "wrong-secret"
    wrong.write_text(bytes(32).hex())
    with pytest.raises(ShareUnusable, match="another share secret"):
        await house.start_group(house.start_actors(secret=wrong, life=" wrong"))


def test_a_signer_that_cannot_be_opened_is_tried_again_at_the_next_call(tmp_path: Path) -> None:
    """As on a disk that is full for a while; the actor's process need not be started again."""
    create_development_secret(tmp_path / "share-secret", os.urandom)
    settings = SignerSettings(
        identifier=1,
        folder=tmp_path / "signer-1",
        share_secret=ShareSecretSource(file=tmp_path / "share-secret"),
        make_policy=partial(ReceiptRules, wall_clock_ns=time.time_ns),
    )
    in_the_way = tmp_path / "signer-1" / "identity.sealed.new"
    in_the_way.mkdir(parents=True)
    actor = SignerActor(settings)
    for _ in range(3):
        with pytest.raises(OSError, match="identity"):
            actor.status()
    in_the_way.rmdir()
    assert actor.status().identity.identifier == 1
    other = SignerActor(settings)
    with pytest.raises(SigningError, match="another process uses") as first:
        other.status()
    with pytest.raises(SigningError, match="another process uses") as second:
        other.status()
    assert first.value is not second.value, "one error raised again would grow its traceback for ever"
    actor._signer.close()
    assert other.status().identity.identifier == 1
    other._signer.close()


class Failing:
    """A handle whose method ``status`` fails at the actor with this."""

    def __init__(self, cause: Exception) -> None:
        self.status = self
        self._cause = cause

    async def remote(self) -> None:
        raise RayTaskError("status", "its traceback", self._cause)


async def test_whatever_a_signer_raises_is_that_signers_trouble() -> None:
    full = RaySigner(Failing(OSError(28, "No space left on device")), identifier=4)  # type: ignore[arg-type]
    with pytest.raises(SigningError, match=r"^signer 4 failed: OSError: \[Errno 28\] No space left on device$"):
        await full.status()
    lengthy = RaySigner(Failing(ValueError("x" * 10**6)), identifier=4)  # type: ignore[arg-type]
    with pytest.raises(SigningError) as raised:
        await lengthy.status()
    assert len(str(raised.value)) < 400
    refusing = RaySigner(Failing(ShareUnusable("its own reason")), identifier=4)  # type: ignore[arg-type]
    with pytest.raises(ShareUnusable, match=r"^its own reason$"):
        await refusing.status()


async def test_a_restarted_actor_comes_back_with_its_share(house: House) -> None:
    actors = house.start_actors()
    group = await house.start_group(actors)
    before = await actors[2].status()
    ray.kill(actors[2].handle, no_restart=False)
    after = await status_once_back(actors[2])
    assert replace(after, clock_unix_ns=before.clock_unix_ns) == before
    assert after.record == group.record


async def test_a_group_found_by_name_signs_though_two_are_gone_for_good(house: House) -> None:
    actors = house.start_actors()
    group = await house.start_group(actors)
    messages = chain(2, group.key_id)
    await enrol_meter(actors, ENROLMENT)
    namespace = ray.get_runtime_context().namespace
    for each in (1, 4):
        ray.kill(actors[each].handle, no_restart=True)
    found = signers_of(list(actors), namespace=namespace, name_prefix=house.name)
    with pytest.raises(SignerUnavailable):
        await found[1].status()
    await house.sign(await house.start_group(found), messages)


def lying_signer() -> type[Signer]:
    """A class of its own for each call, so that its code travels to the actor: that cannot import this file."""

    class LyingSigner(Signer):
        def sign(self, request: SigningRequest) -> SigningReply:
            reply = super().sign(request)
            wrong = (
                add(Scalar(each), public_scalar(1)) if isinstance(each, bytes) else each for each in reply.outcomes
            )
            return replace(reply, outcomes=tuple(wrong))

    return LyingSigner


async def test_a_signer_that_returns_wrong_shares_is_named_and_excluded_until_it_is_readmitted(
    house: House, caplog
) -> None:
    actors = house.start_actors(signer_types={1: lying_signer(), 3: lying_signer()})
    group = await house.start_group(actors)
    messages = chain(30, group.key_id)
    await enrol_meter(actors, ENROLMENT)
    await house.sign(group, messages[:10])
    assert group.excluded == dict.fromkeys((1, 3), "wrong signature shares from [1, 3]")
    assert "signer 1 is excluded" in caplog.text
    reports = {each.identifier: each for each in await group.members(time.time_ns)}
    assert [reports[each].state for each in range(1, 6)] == ["excluded", "ready", "excluded", "ready", "ready"]
    assert reports[2].host == reports[1].host is not None
    assert reports[2].status.vouched == 10
    stop_signers(actors)

    # Repaired, and the coordinator restarted: a person has to say so.
    repaired = house.start_actors(life=" repaired")
    again = await house.start_group(repaired)
    await house.sign(again, messages[10:20])
    assert sorted(again.excluded) == [1, 3]
    for each in (1, 3):
        await again.readmit(each)
    ray.kill(repaired[4].handle, no_restart=True)
    ray.kill(repaired[5].handle, no_restart=True)
    await house.sign(again, messages[20:])
    assert [each.state for each in await again.members(time.time_ns)] == ["ready", "ready", "ready", "away", "away"]


def changed(message: bytes, **sections: Mapping[str, object]) -> bytes:
    document = json.loads(message)
    for section, members in sections.items():
        document[section] = {**document[section], **members}
    return canonical_bytes(document)


def with_energy(message: bytes, joules: float) -> bytes:
    """A receipt whose figures all follow from another energy than the meter's."""
    document = json.loads(message)
    usd = round(joules * document["price"]["usd_per_kwh"] / 3.6e6 * 1e12)
    facility = round(joules * document["operator"]["dc_pue"], 6)
    grams = round(facility * document["carbon"]["grid_intensity_gco2_per_kwh"] / 3.6e6, 12)
    return changed(
        message,
        energy={"total_joules": joules, "active_joules": joules, "floor_joules": 0.0},
        price={"usd_picos": usd},
        carbon={"facility_joules": facility, "gco2eq_total": grams},
    )


def greedy_statement(message: bytes, joules: float) -> SignedStatement:
    """An enrolled meter's own, that bills more than all it has counted."""
    return StatementChain(METER, None).state(
        request_id=json.loads(message)["receipt_id"].removeprefix("rcpt_"),
        outcome="finished",
        microjoules=round(joules * 10**6),
        counted_microjoules=0,
        open_ns=0,
    )


async def test_each_signer_refuses_a_wrong_receipt_whoever_asks(house: House) -> None:
    """Asked without the coordinator, as whoever can reach the actors may."""
    actors = house.start_actors()
    group = await house.start_group(actors)
    (first, first_said), (second, second_said) = chain(2, group.key_id)
    await enrol_meter(actors, ENROLMENT)
    await house.sign(group, [(first, first_said)])
    year_ns = 365 * 86_400 * 10**9
    now = {"start_unix_ns": time.time_ns() + year_ns, "end_unix_ns": time.time_ns() + year_ns}
    early = changed(
        second,
        execution={**now, "duration_ms": 0},
        placement={"accepted_unix_ns": now["start_unix_ns"], "waited_ms": 0},
    )
    wrong: list[tuple[bytes, SignedStatement | None, Refusal, str]] = [
        (changed(second, chain={"prev_sha256": "ab" * 32}), second_said, Refusal.CHAIN, "prev_sha256 is not that"),
        (changed(second, chain={"seq": 3}), second_said, Refusal.BEHIND, "asked for receipt 3"),
        (changed(first, workload={"kind": "other"}), first_said, Refusal.CHAIN, "another receipt has that place"),
        (changed(second, price={"usd_picos": 1}), second_said, Refusal.POLICY, "price.usd_picos is 1"),
        (changed(second, carbon={"gco2eq_total": 0.5}), second_said, Refusal.POLICY, "carbon.gco2eq_total is 0.5"),
        (changed(second, energy={"active_joules": 0.3}), second_said, Refusal.POLICY, "energy.total_joules"),
        (changed(second, verification={"key_id": "ab" * 8}), second_said, Refusal.POLICY, "it names the key"),
        (early, second_said, Refusal.POLICY, "future of this signer's"),
        (with_energy(second, 7.2), second_said, Refusal.POLICY, "its energy is 7200000 microjoules, its meter has"),
        (with_energy(second, 720), greedy_statement(second, 720), Refusal.POLICY, "more than it has counted"),
        (second, None, Refusal.POLICY, "without a statement"),
        (second, first_said, Refusal.CHAIN, "another receipt rests on statement 1"),
        (second + b" ", second_said, Refusal.POLICY, "not in canonical form"),
    ]
    for number in (1, 2, 3):
        for message, said, reason, says in wrong:
            made = [(await actors[each].commit(1)).commitments[0] for each in (1, 2, 3)]
            package = SigningPackage(message=message, commitments=tuple(made))
            (outcome,) = (await actors[number].sign(SigningRequest(packages=(package,), evidence=(said,)))).outcomes
            assert isinstance(outcome, ShareRefused), says
            assert (outcome.reason, says in outcome.detail) == (reason, True), outcome.detail
    await house.sign(group, [(second, second_said)])
