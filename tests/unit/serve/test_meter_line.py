"""A replica's line to its meter: what is answered, refused, lost with a connection and told again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from metering.errors import SocketUnusable, UnknownReplica
from serve.errors import NotBooked
from serve.meter_line import MeterLine, MeterLines


class Meter:
    """Notes what it is told, in order; a settlement waits for ``may_settle``."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.refuses = False
        self.may_settle = asyncio.Event()
        self.may_settle.set()
        self._news = asyncio.Event()

    def begin(self, request_id: str, replica: str, context: bytes) -> None:
        self.told.append(("begin", request_id, replica, context.decode()))
        self._news.set()
        if self.refuses:
            raise UnknownReplica(f"never heard of {replica}")

    async def settle(self, request_id: str, replica: str, outcome: str, context: bytes | None = None) -> bytes | None:
        self.told.append(("settle", request_id, replica, outcome, (context or b"").decode()))
        self._news.set()
        await self.may_settle.wait()
        if self.refuses:
            raise UnknownReplica(f"never heard of {replica}")
        return None if outcome == "aborted" else f'{{"of":"{request_id}"}}'.encode()

    async def heard(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.told) < count:
                await self._news.wait()
                self._news.clear()


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[Meter, MeterLine]]:
    meter = Meter()
    lines = await MeterLines.open(path, meter)
    line = MeterLine(str(path))
    try:
        yield meter, line
    finally:
        await line.close()
        await lines.close()


async def answered(answer):
    async with asyncio.timeout(10):
        return await answer


RunOn = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run_on(request) -> RunOn:
    """Ray's actors run on uvloop where it is installed."""

    def run(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(test)

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "line.sock"


def test_a_beginning_and_an_end_are_told_and_answered(path, run_on):
    async def run():
        async with connected(path) as (meter, line):
            await answered(line.begin("r1", "rep", '{"price":"ü"}'.encode()))
            assert await answered(line.settle("r1", "rep", "finished", b"{}")) == b'{"of":"r1"}'
            assert await answered(line.settle("r2", "rep", "aborted", b"{}")) is None
            assert meter.told[:2] == [
                ("begin", "r1", "rep", '{"price":"ü"}'),
                ("settle", "r1", "rep", "finished", "{}"),
            ]

    run_on(run())


def test_the_socket_is_its_users_alone_and_one_meters(path, run_on):
    async def run():
        async with connected(path) as (_, line):
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(SocketUnusable, match="another meter"):
                await MeterLines.open(path, Meter())
            await answered(line.begin("r1", "rep", b"{}"))

    run_on(run())


def test_what_the_meter_refuses_is_not_booked_and_names_the_class_alone(path, run_on):
    async def run():
        async with connected(path) as (meter, line):
            meter.refuses = True
            with pytest.raises(NotBooked, match=r"^UnknownReplica$"):
                await answered(line.begin("r1", "rep", b"{}"))
            with pytest.raises(NotBooked, match=r"^UnknownReplica$"):
                await answered(line.settle("r1", "rep", "finished", b"{}"))

    run_on(run())


def test_an_end_and_the_next_attempts_beginning_keep_their_order(path, run_on):
    async def run():
        async with connected(path) as (meter, line):
            await answered(line.begin("r0", "rep", b"0"))
            ends = [line.settle(f"r{n}", "rep", "failed", b"1") for n in range(50)]
            begins = [asyncio.ensure_future(line.begin(f"r{n}", "rep", b"2")) for n in range(50)]
            await answered(asyncio.gather(*ends, *begins))
            for n in range(50):
                of_this = [words[0] for words in meter.told[1:] if words[1] == f"r{n}"]
                assert of_this == ["settle", "begin"]

    run_on(run())


def test_settlements_do_not_wait_for_one_another(path, run_on):
    async def run():
        async with connected(path) as (meter, line):
            meter.may_settle.clear()
            slow = line.settle("r1", "rep", "finished", b"{}")
            await meter.heard(1)
            await answered(line.begin("r2", "rep", b"{}"))
            meter.may_settle.set()
            assert await answered(slow) == b'{"of":"r1"}'

    run_on(run())


def test_an_end_is_told_though_nobody_waits_for_its_answer(path, run_on):
    async def run():
        async with connected(path) as (meter, line):
            await answered(line.begin("r1", "rep", b"{}"))
            line.settle("r1", "rep", "aborted", b"{}").cancel()
            await meter.heard(2)
            await answered(line.begin("r2", "rep", b"{}"))
            assert [words[:2] for words in meter.told] == [("begin", "r1"), ("settle", "r1"), ("begin", "r2")]

    run_on(run())


def test_a_meter_that_comes_back_is_told_again_what_it_did_not_answer(path, run_on):
    async def run():
        first, second = Meter(), Meter()
        first.may_settle.clear()
        lines = await MeterLines.open(path, first)
        line = MeterLine(str(path))
        await answered(line.begin("r1", "rep", b"{}"))
        settling = line.settle("r1", "rep", "finished", b"{}")
        await first.heard(2)
        await lines.close()
        begun = asyncio.ensure_future(line.begin("r2", "rep", b"{}"))  # while there is no meter
        await asyncio.sleep(0.02)
        lines = await MeterLines.open(path, second)
        await answered(begun)
        assert await answered(settling) == b'{"of":"r1"}'
        assert second.told == [("settle", "r1", "rep", "finished", "{}"), ("begin", "r2", "rep", "{}")]
        await line.close()
        await lines.close()

    run_on(run())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x03abc",
        b'\0\0\0\x0b[1,"begin"]',
        b"\0\0\0\x03[1]",
        b'\0\0\0\x0a[1,"end",0]',
    ],
    ids=["too long", "no list", "no JSON", "too few words", "no word", "unknown word"],
)
def test_garbage_ends_that_line_and_no_other(path, run_on, garbage):
    async def run():
        async with connected(path) as (_, line):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(garbage)
            assert await answered(reader.read()) == b""
            writer.close()
            assert await answered(line.settle("r1", "rep", "finished", b"{}")) == b'{"of":"r1"}'

    run_on(run())


