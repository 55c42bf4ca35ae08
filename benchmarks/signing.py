"""How fast receipts are signed: each step of FROST by itself, then everything, through the actors of a running group.

    .venv/bin/python -m benchmarks signing [RECEIPTS]

The allowance is what RFC 9591's primitives take for one signature (three signers' commitments, three shares, one
aggregate that is verified), each called by itself, in seconds of a processor, while as many processes as the machine
has cores do nothing else: cores over seconds. "Through the actors" is the rate at which a waiting backlog gets signed:
five signer actors with their rules and durable marks, and the ledger actor, which reads receipts from its database and
stores signatures in it. They sign in batches (`receipts.frost.batch`), which takes less than the primitives one by one;
the share of that lower figure is printed too: what is left for cryptography once rules, disks, and messages between
processes have had theirs.
"""

import asyncio
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nacl
import psutil

from benchmarks.settlements import METER, settlements
from metering.settlement import Settlement
from metering.statements import SignedStatement, StatementChain
from receipts.canonical import canonical_bytes
from receipts.frost import keygen, round_one, round_two
from receipts.frost.aggregate import aggregate
from receipts.frost.batch import aggregate_batch, sign_batch
from receipts.frost.ciphersuite import scale_base
from receipts.frost.errors import FrostError
from receipts.frost.signing_package import SigningPackage
from receipts.ledger_writer import MAX_COMMIT
from receipts.meter_enrolment import MeterEnrolment
from receipts.share_secret import ShareSecretSource, create_development_secret
from receipts.signer_policy import ReceiptRules
from receipts.stored_receipt import StoredReceipt

if TYPE_CHECKING:
    from ray.actor import ActorHandle

QUORUM = (1, 2, 3)
THRESHOLD = 3
SIGNERS = 5
MESSAGES = 500
RECEIPTS = 6000
LATENCY_S = 15.0
FOLLOWED_ONE_IN = 10
ACCOUNTS = [f"account-{number}" for number in range(8)]
POLL_S = 0.1
ARRIVALS = 0.3
NAMESPACE = "signing-benchmark"

