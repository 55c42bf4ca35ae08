"""What the meter does when it, a counter or the machine was away: the right account, a reason, and no wrong figure."""

import contextlib
import json
from dataclasses import asdict

import pytest

from metering.counters.replay import replay
from metering.errors import JournalUnwritable


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path, gpu=True)
    yield simulated
    simulated.close()


def _running(lab, host, replica="gpu-a", number=1):
    """A request in the middle of a step."""
    request = lab.request_id(number)
    host.meter.begin(request, replica, b"")
    host.engines[replica].begin(lab.decode(request))
    host.run(100)
    host.meter.tick()
    return request


def _counted(host):
    return {device.device_id: device.counted_microjoules for device in host.meter.report().devices}


def _incidents(host):
    return [incident.what for incident in host.meter.report().incidents]


def _assert_unbilled(host, request, reason):
    before = host.meter.totals().request_microjoules - host.meter.totals().open_microjoules
    energy = host.meter.settle(request, "finished").energy
    assert energy.total_microjoules is None
    assert reason in energy.unavailable_reason
    totals = host.meter.totals()
    assert totals.request_microjoules - totals.open_microjoules == before
    assert totals.sum_microjoules == totals.counted_microjoules


def test_what_is_drawn_while_the_meter_is_away_is_overhead(lab, host):
    request = _running(lab, host)
    before = host.meter.totals()
    host.restart_meter(away_ms=5000)
    after = host.meter.totals()
    drawn = 5000 * 310_000
    assert after.counted_microjoules - before.counted_microjoules == drawn
    assert after.overhead_microjoules - before.overhead_microjoules == drawn + before.open_microjoules
    assert _counted(host) == {lab.gpu: 5100 * 300_000, "cpu-package-0": 5100 * 10_000}
    assert _incidents(host) == ["the meter was away for 5.0 s; 1550.000 J counted meanwhile are overhead"]
    _assert_unbilled(host, request, "restarted")


def test_a_meter_killed_between_two_records_loses_nothing(lab, host):
    _running(lab, host)
    host.run(50)
    host.meter.begin(lab.request_id(2), "cpu-a", b"")
    host.meter.report()
    host.run(33)
    host.restart_meter(away_ms=7)
    assert _counted(host) == {lab.gpu: 190 * 300_000, "cpu-package-0": 190 * 10_000}
    assert host.meter.report().identity_error_microjoules == 0


def test_restarts_add_up(lab, host):
    for _ in range(5):
        host.restart_meter(away_ms=1000)
    assert _counted(host) == {lab.gpu: 5000 * 300_000, "cpu-package-0": 5000 * 10_000}
    assert host.meter.totals().overhead_microjoules == 5000 * 310_000
    assert len(_incidents(host)) == 5


def test_incidents_are_kept_over_restarts_and_bounded(host):
    for _ in range(40):
        host.restart_meter(away_ms=1)
    assert len(_incidents(host)) == 32


def test_after_a_reboot_nothing_is_guessed(lab, host):
    _running(lab, host)
    before = host.meter.totals()
    host.reboot()
    assert host.meter.totals().counted_microjoules == before.counted_microjoules
    lines = _incidents(host)
    assert len(lines) == 2
    assert all(line.endswith("is unknown: the machine was rebooted meanwhile") for line in lines)
    (failed,) = host.meter.unacknowledged(0)
    assert failed.outcome == "failed"
    host.run(100)
    host.meter.tick()
    assert host.meter.totals().counted_microjoules == before.counted_microjoules + 100 * 310_000


def test_a_machine_whose_boots_have_no_name_may_have_been_rebooted(lab, tmp_path):
    host = lab.host(tmp_path)
    host.clock.boot = None
    host.restart_meter()
    host.run(100)
    host.meter.tick()
    host.restart_meter(away_ms=1000)
    assert host.meter.totals().counted_microjoules == 1_000_000
    assert "no name for its boots" in _incidents(host)[-1]
    host.close()


