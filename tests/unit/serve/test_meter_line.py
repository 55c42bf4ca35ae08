"""A replica's line to its meter: what is answered, refused, lost with a connection and told again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "line.sock"


def test_a_beginning_and_an_end_are_told_and_answered(path):
    async def run():
        async with connected(path) as (meter, line):
            await answered(line.begin("r1", "rep", '{"price":"ü"}'.encode()))
            assert await answered(line.settle("r1", "rep", "finished", b"{}")) == b'{"of":"r1"}'
            assert await answered(line.settle("r2", "rep", "aborted", b"{}")) is None
            assert meter.told[:2] == [
                ("begin", "r1", "rep", '{"price":"ü"}'),
                ("settle", "r1", "rep", "finished", "{}"),
            ]

    asyncio.run(run())


def test_the_socket_is_its_users_alone_and_one_meters(path):
    async def run():
        async with connected(path) as (_, line):
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(SocketUnusable, match="another meter"):
                await MeterLines.open(path, Meter())
            await answered(line.begin("r1", "rep", b"{}"))

    asyncio.run(run())


def test_what_the_meter_refuses_is_not_booked_and_names_the_class_alone(path):
    async def run():
        async with connected(path) as (meter, line):
            meter.refuses = True
            with pytest.raises(NotBooked, match=r"^UnknownReplica$"):
                await answered(line.begin("r1", "rep", b"{}"))
            with pytest.raises(NotBooked, match=r"^UnknownReplica$"):
                await answered(line.settle("r1", "rep", "finished", b"{}"))

    asyncio.run(run())


def test_an_end_and_the_next_attempts_beginning_keep_their_order(path):
    async def run():
        async with connected(path) as (meter, line):
            await answered(line.begin("r0", "rep", b"0"))
            ends = [line.settle(f"r{n}", "rep", "failed", b"1") for n in range(50)]
            begins = [asyncio.ensure_future(line.begin(f"r{n}", "rep", b"2")) for n in range(50)]
            await answered(asyncio.gather(*ends, *begins))
            for n in range(50):
                of_this = [words[0] for words in meter.told[1:] if words[1] == f"r{n}"]
                assert of_this == ["settle", "begin"]

    asyncio.run(run())


def test_settlements_do_not_wait_for_one_another(path):
    async def run():
        async with connected(path) as (meter, line):
            meter.may_settle.clear()
            slow = line.settle("r1", "rep", "finished", b"{}")
            await meter.heard(1)
            await answered(line.begin("r2", "rep", b"{}"))
            meter.may_settle.set()
            assert await answered(slow) == b'{"of":"r1"}'

    asyncio.run(run())


def test_an_end_is_told_though_nobody_waits_for_its_answer(path):
    async def run():
        async with connected(path) as (meter, line):
            await answered(line.begin("r1", "rep", b"{}"))
            line.settle("r1", "rep", "aborted", b"{}").cancel()
            await meter.heard(2)
            await answered(line.begin("r2", "rep", b"{}"))

    asyncio.run(run())


def test_a_meter_that_comes_back_is_told_again_what_it_did_not_answer(path):
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

    asyncio.run(run())


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff\xff\xff", b"\0\0\0\x02{}", b"\0\0\0\x03abc", b'\0\0\0\x0b[1,"begin"]', b"\0\0\0\x03[1]"],
    ids=["too long", "no list", "no JSON", "too few words", "no word"],
)
def test_garbage_ends_that_line_and_no_other(path, garbage):
    async def run():
        async with connected(path) as (_, line):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(garbage)
            assert await answered(reader.read()) == b""
            writer.close()
            assert await answered(line.settle("r1", "rep", "finished", b"{}")) == b'{"of":"r1"}'

    asyncio.run(run())
