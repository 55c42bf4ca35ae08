"""What a request is charged for the time that no counter has closed yet, and when that can't be known."""

import random

import pytest

from metering.calibration import Calibration

SLOW = {"closes_at_will": False, "period_ns": 100_000_000}


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path, gpu=True)
    yield simulated
    simulated.close()


def _short(lab, host, number, *, milliseconds=60, replica="gpu-a", **power):
    """A request of one step, settled as soon as that ends."""
    request = lab.request_id(number)
    host.meter.begin(request, replica, b"")
    host.engines[replica].begin(lab.decode(request))
    host.run(milliseconds, cpu={}, **power)
    host.engines[replica].end()
    return host.meter.settle(request, "finished").energy


def _learn(lab, host, number=100):
    """Until an interval with a step has been closed."""
    request = lab.request_id(number)
    host.meter.begin(request, "gpu-a", b"")
    host.engines["gpu-a"].begin(lab.decode(request))
    host.run(100)
    host.meter.tick()
    host.engines["gpu-a"].end()
    host.meter.settle(request, "finished")


@pytest.mark.parametrize("method", ["ioreport", "replay"])
def test_a_host_whose_counters_never_close_at_will_settles(lab, tmp_path, method):
    host = lab.host(tmp_path, host={**SLOW, "method": method})
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100, foreign=1)
    host.meter.tick()
    host.run(50, foreign=1)
    settlement = host.meter.settle(request, "finished")
    assert settlement.energy.total_microjoules == 150 * 5_000
    assert settlement.energy.estimated_microjoules == 50 * 5_000
    assert settlement.duration_ns == 150_000_000
    host.run(50, foreign=1)
    host.kill("cpu-a")
    host.meter.tick()
    assert host.meter.report().identity_error_microjoules == 0
    host.close()


def test_a_lost_counter_bills_no_short_request(lab, host):
    _learn(lab, host)
    host.gpu_counter.is_lost = True
    for _ in range(3):
        host.run(100)
        host.meter.tick()
    billed = host.meter.totals().request_microjoules
    for number in range(5):
        energy = _short(lab, host, number)
        assert energy.total_microjoules is None
        assert energy.unavailable_reason == f"{lab.gpu}: gone"
        host.run(40)
        host.meter.tick()
    assert host.meter.totals().request_microjoules == billed
    host.gpu_counter.is_lost = False
    for _ in range(2):
        host.run(100)
        host.meter.tick()
    assert _short(lab, host, 6).total_microjoules == 60 * 310_000 - 60 * 10_000


def test_a_stuck_counter_bills_no_short_request(lab, host):
    _learn(lab, host)
    host.gpu_counter.is_stuck = True
    for number in range(40):
        last = _short(lab, host, number, milliseconds=90)
        host.run(10, cpu={})
        host.meter.tick()
    assert last.total_microjoules is None
    assert "stood still" in last.unavailable_reason
    assert host.meter.report().devices[0].power_milliwatts is None
    host.gpu_counter.is_stuck = False
    for _ in range(2):
        host.run(100, cpu={})
        host.meter.tick()
    assert "can't be estimated" in _short(lab, host, 50).unavailable_reason, "the zeros told nothing"
    host.run(40, gpu_watts=0, cpu={})
    host.meter.tick()
    assert _short(lab, host, 51).estimated_microjoules == 60 * 300_000


def test_cpu_times_that_cannot_be_read_bill_no_short_request(lab, tmp_path):
    host = lab.host(tmp_path, host={**SLOW, "method": "ioreport"})
    host.engines["cpu-a"].begin()
    host.processes.is_lost = True
    host.run(100)
    host.meter.tick()
    assert "/proc/stat" in _short(lab, host, 1, replica="cpu-a").unavailable_reason
    host.close()


def test_a_queued_request_has_drawn_nothing_whatever_the_counters_do(lab, host):
    host.gpu_counter.is_lost = True
    host.run(100)
    host.meter.tick()
    host.meter.begin(lab.request_id(1), "gpu-a", b"")
    assert host.meter.settle(lab.request_id(1), "aborted").energy.total_microjoules == 0