def test_a_journal_of_the_first_version_is_gone_on_from(lab, tmp_path):
    """As the version before this one wrote it: totals without readings, settlements without statements."""
    host = lab.host(tmp_path)
    settled = lab.request_id(1)
    host.meter.begin(settled, "cpu-a", b"")
    host.run(100)
    kept = host.meter.settle(settled, "finished")
    host.close()
    document = json.loads(kept.to_json())
    del document["statement"]
    accounts = {"request_microjoules": 40, "overhead_microjoules": 60, "counted_microjoules": 100}
    accounts |= dict.fromkeys(("idle_microjoules", "foreign_microjoules", "quarantine_microjoules"), 0)
    accounts |= {"trueup_microjoules": 0, "open_microjoules": 0}
    records = [
        {"kind": "version", "version": 1},
        {"kind": "totals", "totals": accounts},
        {"kind": "settled", "settlement": json.dumps(document), "totals": accounts},
    ]
    (tmp_path / "journal.ndjson").write_text("".join(json.dumps(record) + "\n" for record in records))
    host.start_meter()
    (old,) = host.meter.unacknowledged(0)
    assert old.request_id == settled
    assert old.statement is None
    assert host.meter.totals().counted_microjoules == host.meter.totals().sum_microjoules == 100
    assert host.meter.report().identity_error_microjoules == 0
    assert "earlier version" in _incidents(host)[0]
    assert host.meter.report().statement_sequence == 0
    host.run(100)
    host.meter.tick()
    host.restart_meter(away_ms=10)
    assert host.meter.report().counters_microjoules == 100 + 110 * 10_000
    assert host.meter.report().identity_error_microjoules == 0
    host.close()


def test_a_suspend_spoils_its_residents_and_its_energy_is_quarantined(lab, host):
    request = _running(lab, host)
    host.suspend(60, microjoules=1_000_000)
    host.run(100)
    host.meter.tick()
    # Both counters' jumps over the sleep, and what they counted around it.
    assert host.meter.totals().quarantine_microjoules == 2 * 1_000_000 + 100 * 310_000
    (line,) = _incidents(host)
    assert "was suspended for 60.0 s" in line
    _assert_unbilled(host, request, "suspended")
    later = _running(lab, host, number=2)
    assert host.meter.settle(later, "finished").energy.total_microjoules > 0


def test_a_request_that_ends_right_after_a_suspend_is_not_billed_either(lab, host):
    request = _running(lab, host)
    host.suspend(60)
    host.run(5)
    _assert_unbilled(host, request, "suspended")


def test_a_request_on_a_gpu_alone_that_ends_right_after_a_suspend_is_not_billed_either(lab, host):
    """Its counter hasn't been read since."""
    host.close()
    host.processes.pids_of.clear()
    host.start_meter(host_counters=())
    request = _running(lab, host)
    host.suspend(60)
    host.run(5)
    _assert_unbilled(host, request, "suspended")


def test_a_suspend_while_the_meter_is_away_is_told(lab, host):
    _running(lab, host)
    host.suspend(60, microjoules=5_000_000)
    host.restart_meter(away_ms=100)
    assert host.meter.totals().quarantine_microjoules == 2 * 5_000_000 + 100 * 310_000
    assert sum("suspended" in line for line in _incidents(host)) == 2


def test_a_counter_that_stands_still_under_work_is_one_incident_and_bills_nobody(lab, host):
    request = _running(lab, host)
    host.gpu_counter.is_stuck = True
    for _ in range(40):
        host.engines["gpu-a"].begin(lab.decode(request))
        host.run(100)
        host.meter.tick()
    (line,) = _incidents(host)
    assert line == f"{lab.gpu}: the counter stood still for 2.0 s of work"
    report = host.meter.report()
    assert "stood still" in report.devices[0].trouble
    assert report.devices[0].power_milliwatts is None
    _assert_unbilled(host, request, "stood still")
    assert host.meter.totals().quarantine_microjoules == 0
    host.gpu_counter.is_stuck = False
    host.run(100)
    host.meter.tick()
    assert host.meter.totals().quarantine_microjoules == 100 * 300_000
    assert "moved again" in _incidents(host)[-1]


def test_a_host_counter_may_stand_still_while_only_the_gpu_works(lab, host):
    request = _running(lab, host)
    for _ in range(40):
        host.engines["gpu-a"].begin(lab.decode(request))
        host.run(100, watts=0, cpu={})
        host.meter.tick()
    assert _incidents(host) == []
    assert host.meter.settle(request, "finished").energy.total_microjoules > 0


def test_a_lost_device_is_one_incident_and_what_it_drew_is_overhead(lab, host):
    request = _running(lab, host)
    overhead = host.meter.totals().overhead_microjoules
    host.gpu_counter.is_lost = True
    for _ in range(10):
        host.run(100, cpu={"gpu-a": 1})
        host.meter.tick()
    assert _incidents(host) == [f"{lab.gpu}: gone"]
    host.gpu_counter.is_lost = False
    host.run(100, cpu={"gpu-a": 1})
    host.meter.tick()
    assert host.meter.totals().overhead_microjoules - overhead == 1100 * 300_000
    assert len(_incidents(host)) == 2
    assert _counted(host)[lab.gpu] == 1200 * 300_000
    _assert_unbilled(host, request, "gone")


