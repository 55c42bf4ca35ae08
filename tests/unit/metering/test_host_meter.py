"""The meter as its callers see it: register, begin, tick, settle, acknowledge."""

import pytest

from metering.calibration import Calibration
from metering.engine_steps import StepsLost
from metering.errors import (
    ProcessGone,
    RequestAlreadySettled,
    SettlementBacklogFull,
    UnknownReplica,
    UnknownRequest,
)
from metering.metered_replica import ReplicaRegistration
from metering.statements import check_statement


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path)
    yield simulated
    simulated.close()


def _run_alone(lab, host, number=1, replica="cpu-a", steps=10, context=b"who"):
    request = lab.request_id(number)
    host.meter.begin(request, replica, context)
    host.engines[replica].begin(lab.prefill(request))
    host.run(50)
    for _ in range(steps - 1):
        host.engines[replica].begin(lab.decode(request))
        host.run(50)
        host.meter.tick()
    host.engines[replica].end()
    return request


def test_a_request_alone_gets_all_that_its_replica_drew(lab, host):
    request = _run_alone(lab, host)
    settlement = host.meter.settle(request, "finished")
    assert settlement.energy.total_microjoules == 10 * 50 * 10_000
    assert settlement.energy.active_microjoules + settlement.energy.floor_microjoules == 5_000_000
    assert settlement.energy.estimated_microjoules == 0
    assert settlement.energy.method == "rapl"
    assert settlement.energy.scope == ("cpu-package",)
    assert settlement.energy.mean_batch_thousandths == 1000
    assert settlement.energy.peak_power_milliwatts == 10_000
    assert settlement.energy.errors.counter_percent == 5.0
    assert settlement.energy.errors.allocation_reason == "not calibrated"
    assert settlement.tokens.input == 34
    assert settlement.tokens.output == 10
    assert settlement.duration_ns == 500_000_000
    assert settlement.silicon.device_ids == ("cpu-package-0",)
    assert settlement.context == b"who"
    totals = host.meter.totals()
    assert totals.request_microjoules == totals.counted_microjoules == totals.sum_microjoules == 5_000_000


def test_settling_again_gives_the_same_settlement(lab, host):
    request = _run_alone(lab, host)
    first = host.meter.settle(request, "finished")
    host.run(300)
    host.meter.tick()
    assert host.meter.settle(request, "aborted") == first
    host.meter.acknowledge(first)
    host.meter.acknowledge(first)
    assert host.meter.settle(request, "finished") == first
    assert host.meter.unacknowledged(0) == ()


def test_concurrent_requests_share_and_are_not_each_charged_for_all(lab, host):
    requests = [lab.request_id(number) for number in range(8)]
    for request in requests:
        host.meter.begin(request, "cpu-a", b"")
    for _ in range(20):
        host.engines["cpu-a"].begin(*(lab.decode(request) for request in requests))
        host.run(30)
        host.meter.tick()
    host.engines["cpu-a"].end()
    charged = [host.meter.settle(request, "finished").energy.total_microjoules for request in requests]
    assert sum(charged) == pytest.approx(20 * 30 * 10_000, abs=8)
    assert max(charged) - min(charged) <= 1


def test_a_queued_request_gets_nothing(lab, host):
    queued = lab.request_id(99)
    host.meter.begin(queued, "cpu-a", b"")
    _run_alone(lab, host)
    settlement = host.meter.settle(queued, "aborted")
    assert settlement.energy.total_microjoules == 0
    assert settlement.energy.unavailable_reason is None
    assert settlement.energy.mean_batch_thousandths is None
    assert settlement.tokens.input == settlement.tokens.output == 0


def test_other_processes_are_foreign_and_the_mesh_itself_overhead(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100, cpu={"cpu-a": 1}, foreign=2, overhead=1)
    host.meter.tick()
    assert host.meter.settle(request, "finished").energy.total_microjoules == 250_000
    totals = host.meter.totals()
    assert totals.foreign_microjoules == 500_000
    assert totals.overhead_microjoules == 250_000


