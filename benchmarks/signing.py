"""How fast receipts are signed: each step of FROST by itself, then the whole group in one process.

    .venv/bin/python -m benchmarks signing

One core, no Ray. "whole group" is what a coordinator reaches with three signers on the same core: rules,
durable marks, commitments and verification included. With signers on cores of their own, the slowest bounds it.
"""

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nacl

from metering.statements import MeterKey, SignedStatement, StatementChain
from receipts.canonical import canonical_bytes
from receipts.frost import keygen, round_one, round_two
from receipts.frost.aggregate import aggregate
from receipts.frost.ciphersuite import scale_base
from receipts.frost.signing_package import SigningPackage
from receipts.meter_enrolment import MeterEnrolment
from receipts.signer import Signer
from receipts.signer_group import SignerGroup, enrol_meter
from receipts.signer_messages import SignedMessage
from receipts.signer_policy import ReceiptRules
from receipts.signer_ports import LocalSigner

QUORUM = (1, 2, 3)
THRESHOLD = 3
MESSAGES = 500


RECEIPT = Path(__file__).parents[1] / "tests" / "unit" / "receipts" / "data" / "unsigned-receipt.json"
METER = MeterKey(bytes(range(32)))
ENROLMENT = MeterEnrolment(public_key=METER.public_key, node="host-1", maximum_power_milliwatts=100_000)


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


class NoHeads:
    async def signed_receipt(self, account: str, seq: int) -> SignedMessage | None:
        raise AssertionError(f"nobody is behind, but receipt {seq} of {account} was asked for")


def timed(count: int, work: Callable[[], object]) -> float:
    """Microseconds for each of ``count``."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / count * 1e6


def measure_steps(messages: list[bytes]) -> list[tuple[str, float]]:
    polynomial = keygen.SecretPolynomial.generate(THRESHOLD, os.urandom)
    public_key = polynomial.commit()[0]
    shares = {
        each: keygen.KeyShare(
            identifier=each, threshold=THRESHOLD, secret=polynomial.share_for(each), public_key=public_key
        )
        for each in QUORUM
    }
    verifying_shares = {each: scale_base(share.secret) for each, share in shares.items()}
    nonces: dict[int, list[round_one.SigningNonces]] = {each: [] for each in QUORUM}
    signature_shares: dict[int, list[bytes]] = {each: [] for each in QUORUM}

    def commit() -> None:
        for each in QUORUM:
            nonces[each] = [round_one.commit(each, shares[each].secret, os.urandom) for _ in messages]

    def sign() -> None:
        for each in QUORUM:
            pairs = zip(packages, nonces[each], strict=True)
            signature_shares[each] = [round_two.sign(package, taken, shares[each]) for package, taken in pairs]

    def finish() -> None:
        for place, package in enumerate(packages):
            of_this = {each: signature_shares[each][place] for each in QUORUM}
            aggregate(package, of_this, public_key=public_key, verifying_shares=verifying_shares)

    each_signer = len(QUORUM) * len(messages)
    commit_us = timed(each_signer, commit)
    packages = [
        SigningPackage(message=message, commitments=tuple(nonces[each][place].commitment for each in QUORUM))
        for place, message in enumerate(messages)
    ]
    return [
        ("commit, one signer", commit_us),
        ("sign, one signer", timed(each_signer, sign)),
        ("aggregate and verify", timed(len(messages), finish)),
    ]


def measure_policy(chained: list[tuple[bytes, SignedStatement]], key_id: str) -> list[tuple[str, float]]:
    rules = ReceiptRules(wall_clock_ns=time.time_ns)
    meters = {ENROLMENT.public_key: ENROLMENT}

    def receipts() -> None:
        for message, _ in chained:
            rules.examine(message, key_id=key_id)

    def stated_receipts() -> None:
        for message, statement in chained:
            rules.examine_stated(message, statement, key_id=key_id, meters=meters)

    return [
        ("examine, one signer", timed(len(chained), receipts)),
        ("the same, and statement", timed(len(chained), stated_receipts)),
    ]


async def measure_group(folder: Path) -> float:
    secret = os.urandom(32)
    signers = {
        each: Signer(
            identifier=each,
            folder=folder / f"signer-{each}",
            share_secret=secret,
            policy=ReceiptRules(wall_clock_ns=time.time_ns),
            random_bytes=os.urandom,
        )
        for each in range(1, 6)
    }
    group = await SignerGroup.start(
        {each: LocalSigner(signer) for each, signer in signers.items()},
        record_path=folder / "group.json",
        heads=NoHeads(),
        random_bytes=os.urandom,
    )
    await enrol_meter({each: LocalSigner(signer) for each, signer in signers.items()}, ENROLMENT)
    messages = chain(MESSAGES, group.key_id)
    began = time.perf_counter()
    signatures = await group.sign(messages)
    took = time.perf_counter() - began
    assert all(isinstance(each, bytes) for each in signatures)
    for signer in signers.values():
        signer.close()
    return took / len(messages) * 1e6


def main() -> None:
    chained = chain(MESSAGES, key_id="0" * 16)
    messages = [message for message, _ in chained]
    rows = [*measure_steps(messages), *measure_policy(chained, key_id="0" * 16)]
    with tempfile.TemporaryDirectory() as folder:
        rows.append(("whole group, 3 signers", asyncio.run(measure_group(Path(folder)))))
    print(f"{MESSAGES} receipts of {len(messages[-1])} bytes, 3 of 5; PyNaCl {nacl.__version__}")
    print(f"{'step':<24}{'microseconds':>14}{'per second':>12}")
    for name, microseconds in rows:
        print(f"{name:<24}{microseconds:>14.0f}{1e6 / microseconds:>12.0f}")


if __name__ == "__main__":
    main()