def test_what_cannot_be_recorded_is_not_given_away(lab, tmp_path, full_disk):
    """A meter that dies with an unrecorded settlement makes it anew: nobody may have seen the first."""
    host = lab.host(tmp_path)
    request = lab.request_id(1)
    host.meter.begin(request, "cpu-a", b"")
    host.engines["cpu-a"].begin(lab.decode(request))
    host.run(100)
    host.kill("cpu-a")
    with full_disk(tmp_path / "journal.ndjson"), pytest.raises(JournalUnwritable):
        host.meter.tick()
    assert host.meter.unacknowledged(0) == ()
    with full_disk(tmp_path / "journal.ndjson"), pytest.raises(JournalUnwritable):
        host.meter.settle(request, "failed")
    host.restart_meter(away_ms=10)
    (kept,) = host.meter.unacknowledged(0)
    assert kept.outcome == "failed"
    assert host.meter.report().statement_sequence == 1
    host.close()


def test_energy_that_was_not_read_because_of_a_failure_is_booked_by_the_next_tick(host):
    """Whatever fails before the readings, none is read and then forgotten."""
    host.run(100)
    host.meter.tick()

    def broken():
        raise OSError(24, "Too many open files")

    since_last, host.processes.since_last = host.processes.since_last, broken
    for _ in range(10):
        host.run(100, watts=200)
        with pytest.raises(OSError, match="Too many"):
            host.meter.tick()
    host.processes.since_last = since_last
    host.run(100)
    host.meter.tick()
    report = host.meter.report()
    assert report.identity_error_microjoules == 0
    assert report.counters_microjoules == host.host_counter.value + host.gpu_counter.value


def test_a_recording_begins_anew_with_each_meter(lab, tmp_path):
    """What it played before and plays again are not the two ends of one difference."""
    recording = tmp_path / "recording"
    facts = asdict(lab.counter(lab.clock()).facts) | {"wrap_microjoules": 262_143_328_850}
    del facts["begins_anew"]
    rows = [f"cpu-package-0,{tick * 10**8},{5_000_000 + tick * 1_000_000}" for tick in range(600)]
    header = "device_id,at_ns,energy_microjoules"
    recording.write_text("\n".join([json.dumps({"counters": [facts]}), header, *rows]) + "\n")
    host = lab.host(tmp_path / "meter", replicas=())

    def start():
        host.close()
        counters = replay(recording, monotonic_ns=host.clock.monotonic_ns).counters
        host.start_meter(host_counters=counters)

    start()
    for _ in range(100):
        host.run(100)
        host.meter.tick()
    assert host.meter.totals().counted_microjoules == 100_000_000
    start()
    assert host.meter.totals().counted_microjoules == 100_000_000
    assert host.meter.totals().quarantine_microjoules == 0
    assert _incidents(host)[-1].endswith("is unknown: the recording begins anew with each meter")
    host.close()


def test_on_a_full_disk_the_newest_incidents_wait(host, full_disk):
    for _ in range(10):
        host.run(100)
        host.meter.tick()
    with full_disk(host.folder / "journal.ndjson"):
        for number in range(60):
            host.gpu_counter.reset()
            host.run(100, gpu_watts=200 - number)
            with contextlib.suppress(JournalUnwritable):
                host.meter.tick()
    waiting = host.meter.report().incidents
    assert len(waiting) == 32
    host.meter.tick()
    assert (host.folder / "journal.ndjson").read_text().count('"kind":"incident"') == 32
    host.restart_meter()
    assert host.meter.report().incidents[:31] == waiting[1:]


def test_a_replica_that_dies_on_a_full_disk_is_gone_for_good_all_the_same(lab, tmp_path, full_disk):
    # Not even one departure fits on what is left of the disk.
    wide, returning = "tp-with-a-long-name", "cpu-with-a-long-name"
    host = lab.host(tmp_path, gpus=2, replicas=(wide, returning, "cpu-b"))
    for replica in (wide, returning):
        host.kill(replica)
    host.run(100)
    with full_disk(tmp_path / "journal.ndjson"), pytest.raises(JournalUnwritable):
        host.meter.tick()
    assert set(host.journal.state.replicas) == {wide, returning, "cpu-b"}
    assert set(host.meter._replicas.live) == {"cpu-b"}
    assert len(host.meter._counters.groups) == 3, "its pool is split"
    host.register(returning, 400)
    host.run(100)
    host.meter.tick()
    assert set(host.journal.state.replicas) == {returning, "cpu-b"}
    host.close()


def test_a_replica_that_cannot_be_registered_leaves_no_pool_behind(lab, tmp_path, full_disk):
    host = lab.host(tmp_path, gpus=2, replicas=("tp-a",))
    with full_disk(tmp_path / "journal.ndjson"), pytest.raises(JournalUnwritable):
        host.register("tp-a", 400)
    assert len(host.meter._counters.groups) == 3
    host.meter.tick()
    assert host.journal.state.replicas == {}
    host.close()