def test_energy_without_a_step_is_overhead_and_an_idle_host_is_idle(host):
    host.run(100, cpu={"cpu-a": 1})
    host.meter.tick()
    assert host.meter.totals().overhead_microjoules == 1_000_000
    host.run(100, cpu={"cpu-a": 0})
    host.meter.tick()
    assert host.meter.totals().idle_microjoules == 1_000_000


def test_a_step_after_the_settlement_is_overhead(lab, host):
    request = _run_alone(lab, host)
    charged = host.meter.settle(request, "finished").energy.total_microjoules
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100)
    host.meter.tick()
    totals = host.meter.totals()
    assert totals.request_microjoules == charged
    assert totals.overhead_microjoules == 1_000_000


def test_a_cached_prompt_costs_less(lab, host):
    cold, warm = lab.request_id(1), lab.request_id(2)
    for request in (cold, warm):
        host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.prefill(cold, tokens=100), lab.prefill(warm, tokens=10, cached=90))
    host.run(100)
    host.meter.tick()
    cold_charge, warm_charge = (host.meter.settle(request, "finished") for request in (cold, warm))
    assert warm_charge.tokens.cached == 90
    assert warm_charge.tokens.input == cold_charge.tokens.input == 100
    assert 0 < warm_charge.energy.total_microjoules < cold_charge.energy.total_microjoules / 5


def test_a_gpu_receipt_is_final_at_once_and_the_difference_goes_to_trueup(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True)
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    engine = host.engines["gpu-a"]
    engine.begin(lab.decode(request))
    host.run(100, gpu_watts=300, cpu={"gpu-a": 1})
    host.meter.tick()
    host.run(40, gpu_watts=500, cpu={"gpu-a": 1})
    engine.end()
    settlement = host.meter.settle(request, "finished")
    energy = settlement.energy
    assert energy.method == "nvml-total-energy+rapl"
    assert energy.scope == ("gpu", "cpu-package")
    assert energy.estimated_microjoules == 40 * 300_000
    assert energy.total_microjoules == 100 * 300_000 + 140 * 10_000 + 40 * 300_000
    assert energy.method_confidence == "estimated"
    assert settlement.silicon.model == "NVIDIA H100 80GB HBM3"
    assert host.meter.totals().trueup_microjoules == -40 * 300_000
    host.run(60, gpu_watts=300)
    host.meter.tick()
    totals = host.meter.totals()
    # The open 100 ms counted 20 J + 18 J, all of it in the request's last step.
    assert totals.trueup_microjoules == 38_000_000 - 12_000_000
    assert totals.sum_microjoules == totals.counted_microjoules
    host.close()


def test_a_long_gpu_request_alone_is_apportioned_only_by_the_cpu_part(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True)
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    for _ in range(30):
        host.engines["gpu-a"].begin(lab.decode(request))
        host.run(100)
        host.meter.tick()
    settlement = host.meter.settle(request, "finished")
    assert settlement.energy.method_confidence == "measured-apportioned"
    assert settlement.energy.mean_batch_thousandths == 1000
    assert settlement.energy.peak_power_milliwatts == 310_000
    host.close()


def test_the_floor_goes_to_residents_and_to_idle_without_any(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True, calibration=Calibration(floor_milliwatts={lab.gpu: 100_000}))
    host.run(100, watts=0, gpu_watts=100)
    host.meter.tick()
    assert host.meter.totals().idle_microjoules == 10_000_000
    busy, waiting = lab.request_id(1), lab.request_id(2)
    for request in (busy, waiting):
        host.meter.begin(request, "gpu-a", b"")
    host.engines["gpu-a"].begin(lab.decode(busy), lab.decode(waiting))
    host.engines["gpu-a"].begin(lab.decode(busy))
    host.run(100, watts=0, gpu_watts=300)
    host.meter.tick()
    active, floor = 20_000_000, 5_000_000
    energy = host.meter.settle(busy, "finished").energy
    assert (energy.active_microjoules, energy.floor_microjoules) == (active, floor)
    assert host.meter.settle(waiting, "finished").energy.total_microjoules == floor
    host.close()