RECEIPT = Path(__file__).parents[1] / "tests" / "unit" / "receipts" / "data" / "unsigned-receipt.json"
ENROLMENT = MeterEnrolment(public_key=METER.public_key, node="host-1", maximum_power_milliwatts=100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitives:
    """Microseconds of one core; the last two in batches."""

    commit: float
    sign: float
    aggregate: float
    sign_batched: float
    aggregate_batched: float

    @property
    def signature(self) -> float:
        return len(QUORUM) * (self.commit + self.sign) + self.aggregate

    @property
    def signature_batched(self) -> float:
        return len(QUORUM) * (self.commit + self.sign_batched) + self.aggregate_batched


def chain(length: int, key_id: str) -> list[tuple[bytes, SignedStatement]]:
    """Signed bytes of one account's first receipts, each with its meter's statement."""
    document = json.loads(RECEIPT.read_text())
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


def timed(count: int, work: Callable[[], object]) -> float:
    """Microseconds of the processor for each of ``count``; what else runs on the machine takes none of them."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / count * 1e6


class Quorum:
    """Three signers of a dealt group, and the steps of signing some messages one after the other."""

    def __init__(self, messages: list[bytes]) -> None:
        polynomial = keygen.SecretPolynomial.generate(THRESHOLD, os.urandom)
        self._messages = messages
        self._public_key = polynomial.commit()[0]
        self._key_shares = {
            each: keygen.KeyShare(
                identifier=each, threshold=THRESHOLD, secret=polynomial.share_for(each), public_key=self._public_key
            )
            for each in QUORUM
        }
        self._verifying_shares = {each: scale_base(share.secret) for each, share in self._key_shares.items()}
        self._nonces: dict[int, list[round_one.SigningNonces]] = {}
        self._packages: list[SigningPackage] = []
        self._shares: dict[int, Sequence[bytes]] = {}

    def commit(self) -> None:
        for each, share in self._key_shares.items():
            self._nonces[each] = [round_one.commit(each, share.secret, os.urandom) for _ in self._messages]

    def pack(self) -> None:
        made = zip(*(self._nonces[each] for each in QUORUM), strict=True)
        self._packages = [
            SigningPackage(message=message, commitments=tuple(each.commitment for each in of_all))
            for message, of_all in zip(self._messages, made, strict=True)
        ]

    def sign(self) -> None:
        for each, share in self._key_shares.items():
            pairs = zip(self._packages, self._nonces[each], strict=True)
            self._shares[each] = [round_two.sign(package, taken, share) for package, taken in pairs]

    def sign_batched(self) -> None:
        for each, share in self._key_shares.items():
            made = sign_batch(self._packages, self._nonces[each], share)
            self._shares[each] = [one for one in made if not isinstance(one, FrostError)]

    def aggregate(self) -> None:
        for package, shares in zip(self._packages, self._of_each_message(), strict=True):
            aggregate(package, shares, public_key=self._public_key, verifying_shares=self._verifying_shares)

    def aggregate_batched(self) -> None:
        shares = list(self._of_each_message())
        made = aggregate_batch(
            self._packages, shares, public_key=self._public_key, verifying_shares=self._verifying_shares
        )
        assert not any(isinstance(each, FrostError) for each in made)

    def _of_each_message(self) -> Iterator[dict[int, bytes]]:
        for place in range(len(self._packages)):
            yield {each: self._shares[each][place] for each in QUORUM}


def measure_primitives(messages: list[bytes]) -> Primitives:
    quorum = Quorum(messages)
    each_signer, count = len(QUORUM) * len(messages), len(messages)
    quorum.commit()
    quorum.pack()
    sign_batched_us = timed(each_signer, quorum.sign_batched)
    aggregate_batched_us = timed(count, quorum.aggregate_batched)
    commit_us = timed(each_signer, quorum.commit)
    quorum.pack()
    return Primitives(
        commit=commit_us,
        sign=timed(each_signer, quorum.sign),
        aggregate=timed(count, quorum.aggregate),
        sign_batched=sign_batched_us,
        aggregate_batched=aggregate_batched_us,
    )


def mean_of(all_cores: Sequence[Primitives]) -> Primitives:
    means = {each.name: statistics.mean(getattr(core, each.name) for core in all_cores) for each in fields(Primitives)}
    return Primitives(**means)


def primitives_on_all_cores(messages: list[bytes]) -> list[Primitives]:
    """Measured in as many processes at once as there are cores, which share caches and perhaps more."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.map(measure_primitives, [messages] * (os.cpu_count() or 1), chunksize=1)


def measure_policy(chained: list[tuple[bytes, SignedStatement]], key_id: str) -> Iterator[tuple[str, float]]:
    rules = ReceiptRules(wall_clock_ns=time.time_ns)
    meters = {ENROLMENT.public_key: ENROLMENT}

    def receipts() -> None:
        for message, _ in chained:
            rules.examine(message, key_id=key_id)

    def stated_receipts() -> None:
        for message, statement in chained:
            rules.examine_stated(message, statement, key_id=key_id, meters=meters)

    yield "examine, one signer", timed(len(chained), receipts)
    yield "the same, and statement", timed(len(chained), stated_receipts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Receipts signed in a second, and microseconds of processor that all actors together took for one."""

    per_second: float
    cpu_us: float


class RunningGroup:
    """Five signer actors and the ledger on a local Ray; the meter is enrolled by `enrol`, and signing begins."""

    def __init__(self, folder: Path) -> None:
        import ray

        from receipts.ledger_actor import LedgerSettings, signer_group, start_ledger
        from receipts.signer_actors import SignerSettings, start_signers

        node_id = ray.get_runtime_context().get_node_id()
        secret = folder / "share-secret"
        create_development_secret(secret, os.urandom)
        self._signers = start_signers(
            [
                SignerSettings(
                    identifier=each,
                    folder=folder / f"signer-{each}",
                    share_secret=ShareSecretSource(file=secret),
                    make_policy=partial(ReceiptRules, wall_clock_ns=time.time_ns),
                )
                for each in range(1, SIGNERS + 1)
            ],
            [node_id],
        )
        settings = LedgerSettings(
            url=f"sqlite:///{folder}/ledger.sqlite3",
            connect_signers=signer_group(list(self._signers), NAMESPACE, folder / "group.json"),
        )
        self.ledger: ActorHandle[Any] = start_ledger(settings, namespace=NAMESPACE, node_id=node_id)

    async def enrol(self) -> None:
        from receipts.meter_enrolling import enrol_meter

        await enrol_meter(self._signers, ENROLMENT)

    def actors(self) -> list[psutil.Process]:
        """The signers' and the ledger's processes."""
        names = ("ray::SignerActor", "ray::LedgerActor")
        family = psutil.Process().children(recursive=True)
        actors = [each for each in family if any(name in " ".join(each.cmdline()) for name in names)]
        assert len(actors) == SIGNERS + 1, f"{len(actors)} actors"
        return actors


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """What they have taken of the processor so far."""
    return sum(sum(each.cpu_times()[:2]) for each in processes)


async def measure_throughput(group: RunningGroup, source: Iterator[Settlement], count: int) -> Throughput:
    """The rate in the middle of a backlog that gets signed."""
    waiting = [next(source) for _ in range(count)]
    for start in range(0, count, MAX_COMMIT):
        stored = await group.ledger.settle.remote(waiting[start : start + MAX_COMMIT])
        assert all(isinstance(each, StoredReceipt) for each in stored), stored
    actors = group.actors()
    await group.enrol()
    seen: list[tuple[float, int, float]] = []
    while True:
        left = (await group.ledger.signers_report.remote()).backlog.count
        if left == 0:
            break
        if left < count:
            seen.append((time.perf_counter(), left, cpu_s(actors)))
        await asyncio.sleep(POLL_S)
    (began, first, cpu_began), (ended, last, cpu_ended) = seen[0], seen[-1]
    assert first > last, "too few receipts to see a rate"
    return Throughput(
        per_second=(first - last) / (ended - began), cpu_us=(cpu_ended - cpu_began) / (first - last) * 1e6
    )


async def measure_latency(group: RunningGroup, source: Iterator[Settlement], per_second: float) -> list[float]:
    """Seconds from a receipt's commit to the client that waits for its signature, of some that arrive evenly."""
    began = time.perf_counter()
    tasks: list[asyncio.Task[float | None]] = []
    for number in range(round(per_second * LATENCY_S)):
        await asyncio.sleep(max(0.0, began + number / per_second - time.perf_counter()))
        is_followed = number % FOLLOWED_ONE_IN == 0
        tasks.append(asyncio.create_task(_settled(group.ledger, next(source), is_followed=is_followed)))
    waited = await asyncio.gather(*tasks)
    return [each for each in waited if each is not None]


async def _settled(ledger: "ActorHandle[Any]", settlement: Settlement, *, is_followed: bool) -> float | None:
    [stored] = await ledger.settle.remote([settlement])
    assert isinstance(stored, StoredReceipt), stored
    if not is_followed:
        return None
    began = time.perf_counter()
    receipt = await ledger.receipt.remote(stored.receipt_id, stored.account, 60.0)
    assert receipt.signature is not None
    return time.perf_counter() - began


async def measure_actors(folder: Path, count: int) -> tuple[Throughput, float, list[float]]:
    group = RunningGroup(folder)
    for account in ACCOUNTS:
        await group.ledger.create_key.remote(account, "benchmark")
    source = settlements(ACCOUNTS)
    throughput = await measure_throughput(group, source, count)
    arrivals = ARRIVALS * throughput.per_second
    return throughput, arrivals, await measure_latency(group, source, arrivals)


def through_the_actors(count: int) -> tuple[Throughput, float, list[float]]:
    import ray

    ray.init(address="local", num_cpus=2, namespace=NAMESPACE, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(measure_actors(Path(folder), count))
    finally:
        ray.shutdown()


def show(rows: Sequence[tuple[str, float]]) -> None:
    print(f"{'step':<28}{'microseconds':>14}{'per second':>12}")
    for name, microseconds in rows:
        print(f"{name:<28}{microseconds:>14.0f}{1e6 / microseconds:>12.0f}")


def main() -> None:
    count = next((int(each) for each in sys.argv[1:] if each.isdecimal()), RECEIPTS)
    chained = chain(MESSAGES, key_id="0" * 16)
    messages = [message for message, _ in chained]
    cores = os.cpu_count() or 1
    all_cores = primitives_on_all_cores(messages)
    mean = mean_of(all_cores)
    allowance = sum(1e6 / each.signature for each in all_cores)
    batched = sum(1e6 / each.signature_batched for each in all_cores)
    throughput, arrivals, waited = through_the_actors(count)
    print(f"{count} receipts of {len(messages[-1])} bytes, 3 of 5, {cores} cores; PyNaCl {nacl.__version__}")
    show(
        [
            ("commit, one signer", mean.commit),
            ("sign, one signer", mean.sign),
            ("aggregate and verify", mean.aggregate),
            ("all of one signature", mean.signature),
            ("sign, in batches", mean.sign_batched),
            ("aggregate, in batches", mean.aggregate_batched),
            ("all of one, in batches", mean.signature_batched),
            *measure_policy(chained, key_id="0" * 16),
            ("actors' processor time", throughput.cpu_us),
        ]
    )
    print(f"the primitives allow {allowance:.0f} signatures/s on {cores} cores; in batches {batched:.0f}")
    rate = throughput.per_second
    print(f"through the actors: {rate:.0f} signatures/s: {rate / allowance:.0%} of the first, {rate / batched:.0%} of")
    print(
        f"the second; of the actors' processor time, {mean.signature_batched / throughput.cpu_us:.0%} is cryptography"
    )
    cuts = statistics.quantiles(waited, n=100)
    print(
        f"time to signature at {arrivals:.0f} receipts/s, in seconds: p50 {cuts[49]:.3f}, p99 {cuts[98]:.3f}, "
        f"longest {max(waited):.3f} of {len(waited)}"
    )


if __name__ == "__main__":
    main()
