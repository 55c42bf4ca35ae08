import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.errors import StartFailed
from mesh.local_nodes import LocalNodes, next_wait_s
from mesh.local_ray_node import wait_until_known
from mesh.nodes_file import LocalNodeSettings

_WITHIN_S = 10.0
_GO_ON = threading.Event()


class _Node:
    """A node that a test can kill."""

    def __init__(self, pid: int) -> None:
        self.raylet_pid = pid
        self.alive = True
        self.ended: list[bool] = []

    def is_alive(self) -> bool:
        return self.alive

    def end(self, *, in_order: bool) -> None:
        self.alive = False
        self.ended.append(in_order)


class _Machine:
    """Starts nodes; ``broken`` names those that do not start."""

    def __init__(self) -> None:
        self.started: list[tuple[LocalNodeSettings, _Node]] = []
        self.broken: set[str] = set()
        self.fails = 0
        self.starting = threading.Event()
        self.may_start = threading.Event()
        self.may_start.set()

    def start(self, settings: LocalNodeSettings) -> _Node:
        self.starting.set()
        assert self.may_start.wait(_WITHIN_S)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the machine is busy")
        if settings.name in self.broken:
            raise RuntimeError(f"{settings.name} does not start")
        node = _Node(1000 + len(self.started))
        self.started.append((settings, node))
        return node

    def nodes(self, machine_file: Path, *names: str) -> LocalNodes:
        settings = tuple(LocalNodeSettings(name=name, cpus=1, labels={"rack": name}) for name in names)
        return LocalNodes(settings, self.start, head=("head", 7), record=machine_file, start_again_after_s=0.05)


