"""What the meter shows of itself: devices, replicas, their work, and calibration."""

import json
import pickle

import pytest

from metering.calibration import CalibrationRecord, Weights
from metering.errors import CalibrationRefused, UnknownReplica


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path, gpu=True)
    yield simulated
    simulated.close()


def _record(lab, **changes):
    fields = {
        "model": lab.model,
        "silicon": "NVIDIA H100 80GB HBM3",
        "methods": ("nvml-total-energy", "rapl"),
        "weights": Weights(prefill_token=1000, decode_token=1000, context_token=0, allocation_percent=3.5),
        "floor_milliwatts": {lab.gpu: 100_000},
        "fitted_shapes": 9,
        "held_out_shapes": 3,
        "made_unix_ns": 1,
    }
    return CalibrationRecord(**{**fields, **changes})


def test_the_report_is_of_now_and_travels(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    host.engines["gpu-a"].begin(lab.decode(request))
    host.run(100, watts=10, gpu_watts=300)
    host.meter.tick()
    host.run(30, watts=10, gpu_watts=300)
    report = host.meter.report()
    gpu, cpu = report.devices
    assert (gpu.device_id, gpu.method, gpu.counted_microjoules) == (lab.gpu, "nvml-total-energy", 100 * 300_000)
    assert (cpu.device_id, cpu.counted_microjoules) == ("cpu-package-0", 130 * 10_000)
    assert (gpu.power_milliwatts, cpu.power_milliwatts) == (300_000, 10_000)
    assert gpu.reading_microjoules == 100 * 300_000
    assert cpu.read_at_monotonic_ns == host.clock.now_ns
    assert report.totals.counted_microjoules == gpu.counted_microjoules + cpu.counted_microjoules
    assert [replica.resident_requests for replica in report.replicas] == [0, 1]
    assert (report.open_requests, report.settled_requests, report.unacknowledged) == (1, 0, 0)
    assert pickle.loads(pickle.dumps(report)) == report  # noqa: S301 - Ray does so
    document = json.loads(json.dumps(report.to_jsonable()))
    assert document["identity_error_microjoules"] == 0
    assert document["trueup_share"] == document["trueup_bias"] == 0.0
    assert document["totals"]["counted_microjoules"] == report.totals.counted_microjoules
    host.meter.settle(request, "finished")
    after = host.meter.report()
    assert (after.open_requests, after.settled_requests, after.unacknowledged) == (0, 1, 1)
    assert after.replicas[1].resident_requests == 0


def test_shares_of_nothing_are_not_known(host):
    document = host.meter.report().to_jsonable()
    assert document["trueup_share"] is document["trueup_bias"] is None


def test_trueup_is_summed_without_sign_for_each_request(lab, host):
    """One estimate is too low and the other too high: the bias is less than the magnitude."""
    errors = []
    for number, watts in ((1, 400), (2, 100)):
        request = lab.request_id(number)
        host.meter.begin(request, "gpu-a", b"")
        host.engines["gpu-a"].begin(lab.decode(request))
        host.run(100, watts=0, gpu_watts=300)
        host.meter.tick()
        host.run(50, watts=0, gpu_watts=watts)
        estimated = host.meter.settle(request, "finished").energy.estimated_microjoules
        assert host.meter.report().trueup_magnitude_microjoules == sum(map(abs, errors))
        errors.append(50 * watts * 1000 - estimated)
        host.engines["gpu-a"].end()
        host.run(50, watts=0, gpu_watts=0)
        host.meter.tick()
    report = host.meter.report()
    assert errors[0] == 5_000_000
    assert errors[1] < 0
    assert report.totals.trueup_microjoules == sum(errors)
    assert report.trueup_magnitude_microjoules == sum(map(abs, errors))
    assert report.trueup_share == pytest.approx(sum(map(abs, errors)) / 85e6)
    host.restart_meter()
    assert host.meter.report().trueup_magnitude_microjoules == sum(map(abs, errors))
    assert host.meter.report().settled_requests == 2


def test_an_estimate_that_a_restart_leaves_open_counts_whole(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    host.engines["gpu-a"].begin(lab.decode(request))
    host.run(100, watts=0)
    host.meter.tick()
    host.run(20, watts=0)
    host.meter.settle(request, "finished")
    host.restart_meter(away_ms=100)
    report = host.meter.report()
    assert report.trueup_magnitude_microjoules == -report.totals.trueup_microjoules == 20 * 300_000


def test_work_adds_up_whatever_the_weights(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    engine = host.engines["gpu-a"]
    engine.begin(lab.prefill(request, tokens=30, cached=4))
    host.run(60, watts=10, gpu_watts=300)
    engine.begin(lab.decode(request, context=35), lab.decode(lab.request_id(2), context=100))
    host.run(40, watts=10, gpu_watts=300)
    host.meter.tick()
    assert host.meter.work("gpu-a").steps == 1
    engine.end()
    work = host.meter.work("gpu-a")
    assert (work.steps, work.prefill_tokens, work.cached_tokens) == (2, 30, 4)
    assert (work.decode_tokens, work.context_tokens) == (2, 135)
    assert work.busy_ns == 100_000_000
    # The GPU's energy, and of the host's the half that this replica's CPU time stands for.
    assert work.active_microjoules == 100 * 300_000 + 100 * 5_000
    host.meter.calibrate(_record(lab))
    engine.begin(lab.decode(request, context=36))
    host.run(100, watts=0, gpu_watts=300)
    host.meter.tick()
    engine.end()
    done = host.meter.work("gpu-a").since(work)
    assert (done.steps, done.decode_tokens, done.context_tokens) == (1, 1, 36)
    assert done.active_microjoules == 100 * 200_000
    assert host.meter.report().replicas[1].work == host.meter.work("gpu-a")
    with pytest.raises(UnknownReplica):
        host.meter.work("nowhere")


def test_a_calibration_applies_from_the_next_interval_on(lab, host):
    small, large = lab.request_id(1), lab.request_id(2)
    for request in (small, large):
        host.meter.begin(request, "gpu-a", b"")
    engine = host.engines["gpu-a"]
    engine.begin(lab.decode(small), lab.prefill(large, tokens=8))
    host.run(100, watts=0, gpu_watts=900)
    host.meter.calibrate(_record(lab))
    host.run(100, watts=0, gpu_watts=1000)
    host.meter.tick()
    engine.end()
    energy = {request: host.meter.settle(request, "finished").energy for request in (small, large)}
    # 90 J as 1 : 1 before, and then 90 J as 1 : 8, with a floor of 10 J to share.
    decode = 8_000_000 + 40 * 1_000
    before = 90_000_000 * decode // (decode + 8_000_000)
    assert energy[small].active_microjoules == pytest.approx(before + 10_000_000, abs=2)
    assert energy[small].floor_microjoules == energy[large].floor_microjoules == 5_000_000
    assert energy[small].errors.allocation_percent == 3.5
    report = host.meter.report()
    assert [replica.is_calibrated for replica in report.replicas] == [True, True]
    assert report.devices[0].floor_milliwatts == 100_000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "another"}, "serves no model another"),
        ({"silicon": "NVIDIA A100"}, "this is NVIDIA H100"),
        ({"methods": ("util-tdp",)}, "measured by util-tdp"),
    ],
)
def test_a_record_of_another_model_silicon_or_counter_is_refused(lab, host, changes, reason):
    with pytest.raises(CalibrationRefused, match=reason):
        host.meter.calibrate(_record(lab, **changes))
    report = host.meter.report()
    assert not any(replica.is_calibrated for replica in report.replicas)
    assert report.devices[0].floor_milliwatts is None


