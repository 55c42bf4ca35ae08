"""Recordings: what is recorded plays back, and what is malformed names its line."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.counters.counter import CounterFacts, difference
from metering.counters.replay import record, replay
from metering.errors import CounterLost, ReplayUnusable

SECOND = 1_000_000_000
HEADER = "device_id,at_ns,energy_microjoules"
FACTS = CounterFacts(
    device_id="cpu-package-0",
    method="rapl",
    scope="cpu-package",
    period_ns=1_000_000,
    wrap_microjoules=1_000_000,
    maximum_power_milliwatts=400_000,
    error_percent=5.0,
    best_confidence="measured-apportioned",
    closes_at_will=True,
)
GPU = replace(FACTS, device_id="GPU-1", method="nvml-total-energy", scope="gpu", best_confidence="measured-direct")


def _first_line(*facts):
    return json.dumps({"counters": [_recorded(each) for each in facts]})


def _recorded(facts):
    entry = asdict(facts)
    del entry["begins_anew"]
    return entry


class Player:
    """Plays lines back; the recording begins at second 0 of its clock."""

    def __init__(self, folder, *rows, facts=(FACTS,)):
        self.now_ns = 0
        file = folder / "recording"
        file.write_text("\n".join([_first_line(*facts), HEADER, *rows]) + "\n")
        self.recording = replay(file, monotonic_ns=lambda: self.now_ns)
        self.counters = {counter.facts.device_id: counter for counter in self.recording.counters}

    def at(self, second, device_id=FACTS.device_id):
        self.now_ns = round(second * SECOND)
        return self.counters[device_id].read()


def test_readings_step_and_carry_the_time_at_which_they_were_due(tmp_path):
    player = Player(tmp_path, "cpu-package-0,5000000000,100", "cpu-package-0,6000000000,250")
    for second in (0, 0.5, 0.999):
        reading = player.at(second)
        assert (reading.energy_microjoules, reading.at_monotonic_ns) == (100, 0)
    assert (player.at(1).energy_microjoules, player.at(1).at_monotonic_ns) == (250, SECOND)


def test_the_end_of_a_recording_is_a_loss_and_not_a_standstill(tmp_path):
    player = Player(tmp_path, "cpu-package-0,5,1", "cpu-package-0,2000000005,2")
    player.at(2)
    with pytest.raises(CounterLost, match=r"cpu-package-0: the recording ended after 2\.0 s"):
        player.at(2.001)


def test_a_loss_is_recorded_and_played(tmp_path):
    player = Player(tmp_path, "cpu-package-0,0,1", "cpu-package-0,1000000000,", "cpu-package-0,2000000000,3")
    assert player.at(0.5).energy_microjoules == 1
    with pytest.raises(CounterLost, match=r"no reading at 1\.5 s"):
        player.at(1.5)
    assert player.at(2).energy_microjoules == 3


def test_counters_begin_together_and_one_that_was_recorded_later_is_lost_until_then(tmp_path):
    player = Player(
        tmp_path, "cpu-package-0,0,1", "GPU-1,1000000000,7", "cpu-package-0,2000000000,2", facts=(FACTS, GPU)
    )
    with pytest.raises(CounterLost, match="GPU-1"):
        player.at(0.5, "GPU-1")
    assert player.at(1, "GPU-1").energy_microjoules == 7


def test_a_recording_is_derived_and_moves_no_sooner_than_it_was_read(tmp_path):
    rows = [f"{device},{tenth * SECOND // 10},{tenth}" for tenth in range(5) for device in ("cpu-package-0", "GPU-1")]
    player = Player(tmp_path, *rows, facts=(FACTS, GPU))
    for original in (FACTS, GPU):
        played = player.counters[original.device_id].facts
        assert played == replace(
            original,
            method="replay",
            best_confidence="derived",
            period_ns=SECOND // 10,
            closes_at_will=False,
            begins_anew="the recording begins anew with each meter",
        )
    assert player.recording.methods == ("rapl", "nvml-total-energy")


def test_a_wrap_plays_back_as_one(tmp_path):
    player = Player(tmp_path, "cpu-package-0,0,999900", "cpu-package-0,1000000,100")
    facts = player.counters["cpu-package-0"].facts
    assert difference(player.at(0), player.at(0.001), facts).energy_microjoules == 200


@settings(deadline=None)  # it writes a file
@given(
    energies=st.lists(st.lists(st.none() | st.integers(0, 10**15), min_size=2, max_size=2), min_size=1, max_size=8),
    interval_ns=st.integers(1, SECOND),
)
def test_what_is_recorded_plays_back(lab, energies, interval_ns):
    clock = lab.clock()
    counters = [lab.counter(clock, device_id=device_id) for device_id in ("a", "b")]
    rounds = iter(energies)

    def sleep(seconds):
        clock.now_ns += round(seconds * 1e9)
        for counter, energy in zip(counters, next(rounds), strict=True):
            counter.is_lost, counter.value = energy is None, energy

    text = io.StringIO()
    record(
        counters,
        text,
        rounds=len(energies),
        interval_ns=interval_ns,
        monotonic_ns=clock.monotonic_ns,
        sleep=sleep,
    )
    with lab.folder() as folder:
        file = Path(folder, "recording")
        file.write_text(text.getvalue())
        played = replay(file, monotonic_ns=clock.monotonic_ns).counters
    start_ns = clock.now_ns
    for number, row in enumerate(energies):
        clock.now_ns = start_ns + number * interval_ns
        for counter, energy in zip(played, row, strict=True):
            if energy is None:
                with pytest.raises(CounterLost):
                    counter.read()
            else:
                assert counter.read().energy_microjoules == energy


ROW = "cpu-package-0,5,1"
MALFORMED = {
    "empty": ([], 1, "is not JSON"),
    "no JSON": (["device_id"], 1, "is not JSON"),
    "no counters": (['{"counters": []}'], 1, "names no counter"),
    "no list": (['{"counters": 3}'], 1, "no list"),
    "a fact is missing": (['{"counters": [{"device_id": "d"}]}'], 1, "must give device_id, method"),
    "a device twice": ([_first_line(FACTS, FACTS)], 1, "twice"),
    "no header": ([_first_line(FACTS), ROW], 2, "is not the header"),
    "no second line": ([_first_line(FACTS)], 2, "is not the header"),
    "too few columns": ([_first_line(FACTS), HEADER, ROW, "cpu-package-0,6"], 4, "columns"),
    "an empty line": ([_first_line(FACTS), HEADER, "", ROW], 3, "columns"),
    "no number": ([_first_line(FACTS), HEADER, ROW, "cpu-package-0,6,1.5"], 4, "microjoules: '1.5'"),
    "negative": ([_first_line(FACTS), HEADER, "cpu-package-0,5,-1"], 3, "microjoules: '-1'"),
    "no time": ([_first_line(FACTS), HEADER, "cpu-package-0,,1"], 3, "nanoseconds: ''"),
    "another device": ([_first_line(FACTS), HEADER, ROW, "GPU-1,6,1"], 4, "names 'GPU-1'"),
    "back in time": ([_first_line(FACTS), HEADER, ROW, "cpu-package-0,4,1"], 4, "goes back in time, from 5 to 4"),
    "no reading": ([_first_line(FACTS, GPU), HEADER, ROW], 3, "there is no reading of GPU-1"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_recording_names_its_line(tmp_path, case):
    lines, number, why = MALFORMED[case]
    file = tmp_path / "recording"
    file.write_text("\n".join(lines))
    with pytest.raises(ReplayUnusable, match=rf"recording: line {number} .*{why}"):
        replay(file, monotonic_ns=lambda: 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device_id", ""),
        ("method", 3),
        ("period_ns", 0),
        ("period_ns", True),
        ("wrap_microjoules", -1),
        ("maximum_power_milliwatts", "400"),
        ("error_percent", 101),
        ("error_percent", float("nan")),
        ("best_confidence", "certain"),
        ("best_confidence", []),
        ("closes_at_will", 1),
    ],
)
def test_each_fact_is_checked(tmp_path, name, value):
    file = tmp_path / "recording"
    file.write_text("\n".join([json.dumps({"counters": [{**_recorded(FACTS), name: value}]}), HEADER, ROW]))
    with pytest.raises(ReplayUnusable, match=rf"line 1 .*{name}"):
        replay(file, monotonic_ns=lambda: 0)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ReplayUnusable, match="missing"):
        replay(tmp_path / "missing", monotonic_ns=lambda: 0)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ReplayUnusable, match="binary"):
        replay(tmp_path / "binary", monotonic_ns=lambda: 0)