def _wait(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _WITHIN_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture
def record(tmp_path) -> Path:
    return tmp_path / "nodes.json"


def test_all_are_started_recorded_and_ended_in_order(record):
    machine = _Machine()
    nodes = machine.nodes(record, "one", "two")
    nodes.start(_GO_ON)
    assert json.loads(record.read_text()) == {"head": 7, "one": 1000, "two": 1001}
    nodes.stop()
    assert [node.ended for _, node in machine.started] == [[True], [True]]
    assert not record.exists()


def test_one_that_dies_is_ended_recorded_as_away_and_started_again_with_its_labels(record, caplog):
    machine = _Machine()
    nodes = machine.nodes(record, "one", "two")
    nodes.start(_GO_ON)
    machine.may_start.clear()
    first = machine.started[0][1]
    first.alive = False
    _wait(lambda: json.loads(record.read_text())["one"] is None)
    _wait(lambda: first.ended == [False])
    machine.may_start.set()
    _wait(lambda: json.loads(record.read_text())["one"] == 1002)
    assert json.loads(record.read_text()) == {"head": 7, "one": 1002, "two": 1001}
    assert machine.started[2][0] == machine.started[0][0], "the same name, labels and CPUs"
    assert "node one (process 1000) died" in caplog.text
    assert "node one is back (process 1002)" in caplog.text
    nodes.stop()
    assert machine.started[2][1].ended == [True]
    assert first.ended == [False]


def test_one_that_does_not_come_back_leaves_the_others_watched(record, caplog):
    machine = _Machine()
    nodes = machine.nodes(record, "one", "two")
    nodes.start(_GO_ON)
    machine.broken.add("one")
    for _, node in machine.started:
        node.alive = False
    _wait(lambda: json.loads(record.read_text())["two"] == 1002)
    assert json.loads(record.read_text())["one"] is None
    assert "one does not start" in caplog.text
    nodes.stop()


def test_one_that_does_not_start_at_first_is_tried_again(record, caplog):
    machine = _Machine()
    machine.fails = 2
    nodes = machine.nodes(record, "one")
    nodes.start(_GO_ON)
    nodes.stop()
    assert len(machine.started) == 1
    assert caplog.text.count("tried again") == 2


def test_a_start_that_fails_ends_what_was_started(record):
    machine = _Machine()
    machine.broken.add("two")
    with pytest.raises(RuntimeError, match="two does not start"):
        machine.nodes(record, "one", "two").start(_GO_ON)
    assert machine.started[0][1].ended == [True]
    assert not record.exists()


def test_stopping_waits_for_a_start_under_way_and_ends_that_too(record):
    machine = _Machine()
    nodes = machine.nodes(record, "one")
    nodes.start(_GO_ON)
    machine.may_start.clear()
    machine.starting.clear()
    machine.started[0][1].alive = False
    assert machine.starting.wait(_WITHIN_S)
    threading.Timer(0.1, machine.may_start.set).start()
    nodes.stop()
    assert machine.started[1][1].ended == [True]


def test_none_is_started_again_after_the_watching_stopped(record):
    machine = _Machine()
    nodes = machine.nodes(record, "one")
    nodes.start(_GO_ON)
    nodes.stop_watching()
    machine.started[0][1].alive = False
    time.sleep(0.5)
    assert len(machine.started) == 1
    nodes.stop()


def test_a_start_that_is_stopped_starts_no_more_and_ends_what_was_started(record):
    machine = _Machine()
    stop = threading.Event()

    def start(settings: LocalNodeSettings) -> _Node:
        node = machine.start(settings)
        stop.set()
        return node

    settings = tuple(LocalNodeSettings(name=name, cpus=1) for name in ("one", "two"))
    nodes = LocalNodes(settings, start, head=("head", 7), record=record)
    with pytest.raises(StartFailed, match="stopped before"):
        nodes.start(stop)
    ((_, node),) = machine.started
    assert node.ended == [True]


def test_a_start_that_fails_is_not_tried_again_once_it_is_stopped(record):
    tries = []
    stop = threading.Event()

    def start(_: LocalNodeSettings) -> _Node:
        tries.append(1)
        stop.set()
        raise RuntimeError("the machine is busy")

    nodes = LocalNodes((LocalNodeSettings(name="one", cpus=1),), start, head=("head", 7), record=record)
    with pytest.raises(StartFailed, match="stopped before"):
        nodes.start(stop)
    assert len(tries) == 1


def test_one_that_dies_at_its_start_stays_away_longer_each_time():
    waits = [next_wait_s(None, lived_s=0.0, first_s=2.0)]
    while len(waits) < 8:
        waits.append(next_wait_s(waits[-1], lived_s=1.0, first_s=2.0))
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    assert next_wait_s(60.0, lived_s=10.0, first_s=2.0) == 2.0, "it had lived: this is another trouble"


def test_one_that_dies_in_a_loop_is_told_with_its_growing_pauses(record, caplog):
    machine = _Machine()
    nodes = machine.nodes(record, "one")
    nodes.start(_GO_ON)
    for turn in range(1, 4):
        machine.started[-1][1].alive = False
        _wait(lambda turn=turn: caplog.text.count("is back") == turn)
    nodes.stop()
    assert [f"in {pause} s" in caplog.text for pause in (0.05, 0.1, 0.2)] == [True] * 3


def test_one_that_can_not_be_started_is_told_in_a_line_each_time(record, caplog):
    machine = _Machine()
    away = threading.Event()

    def start(settings: LocalNodeSettings) -> _Node:
        if away.is_set():
            raise StartFailed("node one did not start: no room")
        return machine.start(settings)

    settings = (LocalNodeSettings(name="one", cpus=1),)
    nodes = LocalNodes(settings, start, head=("head", 7), record=record, start_again_after_s=0.05)
    nodes.start(_GO_ON)
    away.set()
    machine.started[0][1].alive = False
    _wait(lambda: caplog.text.count("no room") >= 2)
    nodes.stop()
    assert "Traceback" not in caplog.text


class TestWaitingUntilANodeIsKnown:
    def test_it_returns_when_the_cluster_knows_it(self):
        looks = iter([False, True])
        wait_until_known(lambda: next(looks), lambda: True, within_s=_WITHIN_S)
        assert list(looks) == [], "it looked again after the first look had found nothing"

    def test_one_whose_raylet_dies_meanwhile_is_not_waited_for(self):
        with pytest.raises(StartFailed, match="raylet died"):
            wait_until_known(lambda: False, lambda: False, within_s=_WITHIN_S)

    def test_one_that_takes_too_long_is_given_up(self):
        with pytest.raises(StartFailed, match=r"within 0\.05 s"):
            wait_until_known(lambda: False, lambda: True, within_s=0.05)
