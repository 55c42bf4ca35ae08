"""Steps over a real Unix socket: what arrives, what is bounded, what is survived."""

import json
import os
import socket
import stat
import subprocess
import sys
import time

import pytest

from metering.engine_steps import RequestWork, StepBegan, StepEnded, StepInbox, StepReporter, StepsLost
from metering.errors import SocketUnusable

WORK = (RequestWork("a" * 32, 34, 34, 0, 0, 34), RequestWork("b" * 32, 20, 0, 16, 1, 21))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "steps.sock"


@pytest.fixture
def inbox(path):
    inbox = StepInbox(path)
    yield inbox
    inbox.close()


@pytest.fixture
def reporter(path):
    reporter = StepReporter(str(path), "replica-1")
    yield reporter
    reporter.close()


def _drain_until(inbox, count, seconds=5):
    events = inbox.drain()
    deadline = time.monotonic() + seconds
    while len(events) < count and time.monotonic() < deadline:
        time.sleep(0.01)
        events += inbox.drain()
    return events


def _send(path, data):
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(path))
    raw.sendall(data)
    return raw


def test_steps_arrive_as_they_were_sent(inbox, reporter):
    reporter.began(1, 1000, WORK)
    reporter.ended(1, 2000, {"a" * 32: 1})
    assert inbox.drain() == [
        StepBegan(replica="replica-1", step=1, at_monotonic_ns=1000, work=WORK),
        StepEnded(replica="replica-1", step=1, at_monotonic_ns=2000, produced={"a" * 32: 1}),
    ]
    assert inbox.drain() == []


@pytest.mark.usefixtures("inbox")
def test_only_the_owner_can_write_to_the_socket(path):
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR


def test_a_reporter_without_a_meter_waits_and_delivers_later(path):
    reporter = StepReporter(str(path), "r")
    reporter.began(1, 1000, WORK)
    reporter.ended(1, 2000, {})
    inbox = StepInbox(path)
    events = _drain_until(inbox, 2)
    assert [type(event) for event in events] == [StepBegan, StepEnded]
    reporter.close()
    inbox.close()


def test_a_full_buffer_drops_the_oldest_and_says_how_many(path):
    reporter = StepReporter(str(path), "r", buffer_bytes=2000)
    for step in range(1, 101):
        reporter.ended(step, step, {})
    inbox = StepInbox(path)
    events = _drain_until(inbox, 2)
    deadline = time.monotonic() + 5
    while events[-1].step != 100 and time.monotonic() < deadline:
        events += _drain_until(inbox, 1, 0.1)
    lost = sum(event.messages for event in events if isinstance(event, StepsLost))
    delivered = [event.step for event in events if isinstance(event, StepEnded)]
    reporter.ended(101, 101, {})
    lost += sum(event.messages for event in inbox.drain() if isinstance(event, StepsLost))
    assert lost > 0
    assert lost + len(delivered) == 100
    assert delivered == list(range(101 - len(delivered), 101))
    reporter.close()
    inbox.close()


def test_nothing_is_stuck_when_the_meter_reads_slowly(inbox, reporter):
    """More than the socket holds, and then silence: the last message must arrive without another one behind it."""
    for step in range(1, 5001):
        reporter.ended(step, step, {"a" * 32: 1})
    events = _drain_until(inbox, 5000)
    assert [event.step for event in events] == list(range(1, 5001))


@pytest.mark.usefixtures("inbox")
def test_reporting_never_blocks_the_engine(reporter):
    work = tuple(RequestWork(f"{number:032x}", 100, 0, 0, 1, 100) for number in range(256))
    longest = 0.0
    for step in range(1, 200):
        before = time.monotonic()
        reporter.began(step, step, work)
        longest = max(longest, time.monotonic() - before)
    assert longest < 1


def test_a_meter_that_restarts_is_found_again(path, reporter):
    first = StepInbox(path)
    reporter.began(1, 1000, WORK)
    assert len(first.drain()) == 1
    first.close()
    reporter.ended(1, 2000, {})
    second = StepInbox(path)
    reporter.began(2, 3000, WORK)
    assert [event.step for event in _drain_until(second, 2)] == [1, 2]
    second.close()


def test_garbage_is_counted_and_the_rest_is_read(inbox, path):
    good = json.dumps(["e", "r", 1, 5, 0, {"x": 1}]).encode()
    garbage = [
        b"",
        b"\xff\xfe",
        b"{}",
        b"null",
        b"[1,2,3]",
        b'["e","r",-1,5,0,{}]',
        b'["e","r",1,5,0,{"x":"y"}]',
        b'["e","r",true,5,0,{}]',
        b'["b","r",1,5,0,[["id",1]]]',
        b'["b","r",1,5,0,[[7,1,1,1,1,1]]]',
        b'["z","r",1,5,0,[]]',
        b"[" * 100_000,
    ]
    raw = _send(path, b"\n".join([*garbage, good, b""]))
    assert inbox.drain() == [StepEnded(replica="r", step=1, at_monotonic_ns=5, produced={"x": 1})]
    assert inbox.garbage_lines == len(garbage)
    raw.close()


def test_a_line_without_an_end_is_bounded(inbox, path):
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(path))

    def send_without_end():
        for _ in range(1000):
            raw.send(b"x" * 65536)
            inbox.drain()

    with pytest.raises(BrokenPipeError):
        send_without_end()
    assert inbox.garbage_lines == 1
    raw.close()


def test_a_message_in_pieces_is_put_together(inbox, path):
    line = json.dumps(["b", "r", 1, 5, 2, [list(WORK[0])]]).encode() + b"\n"
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(path))
    events = []
    for byte in range(0, len(line), 7):
        raw.sendall(line[byte : byte + 7])
        events += inbox.drain()
    assert events == [
        StepsLost(replica="r", messages=2),
        StepBegan(replica="r", step=1, at_monotonic_ns=5, work=WORK[:1]),
    ]
    raw.close()


def test_a_second_meter_is_refused_and_a_dead_ones_socket_replaced(path):
    first = StepInbox(path)
    with pytest.raises(SocketUnusable, match="another meter"):
        StepInbox(path)
    first._listener.close()
    StepInbox(path).close()
    assert not path.exists()


def test_an_impossible_path_is_named(tmp_path):
    with pytest.raises(SocketUnusable, match="cannot listen"):
        StepInbox(tmp_path / ("x" * 200))


def test_a_reporter_with_an_impossible_path_keeps_quiet(tmp_path):
    reporter = StepReporter(str(tmp_path / ("x" * 200)), "r", buffer_bytes=100)
    for step in range(50):
        reporter.ended(step, step, {})
    reporter.close()


def test_the_module_needs_only_the_standard_library():
    """It is imported inside the engine: nothing heavy may hang on it."""
    code = (
        "import sys, metering.engine_steps\n"
        "bad = {m.split('.')[0] for m in sys.modules} & {'pydantic', 'ray', 'vllm', 'sqlalchemy', 'nacl', 'clusters'}\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