def test_a_counter_reset_makes_the_energy_unavailable_and_unbilled(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True)
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    host.engines["gpu-a"].begin(lab.decode(request))
    host.run(100)
    host.meter.tick()
    host.run(100)
    host.gpu_counter.value = 5_000_000
    host.meter.tick()
    energy = host.meter.settle(request, "finished").energy
    assert energy.total_microjoules is None
    assert "reset" in energy.unavailable_reason
    assert energy.method_confidence == "unavailable"
    totals = host.meter.totals()
    assert totals.request_microjoules == 0
    assert totals.sum_microjoules == totals.counted_microjoules
    host.close()


def test_a_jump_is_quarantined_and_billed_to_nobody(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100)
    host.host_counter.add(10**12)
    host.meter.tick()
    energy = host.meter.settle(request, "finished").energy
    assert energy.total_microjoules is None
    assert "jumped" in energy.unavailable_reason
    assert host.meter.totals().quarantine_microjoules == 10**12 + 1_000_000


def test_a_lost_device_is_a_reason_and_comes_back(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True)
    host.gpu_counter.is_lost = True
    first = _run_alone(lab, host, 1, "gpu-a")
    assert "gone" in host.meter.settle(first, "finished").energy.unavailable_reason
    host.gpu_counter.is_lost = False
    host.run(100)
    host.meter.tick()
    host.run(100)
    host.meter.tick()
    second = _run_alone(lab, host, 2, "gpu-a")
    assert host.meter.settle(second, "finished").energy.total_microjoules > 0
    host.close()


def test_unknown_cpu_time_is_not_guessed(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.processes.is_lost = True
    host.run(100)
    host.meter.tick()
    host.processes.is_lost = False
    energy = host.meter.settle(request, "finished").energy
    assert energy.total_microjoules is None
    assert "/proc/stat" in energy.unavailable_reason


def test_without_a_counter_energy_is_unavailable_and_the_operator_is_told_once(lab, tmp_path, caplog):
    host = lab.host(tmp_path, replicas=())
    host.journal.close()
    host.start_meter(host_counters=())
    host.register("cpu-a", 100)
    for number in range(3):
        request = _run_alone(lab, host, number)
        settlement = host.meter.settle(request, "finished")
        assert settlement.energy.total_microjoules is None
        assert settlement.energy.unavailable_reason == "no published TDP is known for 'AMD EPYC'"
        assert check_statement(settlement.statement, host.key.public_key).microjoules is None
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in told] == [
        "host-1: requests on this silicon are NOT BILLED: cpu: no published TDP is known for 'AMD EPYC'"
    ]
    assert "cpu: no published TDP is known for 'AMD EPYC'" in [each.what for each in host.meter.report().incidents]
    host.close()


def test_a_gpu_without_a_counter_is_named(lab, host):
    host.processes.running[300] = 7
    host.meter.register(ReplicaRegistration(replica="gpu-b", pid=300, model="m", device_ids=("GPU-unknown",)))
    host.meter.begin(lab.request_id(1), "gpu-b", b"")
    energy = host.meter.settle(lab.request_id(1), "aborted").energy
    assert energy.unavailable_reason == "no energy counter for GPU-unknown"


def test_open_requests_of_a_dead_replica_fail_and_become_overhead(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"context")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100)
    host.kill("cpu-a")
    host.meter.tick()
    (failed,) = host.meter.unacknowledged(0)
    assert failed.outcome == "failed"
    assert failed.energy.total_microjoules == 1_000_000
    assert host.meter.settle(request, "finished") == failed
    totals = host.meter.totals()
    assert totals.request_microjoules == 0
    assert totals.overhead_microjoules == totals.counted_microjoules == 1_000_000
    with pytest.raises(UnknownReplica):
        host.meter.begin(lab.request_id(2), "cpu-a", b"")