def test_what_was_told_is_heard_though_the_line_is_closed_at_once(path, run_on):
    async def run():
        meter = Meter()
        lines = await MeterLines.open(path, meter)
        line = MeterLine(str(path))
        await line.connected()
        for number in range(200):
            line.settle(f"r{number}", "rep", "aborted", b"{}")
        await line.close()
        assert len(meter.told) == 200
        await lines.close()

    run_on(run())


def test_telling_while_the_line_breaks_is_no_error_and_is_told_again(path, run_on):
    async def run():
        first, second = Meter(), Meter()
        lines = await MeterLines.open(path, first)
        line = MeterLine(str(path))
        await answered(line.begin("r1", "rep", b"{}"))
        await lines.close()
        ends = []
        for number in range(100):
            ends.append(line.settle(f"r{number}", "rep", "finished", b"{}"))
            await asyncio.sleep(0)
        lines = await MeterLines.open(path, second)
        assert await answered(asyncio.gather(*ends)) == [f'{{"of":"r{number}"}}'.encode() for number in range(100)]
        await line.close()
        await lines.close()

    run_on(run())


def test_a_meter_that_is_not_there_is_said_once_and_nothing_waits_for_ever(path, run_on, caplog):
    async def run():
        line = MeterLine(str(path), answers_within_s=0.2)
        with pytest.raises(ConnectionError, match="can't be reached"):
            await line.connected()
        with pytest.raises(NotBooked, match="doesn't answer"):
            await answered(line.begin("r1", "rep", b"{}"))
        assert [record.message for record in caplog.records] == [
            f"the meter can't be reached at {path}: FileNotFoundError"
        ]
        unanswered = [line.settle(f"r{number}", "rep", "failed", b"{}") for number in range(5000)]
        refused = [each for each in unanswered if each.done()]
        assert 0 < len(refused) < len(unanswered), "what waits is bounded"
        with pytest.raises(NotBooked, match="too much waits"):
            await refused[0]
        for each in unanswered:
            each.cancel()
        await line.close()

    run_on(run())
