"""The division of one interval, as a pure function."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from metering.attribution import (
    GRAINS_PER_MICROJOULE,
    Interval,
    ReplicaLoad,
    Resident,
    split_device,
    split_host,
)
from metering.calibration import Weights
from metering.cpu_shares import CpuUse
from metering.engine_steps import RequestWork
from metering.replica_steps import StepSpan, StepWork

_weights = Weights()


def _interval(energy=1_000_000, floor=None):
    return Interval(begin_ns=0, end_ns=100, energy_microjoules=energy, floor_microjoules=floor)


def _load(replica="a", steps=(), residents=None):
    return ReplicaLoad(replica=replica, weights=_weights, steps=steps, residents=residents or {})


def _span(begin, end, *work):
    return StepSpan(begin_ns=begin, end_ns=end, work=StepWork(work))


def _decode(name):
    return RequestWork(name, 10, 0, 0, 1, 10)


def _resident(serial, until=None):
    return Resident(serial=serial, from_ns=0, until_ns=until)


def _microjoules(share):
    return share.sum_grains / GRAINS_PER_MICROJOULE


def test_steps_share_by_time_and_requests_inside_a_step_by_weight():
    steps = (_span(0, 75, _decode("x")), _span(75, 100, _decode("x"), _decode("y")))
    load = _load(steps=steps, residents={"x": _resident(1), "y": _resident(2)})
    shares = split_device(_interval(), (load,))
    assert _microjoules(shares.of(1)) == 875_000
    assert _microjoules(shares.of(2)) == 125_000


def test_a_gap_between_steps_belongs_to_the_steps():
    load = _load(steps=(_span(0, 10, _decode("x")),), residents={"x": _resident(1)})
    assert _microjoules(split_device(_interval(), (load,)).of(1)) == 1_000_000


def test_work_that_nobody_asked_for_is_overhead():
    steps = (_span(0, 50, _decode("warm-up")), _span(50, 100, _decode("settled")))
    load = _load(steps=steps, residents={"settled": _resident(1, until=50)})
    shares = split_device(_interval(), (load,))
    assert shares.requests == {}
    assert shares.overhead_grains == 1_000_000 * GRAINS_PER_MICROJOULE


def test_a_device_that_nobody_owns_is_idle_up_to_its_floor_and_foreign_above():
    shares = split_device(_interval(floor=400_000), ())
    assert shares.idle_grains == 400_000 * GRAINS_PER_MICROJOULE
    assert shares.foreign_grains == 600_000 * GRAINS_PER_MICROJOULE
    assert split_device(_interval(), ()).idle_grains == 1_000_000 * GRAINS_PER_MICROJOULE


def test_loading_a_model_is_overhead():
    shares = split_device(_interval(floor=400_000), (_load(),))
    assert shares.overhead_grains == 600_000 * GRAINS_PER_MICROJOULE


def test_the_floor_of_the_time_without_residents_is_idle():
    load = _load(residents={"x": Resident(serial=1, from_ns=75, until_ns=None)})
    shares = split_device(_interval(energy=400_000, floor=400_000), (load,))
    assert _microjoules(shares.of(1)) == 100_000
    assert shares.idle_grains == 300_000 * GRAINS_PER_MICROJOULE


def test_two_sub_requests_of_one_request_add_up():
    load = _load(steps=(_span(0, 100, _decode("x"), _decode("x"), _decode("y")),))
    load = _load(steps=load.steps, residents={"x": _resident(1), "y": _resident(2)})
    shares = split_device(_interval(energy=3_000), (load,))
    assert _microjoules(shares.of(1)) == 2 * _microjoules(shares.of(2)) == 2_000


_names = st.sampled_from([f"r{number}" for number in range(6)])
_works = st.lists(
    st.builds(
        RequestWork,
        _names,
        st.integers(0, 500),
        st.integers(0, 500),
        st.integers(0, 500),
        st.integers(0, 3),
        st.integers(0, 5000),
    ),
    max_size=5,
)


@st.composite
def _loads(draw):
    loads = []
    for replica in ("a", "b")[: draw(st.integers(0, 2))]:
        cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=2, max_size=8)))
        steps = tuple(
            StepSpan(begin_ns=begin, end_ns=end, work=StepWork(draw(_works)))
            for begin, end in itertools.pairwise(cuts)
            if end > begin
        )
        residents = {
            name: Resident(serial=len(loads) * 100 + number, from_ns=draw(st.integers(0, 100)), until_ns=draw(_until))
            for number, name in enumerate(draw(st.sets(_names)))
        }
        loads.append(ReplicaLoad(replica=replica, weights=_weights, steps=steps, residents=residents))
    return loads


_until = st.one_of(st.none(), st.integers(0, 150))
_energies = st.integers(0, 10**9)
_nanoseconds = st.integers(0, 10**9)


@given(energy=_energies, floor_percent=st.one_of(st.none(), st.integers(0, 100)), loads=_loads(), data=st.data())
def test_a_split_sums_to_its_energy_and_nothing_is_negative(energy, floor_percent, loads, data):
    floor = None if floor_percent is None else energy * floor_percent // 100
    interval = _interval(energy, floor)
    use = CpuUse(
        replicas_ns={name: data.draw(_nanoseconds) for name in ("a", "b", "c")},
        overhead_ns=data.draw(_nanoseconds),
        foreign_ns=data.draw(_nanoseconds),
    )
    for shares in (split_device(interval, loads), split_host(interval, use, loads)):
        assert shares.sum_grains() == energy * GRAINS_PER_MICROJOULE
        parts = [shares.idle_grains, shares.foreign_grains, shares.overhead_grains]
        for share in shares.requests.values():
            parts += [share.active_grains, share.floor_grains]
        assert min(parts) >= 0