def test_a_failed_attempt_can_begin_again_elsewhere(lab, tmp_path):
    host = lab.host(tmp_path, replicas=("cpu-a", "cpu-b"))
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"first")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100, cpu={"cpu-a": 1})
    host.meter.begin(request, "cpu-b", b"second")
    host.engines["cpu-b"].begin(lab.decode(request))
    host.run(100, cpu={"cpu-b": 1})
    settlement = host.meter.settle(request, "finished")
    assert settlement.replica == "cpu-b"
    assert settlement.context == b"second"
    assert settlement.energy.total_microjoules == 1_000_000
    failed, finished = host.meter.unacknowledged(0)
    assert finished == settlement
    assert (failed.replica, failed.context, failed.outcome) == ("cpu-a", b"first", "failed")
    assert failed.energy.total_microjoules == 1_000_000
    with pytest.raises(RequestAlreadySettled):
        host.meter.begin(request, "cpu-a", b"third")
    host.close()


def test_beginning_twice_changes_nothing(lab, host):
    host.meter.begin(lab.request_id(1), "cpu-a", b"x")
    host.run(100)
    host.meter.begin(lab.request_id(1), "cpu-a", b"x")
    assert host.meter.settle(lab.request_id(1), "aborted").duration_ns == 100_000_000
    assert len(host.meter.unacknowledged(0)) == 1


