"""A GPU that isn't the replica's alone lowers what its requests' figures may claim."""

import pytest


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path, gpu=True)
    yield simulated
    simulated.close()


def _request(lab, host, number, replica="gpu-a", ticks=12):
    request = lab.request_id(number)
    host.meter.begin(request, replica, b"")
    for _ in range(ticks):
        host.engines[replica].begin(lab.decode(request))
        host.run(100)
        host.meter.tick()
    return host.meter.settle(request, "finished").energy.method_confidence


def test_a_shared_gpu_makes_its_residents_figures_estimates(lab, host):
    assert _request(lab, host, 1) == "measured-apportioned"
    host.sharing.reason = f"{lab.gpu}: process 4242 is not ours"
    assert _request(lab, host, 2) == "estimated"
    assert _request(lab, host, 3, "cpu-a") == "measured-apportioned"
    shared = {replica.replica: replica.shared for replica in host.meter.report().replicas}
    assert shared == {"cpu-a": None, "gpu-a": f"{lab.gpu}: process 4242 is not ours"}


def test_a_request_that_shared_for_a_while_shared(lab, host):
    request = lab.request_id(1)
    host.meter.begin(request, "gpu-a", b"")
    for number in range(40):
        host.sharing.reason = "MPS" if 10 <= number < 22 else None
        host.engines["gpu-a"].begin(lab.decode(request))
        host.run(100)
        host.meter.tick()
    assert host.meter.report().replicas[1].shared is None
    assert host.meter.settle(request, "finished").energy.method_confidence == "estimated"
    assert _request(lab, host, 2) == "measured-apportioned"


def test_devices_are_asked_once_a_second_with_the_owners_processes(lab, host):
    host.register("gpu-b", 333)
    host.sharing.asked.clear()
    for _ in range(50):
        host.run(100)
        host.meter.tick()
    assert len(host.sharing.asked) == 2 * 5
    assert set(host.sharing.asked) == {frozenset({101, 333})}


def test_a_gpu_with_another_replica_on_it_is_apportioned_at_most(lab, host):
    host.close()
    host.processes.pids_of.clear()
    host.start_meter(host_counters=())
    assert _request(lab, host, 1) == "measured-direct"
    request = lab.request_id(2)
    host.meter.begin(request, "gpu-a", b"")
    for tick in range(30):
        if tick == 5:
            host.register("gpu-b", 333)
        if tick == 10:
            host.kill("gpu-b")
        host.engines["gpu-a"].begin(lab.decode(request))
        host.run(100)
        host.meter.tick()
    assert host.meter.settle(request, "finished").energy.method_confidence == "measured-apportioned"
    assert _request(lab, host, 3) == "measured-direct"
