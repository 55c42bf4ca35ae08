"""A replica's GPUs are read and closed together, as one pool, for as long as it owns them alone."""

import itertools

import pytest

from metering.calibration import Calibration


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path, gpus=2, replicas=("tp-a",))
    yield simulated
    simulated.close()


def _decoding(lab, host, replica, number=1):
    request = lab.request_id(number)
    host.meter.begin(request, replica, b"")
    host.engines[replica].begin(lab.decode(request))
    return request


def _groups(host):
    return sorted(group.device_ids for group in host.meter._counters.groups if group.device_ids[0].startswith("GPU"))


def test_a_request_draws_what_all_gpus_of_the_pool_drew(lab, host):
    assert _groups(host) == [(lab.gpu, lab.second_gpu)]
    request = _decoding(lab, host, "tp-a")
    host.run(100, watts=0, gpu_watts=300)
    host.meter.tick()
    host.run(50, watts=0)
    settlement = host.meter.settle(request, "finished")
    assert settlement.energy.total_microjoules == 150 * 2 * 300_000
    assert settlement.energy.estimated_microjoules == 50 * 2 * 300_000
    assert settlement.energy.method == "nvml-total-energy+rapl"
    assert settlement.silicon.device_ids == (lab.gpu, lab.second_gpu)
    (replica,) = host.meter.report().replicas
    assert replica.device_ids == (lab.gpu, lab.second_gpu)


def test_the_gpus_of_a_pool_are_read_at_the_same_moments(host):
    for _ in range(5):
        host.run(100)
        host.meter.tick()
    first, second = ([seen.reading.at_monotonic_ns for seen in counter.reads] for counter in host.gpu_counters)
    assert first == second


def test_the_pool_is_split_when_its_replica_leaves(lab, host):
    request = _decoding(lab, host, "tp-a")
    host.run(90, watts=0)
    host.kill("tp-a")
    host.meter.tick()
    assert host.meter.settle(request, "finished").outcome == "failed"
    host.run(100)
    host.meter.tick()
    assert _groups(host) == [(lab.gpu,), (lab.second_gpu,)]
    host.register("gpu-a", 200)
    other = _decoding(lab, host, "gpu-a", 2)
    host.run(100, watts=0)
    host.meter.tick()
    assert host.meter.settle(other, "finished").energy.total_microjoules == 100 * 300_000
    report = host.meter.report()
    assert [device.counted_microjoules for device in report.devices[:2]] == [290 * 300_000] * 2
    assert report.identity_error_microjoules == 0


def test_a_gpu_that_two_replicas_own_is_not_pooled_with_another(lab, host):
    host.register("gpu-a", 200)
    assert _groups(host) == [(lab.gpu,), (lab.second_gpu,)]
    wide, narrow = _decoding(lab, host, "tp-a", 1), _decoding(lab, host, "gpu-a", 2)
    host.run(100, watts=0)
    host.meter.tick()
    charged = [host.meter.settle(request, "finished").energy.total_microjoules for request in (wide, narrow)]
    assert charged == [100 * 450_000, 100 * 150_000]


def test_a_restarted_meter_pools_again(lab, host):
    host.restart_meter(away_ms=100)
    assert _groups(host) == [(lab.gpu, lab.second_gpu)]
    assert host.meter.totals().overhead_microjoules == 100 * 610_000


def test_one_lost_gpu_spoils_the_pool_and_the_others_energy_is_still_booked(lab, host):
    request = _decoding(lab, host, "tp-a")
    host.gpu_counters[1].is_lost = True
    host.run(100, watts=0)
    host.meter.tick()
    assert "gone" in host.meter.settle(request, "finished").energy.unavailable_reason
    totals = host.meter.totals()
    assert totals.counted_microjoules == totals.overhead_microjoules == 100 * 300_000


def test_the_floor_of_a_pool_is_its_gpus_floors(lab, tmp_path):
    floors = {lab.gpu: 100_000, lab.second_gpu: 50_000}
    host = lab.host(tmp_path, gpus=2, replicas=("tp-a",), calibration=Calibration(floor_milliwatts=floors))
    host.run(100, watts=0, gpu_watts=200)
    host.meter.tick()
    assert host.meter.totals().idle_microjoules == 100 * 150_000
    host.close()


def test_nothing_is_lost_or_counted_twice_however_replicas_come_and_go(lab, tmp_path):
    host = lab.host(tmp_path, gpus=2, replicas=())
    pids = itertools.count(100)
    for number, replica in enumerate(("gpu-a", "tp-a", "gpu-a", "gpu-b", "tp-a", "tp-b")):
        host.register(replica, next(pids))
        host.run(37)
        if number % 2:
            host.kill(replica)
        host.meter.tick()
    host.run(100)
    host.meter.tick()
    assert host.meter.totals().counted_microjoules == (6 * 37 + 100) * 610_000
    assert host.meter.report().identity_error_microjoules == 0
    host.close()