def test_a_replica_that_comes_back_under_its_name_replaces_the_old_one(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.register("cpu-a", 222)
    assert host.meter.settle(request, "finished").outcome == "failed"
    second = _run_alone(lab, host, 2)
    assert host.meter.settle(second, "finished").energy.total_microjoules > 0


def test_settlements_wait_until_they_are_old_enough(lab, host):
    request = _run_alone(lab, host)
    settlement = host.meter.settle(request, "finished")
    assert host.meter.unacknowledged(1_000_000_000) == ()
    host.run(1000)
    assert host.meter.unacknowledged(1_000_000_000) == (settlement,)


def test_a_full_backlog_takes_no_more_work(lab, tmp_path):
    host = lab.host(tmp_path, most_unacknowledged=1)
    host.meter.begin(lab.request_id(1), "cpu-a", b"")
    settlement = host.meter.settle(lab.request_id(1), "aborted")
    with pytest.raises(SettlementBacklogFull):
        host.meter.begin(lab.request_id(2), "cpu-a", b"")
    host.meter.acknowledge(settlement)
    host.meter.begin(lab.request_id(2), "cpu-a", b"")
    host.close()


def test_wrong_calls_are_named(lab, host):
    with pytest.raises(UnknownRequest):
        host.meter.settle(lab.request_id(5), "finished")
    with pytest.raises(ValueError, match="outcome must be one of"):
        host.meter.settle(lab.request_id(5), "done")
    with pytest.raises(UnknownReplica):
        host.meter.begin(lab.request_id(5), "nowhere", b"")
    with pytest.raises(ProcessGone):
        host.meter.register(ReplicaRegistration(replica="x", pid=999, model="m", device_ids=()))


def test_a_restarted_meter_keeps_totals_settlements_and_replicas(lab, host):
    settled, running = _run_alone(lab, host, 1), lab.request_id(2)
    kept = host.meter.settle(settled, "finished")
    host.meter.begin(running, "cpu-a", b"running")
    host.engines["cpu-a"].begin(lab.decode(running))
    host.run(100)
    host.meter.tick()
    before = host.meter.totals()
    host.restart_meter()
    assert host.meter.unacknowledged(10**12) == (kept,)
    after = host.meter.totals()
    assert after.counted_microjoules == before.counted_microjoules == after.sum_microjoules
    assert after.request_microjoules == kept.energy.total_microjoules
    settlement = host.meter.settle(running, "finished")
    assert settlement.context == b"running"
    assert settlement.duration_ns == 100_000_000
    assert "restarted" in settlement.energy.unavailable_reason


def test_a_replica_that_died_while_the_meter_was_down_is_settled(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.kill("cpu-a")
    host.restart_meter()
    (failed,) = host.meter.unacknowledged(0)
    assert failed.request_id == request
    assert failed.outcome == "failed"
    with pytest.raises(UnknownReplica):
        host.meter.begin(lab.request_id(2), "cpu-a", b"")


def test_lost_step_reports_lower_the_confidence(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.inbox.events.append(StepsLost(replica="cpu-a", messages=3))
    host.run(100)
    host.meter.tick()
    assert host.meter.settle(request, "finished").energy.method_confidence == "estimated"


def test_the_hosts_silicon_is_what_was_detected(host):
    assert host.meter.silicon.vendor == "amd"
    assert host.meter.silicon.model == "AMD EPYC"
    assert host.meter.silicon.node == "host-1"


def test_intervals_close_when_they_are_due_and_not_with_every_tick(host):
    host.run(80)
    host.meter.tick()
    assert host.meter.totals().counted_microjoules == 0
    host.run(10)
    host.meter.tick()
    assert host.meter.totals().counted_microjoules == 900_000


def test_what_was_drawn_before_a_request_began_is_not_its(lab, host):
    host.run(80)
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(20)
    assert host.meter.settle(request, "finished").energy.total_microjoules == 200_000


def test_a_host_is_idle_as_soon_as_its_last_request_is_settled(lab, tmp_path):
    """Also while a slower counter still has the interval open in which the request ended."""
    host = lab.host(tmp_path, gpu=True)
    host.run(60, cpu={})
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(20, gpu_watts=0, cpu={"cpu-a": 1})
    host.engines["cpu-a"].end()
    host.meter.settle(request, "finished")
    idle_before = host.meter.totals().idle_microjoules
    host.run(15, gpu_watts=0, cpu={})
    host.meter.begin(lab.request_id(2), "cpu-a", b"")
    host.meter.settle(lab.request_id(2), "aborted")
    assert host.meter.totals().idle_microjoules - idle_before == 150_000
    host.close()


def test_a_replica_that_dies_in_a_step_drew_until_then_and_not_longer(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True)
    host.register("gpu-b", 300)
    doomed, other = lab.request_id(1), lab.request_id(2)
    host.meter.begin(doomed, "gpu-a", b"")
    host.meter.begin(other, "gpu-b", b"")
    host.engines["gpu-a"].begin(lab.decode(doomed))
    host.engines["gpu-b"].begin(lab.decode(other))
    host.run(25, watts=0)
    host.kill("gpu-a")
    host.run(1, watts=0)
    host.register("gpu-a", 301)
    host.run(78, watts=0)
    host.meter.tick()
    # 104 ms at 300 W: two steps until 26 ms, one until the end.
    energy = host.meter.settle(other, "finished").energy
    assert energy.total_microjoules == pytest.approx(104 * 300_000 * 104 / 130, rel=1e-6)
    host.close()


def test_a_late_word_about_a_failed_attempt_does_not_drop_the_later_ones_bill(lab, tmp_path):
    host = lab.host(tmp_path, replicas=("cpu-a", "cpu-b"))
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    failed = host.meter.settle(request, "failed", replica="cpu-a")
    host.meter.begin(request, "cpu-b", b"")
    finished = host.meter.settle(request, "finished", replica="cpu-b")
    assert host.meter.unacknowledged(0) == (failed, finished)
    assert host.meter.acknowledge(failed)
    assert not host.meter.acknowledge(failed)
    assert host.meter.unacknowledged(0) == (finished,)
    host.restart_meter()
    assert host.meter.unacknowledged(0) == (finished,)
    assert host.meter.acknowledge(finished)
    host.close()


def test_a_replica_gets_no_other_ones_settlement(lab, tmp_path):
    host = lab.host(tmp_path, replicas=("cpu-a", "cpu-b"))
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-b", b"")
    settlement = host.meter.settle(request, "finished", replica="cpu-b")
    with pytest.raises(UnknownRequest, match="of cpu-a"):
        host.meter.settle(request, "aborted", replica="cpu-a")
    host.meter.acknowledge(settlement)
    with pytest.raises(UnknownRequest, match="of cpu-a"):
        host.meter.settle(request, "aborted", replica="cpu-a")
    assert host.meter.settle(request, "finished") == settlement
    host.close()
