import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.local_nodes import LocalNodes
from mesh.nodes_file import LocalNodeSettings

_WITHIN_S = 10.0


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
    nodes.start()
    assert json.loads(record.read_text()) == {"head": 7, "one": 1000, "two": 1001}
    nodes.stop()
    assert [node.ended for _, node in machine.started] == [[True], [True]]
    assert not record.exists()


def test_one_that_dies_is_ended_recorded_as_away_and_started_again_with_its_labels(record, caplog):
    machine = _Machine()
    nodes = machine.nodes(record, "one", "two")
    nodes.start()
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
    nodes.start()
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
    nodes.start()
    nodes.stop()
    assert len(machine.started) == 1
    assert caplog.text.count("tried again") == 2


def test_a_start_that_fails_ends_what_was_started(record):
    machine = _Machine()
    machine.broken.add("two")
    with pytest.raises(RuntimeError, match="two does not start"):
        machine.nodes(record, "one", "two").start()
    assert machine.started[0][1].ended == [True]
    assert not record.exists()


def test_stopping_waits_for_a_start_under_way_and_ends_that_too(record):
    machine = _Machine()
    nodes = machine.nodes(record, "one")
    nodes.start()
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
    nodes.start()
    nodes.stop_watching()
    machine.started[0][1].alive = False
    time.sleep(0.5)
    assert len(machine.started) == 1
    nodes.stop()