def test_a_settlement_is_acknowledged_once(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    settlement = host.meter.settle(request, "aborted")
    assert host.meter.acknowledge(settlement)
    assert not host.meter.acknowledge(settlement)
    assert host.meter.model_of("cpu-a") == lab.model
    assert host.meter.model_of("nowhere") is None


def test_energy_that_was_read_and_never_booked_is_an_identity_error(lab, host):
    """The book sums to itself whatever happens; the counters know better."""

    def broken():
        raise RuntimeError("the inbox is broken")

    host.run(100)
    host.meter.tick()
    host.run(100)
    drain, host.inbox.drain = host.inbox.drain, broken
    with pytest.raises(RuntimeError):
        host.meter.tick()
    host.inbox.drain = drain
    report = host.meter.report()
    assert report.totals.sum_microjoules == report.totals.counted_microjoules
    assert report.identity_error_microjoules == -100 * 310_000
    host.run(100)
    host.meter.tick()
    assert host.meter.report().to_jsonable()["identity_error_microjoules"] == -100 * 310_000
    host.restart_meter()
    assert host.meter.report().identity_error_microjoules == -100 * 310_000


def test_a_counter_that_is_gone_for_good_keeps_its_place_in_the_identity(host):
    host.run(100)
    host.meter.tick()
    host.close()
    host.processes.pids_of.clear()
    host.start_meter(host_counters=())
    report = host.meter.report()
    assert report.counters_microjoules == 100 * 310_000
    assert sum(device.counted_microjoules for device in report.devices) == 100 * 300_000
    assert report.identity_error_microjoules == 0