def test_before_a_step_was_measured_a_short_request_cannot_be_estimated(lab, host):
    """As after each start of the meter; idle intervals tell nothing of it."""
    _learn(lab, host)
    host.restart_meter()
    for _ in range(5):
        host.run(100)
        host.meter.tick()
    energy = _short(lab, host, 1)
    assert energy.total_microjoules is None
    assert "can't be estimated" in energy.unavailable_reason
    host.run(40, cpu={})
    host.meter.tick()
    totals = host.meter.totals()
    assert (totals.request_microjoules, totals.trueup_microjoules) == (100 * 305_000, 0), "it was billed to nobody"
    assert _short(lab, host, 2).estimated_microjoules > 0


def test_the_peak_is_of_all_devices_or_not_known(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    host.engines["gpu-a"].begin(lab.decode(request))
    host.run(100)
    host.meter.tick()
    assert host.meter.settle(request, "finished").energy.peak_power_milliwatts == 310_000
    host.gpu_counter.is_lost = True
    host.run(100)
    host.meter.tick()
    assert host.meter._replicas.get("gpu-a").power_milliwatts is None
    assert host.meter._replicas.get("cpu-a").power_milliwatts == 10_000


def test_what_is_estimated_is_the_power_of_steps_and_not_the_mean_with_the_idle_time(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True, calibration=Calibration(floor_milliwatts={lab.gpu: 60_000}))
    _short(lab, host, 1, milliseconds=20, watts=0, gpu_watts=300)
    host.run(80, watts=0, gpu_watts=60)
    host.meter.tick()
    host.run(10, watts=0, gpu_watts=60)
    energy = _short(lab, host, 2, milliseconds=50, watts=0, gpu_watts=300)
    assert energy.floor_microjoules == 50 * 60_000
    assert energy.active_microjoules == 50 * 240_000
    host.run(40, watts=0, gpu_watts=60)
    host.meter.tick()
    assert host.meter.report().trueup_magnitude_microjoules == 0
    host.close()


class Load:
    """Requests that come one after the other on several slots, at a power that follows how many run."""

    def __init__(self, lab, host, *, slots, lengths_ms, gaps_ms, seed=1):
        self.lab, self.host = lab, host
        self.random = random.Random(seed)
        self.lengths_ms, self.gaps_ms = lengths_ms, gaps_ms
        self.slots = [[None, self.random.randint(*gaps_ms)] for _ in range(slots)]
        self.number = 0

    def play(self, seconds):
        tick_ms = 0
        for now_ms in range(0, seconds * 1000, 20):
            for slot in self.slots:
                self._advance(slot)
            running = [request for request, _ in self.slots if request is not None]
            engine = self.host.engines["gpu-a"]
            engine.begin(*map(self.lab.decode, running)) if running else engine.end()
            noise = self.random.uniform(0.9, 1.1)
            self.host.run(20, watts=0, gpu_watts=70 + int((200 + 30 * len(running)) * noise) * bool(running), cpu={})
            self.host.gpu_counter.pass_time()
            if now_ms >= tick_ms:
                self.host.meter.tick()
                tick_ms = now_ms + 100 + self.random.choice((0, 0, 0, 20))
        return self.host.meter.report()

    def _advance(self, slot):
        slot[1] -= 20
        if slot[1] > 0:
            return
        if slot[0] is None:
            self.number += 1
            slot[:] = [self.lab.request_id(self.number), self.random.randint(*self.lengths_ms)]
            self.host.meter.begin(slot[0], "gpu-a", b"")
        else:
            self.host.meter.acknowledge(self.host.meter.settle(slot[0], "finished"))
            slot[:] = [None, self.random.randint(*self.gaps_ms)]


@pytest.mark.parametrize("floor", [{}, {"GPU-0a1b": 70_000, "cpu-package-0": 0}], ids=["uncalibrated", "calibrated"])
@pytest.mark.parametrize("steps", [False, True], ids=["smooth", "in periods"])
def test_ten_minutes_of_requests_of_seconds_are_estimated_to_a_percent(lab, tmp_path, floor, steps):
    host = lab.host(tmp_path, gpu=True, gpu_steps=steps, calibration=Calibration(floor_milliwatts=floor))
    load = Load(lab, host, slots=4, lengths_ms=(1000, 10_000), gaps_ms=(100, 8000))
    report = load.play(600)
    assert report.settled_requests > 200
    assert 0 < report.trueup_share < 0.01
    assert abs(report.trueup_bias) <= report.trueup_share
    assert report.identity_error_microjoules == 0
    host.close()
