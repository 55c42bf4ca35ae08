"""Receipts get their signatures whatever the signers do in between."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from past_the_ledger import direct, tampering
from sqlalchemy import text

from metering.statements import SignedStatement
from receipts.ledger import Ledger
from receipts.ledger_writer import LedgerWriter
from receipts.signer_messages import SignedMessage, SigningRefused
from receipts.signing_errors import QuorumUnavailable
from receipts.signing_loop import MAX_BATCH, LedgerHeads, SigningLoop


class Signers:
    """Signs as told: by default everything."""

    def __init__(self, group) -> None:
        self.group = group
        self.calls: list[int] = []
        self.evidence: list[SignedStatement | None] = []
        self.called = asyncio.Condition()
        self.behave: Callable[[bytes], bytes | SigningRefused] = group.sign

    async def sign(self, messages: Sequence[tuple[bytes, SignedStatement | None]]) -> list[bytes | SigningRefused]:
        async with self.called:
            self.calls.append(len(messages))
            self.called.notify_all()
        self.evidence += [evidence for _, evidence in messages]
        return [self.behave(message) for message, _ in messages]

    async def asked(self, times: int) -> None:
        async with self.called, asyncio.timeout(5):
            await self.called.wait_for(lambda: len(self.calls) >= times)


def open_ledger(path: Path, key_id: str) -> Ledger:
    ledger = Ledger.open(f"sqlite:///{path}", wall_clock_ns=time.time_ns, random_bytes=os.urandom, key_id=key_id)
    for account in ("acme", "other"):
        ledger.create_key(account, "")
    return ledger


@asynccontextmanager
async def running(path: Path, signers: Signers, **options) -> AsyncIterator[LedgerWriter]:
    writer = await LedgerWriter.open(lambda: open_ledger(path, signers.group.key_id))
    loop = SigningLoop(
        writer,
        sign=signers.sign,
        public_key=signers.group.public_key,
        first_pause_s=0.01,
        longest_pause_s=0.02,
        **options,
    )
    task = asyncio.create_task(loop.run())
    try:
        yield writer
        assert not task.done()
    finally:
        task.cancel()
        await writer.close()


async def all_signed(writer: LedgerWriter, group, numbers: Sequence[int], account: str = "acme") -> None:
    for number in numbers:
        stored = await writer.receipt(f"rcpt_{number:032x}", account, wait_for_signature_s=5)
        assert stored.signature == group.sign(stored.signed_bytes), number


async def settle(writer: LedgerWriter, settlements: Sequence) -> None:
    await asyncio.gather(*map(writer.settle, settlements))


async def test_receipts_are_signed_as_they_come(tmp_path: Path, group, make_settlement) -> None:
    signers = Signers(group)
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(1)])
        await all_signed(writer, group, [1])
        await settle(writer, [make_settlement(n) for n in range(2, 10)])
        await all_signed(writer, group, range(2, 10))
        assert len(await writer.call(Ledger.waiting)) == 0
        calls = len(signers.calls)
        await asyncio.sleep(0.05)
        assert len(signers.calls) == calls, "without work there is nothing to ask"


async def test_the_first_is_signed_at_once_and_those_that_follow_wait_for_company(
    tmp_path: Path, group, make_settlement
) -> None:
    signers = Signers(group)
    go_on = asyncio.Event()

    async def gather(_seconds: float) -> None:
        await go_on.wait()

    async with running(tmp_path / "l.db", signers, gather=gather) as writer:
        await settle(writer, [make_settlement(1)])
        await all_signed(writer, group, [1])
        for n in range(2, 6):
            await settle(writer, [make_settlement(n)])
        go_on.set()
        await all_signed(writer, group, range(2, 6))
    assert signers.calls == [1, 4]


async def test_a_receipt_goes_to_the_signers_with_its_meters_statement(tmp_path: Path, group, make_settlement) -> None:
    signers = Signers(group)
    statements = [SignedStatement(statement=f"the meter's word {n}", signature="ab" * 64) for n in (1, 2)]
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(1, statement=statements[0])])
        await all_signed(writer, group, [1])
        await settle(writer, [make_settlement(2, statement=statements[1])])
        await all_signed(writer, group, [2])
    assert signers.evidence == statements


async def test_a_backlog_of_an_earlier_life_is_signed(tmp_path: Path, group, make_settlement) -> None:
    ledger = open_ledger(tmp_path / "l.db", group.key_id)
    count = MAX_BATCH + 10
    ledger.settle([make_settlement(n, "other") for n in range(1, count + 1)])
    ledger.close()
    signers = Signers(group)
    async with running(tmp_path / "l.db", signers) as writer:
        await all_signed(writer, group, [count, 1], "other")
        assert max(signers.calls) == MAX_BATCH


@pytest.mark.parametrize(
    "trouble",
    [QuorumUnavailable("2 of 3 needed signers answer"), RuntimeError("a defect"), ConnectionError("signers are gone")],
)
async def test_trouble_is_outlived_with_a_line_in_the_log(
    tmp_path: Path, group, make_settlement, caplog, trouble: Exception
) -> None:
    signers = Signers(group)

    def fail(_message: bytes) -> bytes:
        raise trouble

    signers.behave = fail
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(n, customer_tag="confidential") for n in (1, 2)])
        await signers.asked(4)
        assert len(await writer.call(Ledger.waiting)) == 2
        signers.behave = group.sign
        await all_signed(writer, group, [1, 2])
    assert len(caplog.records) >= 4
    assert {each.levelno for each in caplog.records} <= {logging.WARNING, logging.ERROR}
    assert "confidential" not in caplog.text


async def test_an_account_with_a_damaged_receipt_does_not_hold_up_the_others(
    tmp_path: Path, group, make_settlement, caplog
) -> None:
    path = tmp_path / "l.db"
    ledger = open_ledger(path, group.key_id)
    ledger.settle([make_settlement(1), make_settlement(2, "other")])
    ledger.close()
    (sound,) = read_statement(path)
    write_statement(path, "CAST(x'ff' AS TEXT)")
    async with running(path, Signers(group)) as writer:
        await all_signed(writer, group, [2], "other")
        await settle(writer, [make_settlement(3, "other")])
        await all_signed(writer, group, [3], "other")
        assert writer.backlog.count == 1
        assert "account acme: receipt 1 of account acme is damaged: its row cannot be read" in caplog.text
        write_statement(path, f"'{sound}'")
        await all_signed(writer, group, [1])


def read_statement(path: Path) -> tuple[str]:
    with direct(f"sqlite:///{path}") as connection:
        return connection.execute(text("SELECT statement FROM receipts WHERE account = 'acme'")).one()


def write_statement(path: Path, value: str) -> None:
    with tampering(f"sqlite:///{path}") as connection:
        change = f"UPDATE receipts SET statement = {value} WHERE account = 'acme'"  # noqa: S608 - the test's own
        connection.exec_driver_sql(change)


async def test_an_account_that_is_refused_does_not_hold_up_the_others(
    tmp_path: Path, group, make_settlement, caplog
) -> None:
    signers = Signers(group)
    signers.behave = lambda message: (
        SigningRefused(reason="signer 1: fork") if b'"account":"acme"' in message else group.sign(message)
    )
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(n) for n in range(1, MAX_BATCH + 50)])
        await settle(writer, [make_settlement(n, "other") for n in range(1001, 1010)])
        await all_signed(writer, group, range(1001, 1010), "other")
        assert len(await writer.call(Ledger.waiting)) == MAX_BATCH + 49
        assert "account acme: receipt 1 is not signed: signer 1: fork" in caplog.text
        signers.behave = group.sign
        await all_signed(writer, group, [1, MAX_BATCH + 49])


async def test_no_signature_is_stored_that_does_not_verify(
    tmp_path: Path, group, stranger, make_settlement, caplog
) -> None:
    signers = Signers(group)
    signers.behave = stranger.sign
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(1)])
        await signers.asked(3)
        assert (await writer.receipt(f"rcpt_{1:032x}", "acme")).signature is None
        assert "the signature does not verify" in caplog.text
        signers.behave = group.sign
        await all_signed(writer, group, [1])


async def test_batches_overlap_and_trouble_with_one_begins_no_other(tmp_path: Path, group, make_settlement) -> None:
    ledger = open_ledger(tmp_path / "l.db", group.key_id)
    for start in range(0, 10 * MAX_BATCH, MAX_BATCH):
        ledger.settle([make_settlement(n) for n in range(start + 1, start + MAX_BATCH + 1)])
    ledger.close()
    signers = Signers(group)
    on_their_way = most = failed = 0

    async def slow(messages: Sequence[tuple[bytes, None]]) -> list[bytes]:
        nonlocal on_their_way, most, failed
        on_their_way += 1
        most = max(most, on_their_way)
        await asyncio.sleep(0.01)
        on_their_way -= 1
        if not failed:
            failed = 1
            raise QuorumUnavailable("2 of 3 needed signers answer")
        signers.calls.append(len(messages))
        return [group.sign(message) for message, _ in messages]

    signers.sign = slow
    async with running(tmp_path / "l.db", signers) as writer:
        await all_signed(writer, group, [1, *range(MAX_BATCH, 11 * MAX_BATCH, MAX_BATCH)])
        assert writer.backlog.count == 0
    assert most > 1
    assert sum(signers.calls) == 10 * MAX_BATCH, "each was signed once, though three batches were on their way"


async def test_without_a_quorum_the_rest_is_not_tried(tmp_path: Path, group, make_settlement) -> None:
    """Each try costs a deadline."""
    writer = await LedgerWriter.open(lambda: open_ledger(tmp_path / "l.db", group.key_id))
    for start in range(0, 10 * MAX_BATCH, MAX_BATCH):
        await settle(writer, [make_settlement(n) for n in range(start + 1, start + MAX_BATCH + 1)])
    tries = 0
    tried = asyncio.Event()

    async def fail(_: Sequence[tuple[bytes, None]]) -> list[bytes]:
        nonlocal tries
        tries += 1
        tried.set()
        await asyncio.sleep(0)
        raise QuorumUnavailable("2 of 3 needed signers answer")

    loop = SigningLoop(writer, sign=fail, public_key=group.public_key, first_pause_s=60)
    task = asyncio.create_task(loop.run())
    await tried.wait()
    async with loop.at_rest():
        assert 1 <= tries < 10
    task.cancel()
    await writer.close()


async def test_at_rest_nothing_is_on_its_way(tmp_path: Path, group, make_settlement) -> None:
    signers = Signers(group)
    writer = await LedgerWriter.open(lambda: open_ledger(tmp_path / "l.db", group.key_id))
    waited: list[int] = []
    loop = SigningLoop(writer, sign=signers.sign, public_key=group.public_key, on_signed=waited.extend)
    task = asyncio.create_task(loop.run())
    async with loop.at_rest():
        await settle(writer, [make_settlement(n) for n in (1, 2, 3)])
        await asyncio.sleep(0.05)
        assert (signers.calls, waited) == ([], [])
        assert writer.backlog.count == 3
    await all_signed(writer, group, [1, 2, 3])
    assert len(waited) == 3
    assert min(waited) > 0
    task.cancel()
    await writer.close()


async def test_too_few_answers_count_as_none(tmp_path: Path, group, make_settlement, caplog) -> None:
    signers = Signers(group)

    async def short(messages: Sequence[tuple[bytes, None]]) -> list[bytes | SigningRefused]:
        signers.calls.append(len(messages))
        return [group.sign(message) for message, _ in messages][: -1 if len(signers.calls) == 1 else None]

    signers.sign = short
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(1)])
        await all_signed(writer, group, [1])
    assert len(signers.calls) == 2
    assert "signing receipts failed" in caplog.text


async def test_signers_that_were_away_see_signed_receipts_only(tmp_path: Path, group, make_settlement) -> None:
    signers = Signers(group)
    async with running(tmp_path / "l.db", signers) as writer:
        await settle(writer, [make_settlement(1)])
        await all_signed(writer, group, [1])
        signers.behave = lambda _message: SigningRefused(reason="later")
        await settle(writer, [make_settlement(2)])
        heads = LedgerHeads(writer)
        stored = await writer.receipt(f"rcpt_{1:032x}", "acme")
        assert await heads.signed_receipt("acme", 1) == SignedMessage(
            message=stored.signed_bytes, signature=stored.signature
        )
        assert await heads.signed_receipt("acme", 2) is None
        assert await heads.signed_receipt("nobody", 1) is None


async def test_signing_goes_on_when_what_was_signed_cannot_be_counted(
    tmp_path: Path, group, make_settlement, caplog
) -> None:
    def fail(_: Sequence[int]) -> None:
        raise RuntimeError("no metrics here")

    signers = Signers(group)
    async with running(tmp_path / "l.db", signers, on_signed=fail) as writer:
        await settle(writer, [make_settlement(1)])
        await all_signed(writer, group, [1])
        await settle(writer, [make_settlement(2)])
        await all_signed(writer, group, [2])
    assert "receipts that were signed could not be counted" in caplog.text
    assert "signing receipts failed" not in caplog.text
