"""The laws of the book, over random schedules; and a meter that breaks them, which the same assertions must catch."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.counters.counter import difference

REPLICAS = ("cpu-a", "cpu-b", "gpu-a")
_settings = settings(max_examples=60, deadline=None)

_pass_time = st.tuples(
    st.just("run"),
    st.integers(1, 350),
    st.integers(0, 400),
    st.integers(0, 700),
    st.lists(st.integers(0, 8), min_size=5, max_size=5),
)
_operations = st.lists(
    st.one_of(
        _pass_time,
        _pass_time,
        st.tuples(st.just("begin"), st.sampled_from(REPLICAS)),
        st.tuples(st.just("step"), st.sampled_from(REPLICAS), st.integers(0, 2**12)),
        st.tuples(st.just("end"), st.sampled_from(REPLICAS)),
        st.tuples(st.just("settle"), st.integers(0, 50), st.sampled_from(("finished", "aborted", "failed"))),
        st.tuples(st.just("jump"), st.integers(1, 10**13)),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.just("lose"), st.booleans()),
        st.tuples(st.just("stick"), st.booleans()),
        st.tuples(st.just("suspend"), st.integers(200, 10**4), st.integers(0, 10**8)),
        st.tuples(st.just("kill"), st.sampled_from(REPLICAS)),
        st.tuples(st.just("restart"), st.integers(0, 500)),
        st.tuples(st.just("reboot"), st.just(0)),
        st.tuples(st.just("tick"), st.just(0)),
        st.tuples(st.just("tick"), st.just(0)),
    ),
    max_size=50,
)


def _really_counted(counter):
    """What went through the counter between the readings, by the silicon's own sum, as far as it can be known."""
    return sum(_really_moved(before, after, counter.facts) for before, after in itertools.pairwise(counter.reads))


def _really_moved(before, after, facts):
    fell = after.reading.energy_microjoules < before.reading.energy_microjoules
    asleep_ns = after.suspended_ns - before.suspended_ns
    if after.boot != before.boot or (asleep_ns and fell):
        return 0
    if after.resets != before.resets:
        # One that the counter has made up for since can't be seen; then it counts too little.
        return 0 if fell else after.reading.energy_microjoules - before.reading.energy_microjoules
    drawn = after.true_microjoules - before.true_microjoules
    if facts.wrap_microjoules is None:
        return drawn
    elapsed_ns = after.reading.at_monotonic_ns - before.reading.at_monotonic_ns + asleep_ns
    could_wrap_unseen = elapsed_ns * facts.maximum_power_milliwatts > facts.wrap_microjoules * 1_000_000
    # Of a jump past the whole range, the turns can't be seen.
    return 0 if could_wrap_unseen else drawn % facts.wrap_microjoules


class Story:
    """Plays operations on a simulated host and keeps what the laws are about."""

    def __init__(self, lab, folder, interval_ns):
        # A small range, so that most stories wrap several times.
        self.lab = lab
        self.host = lab.host(
            folder,
            host={"wrap_microjoules": 400_000_000},
            gpu=True,
            replicas=("cpu-a", "cpu-b"),
            interval_ns=interval_ns,
        )
        self.alive = set(REPLICAS)
        self.open = {}
        self.stepped = set()
        self.settled = []
        self._numbers = itertools.count(1)

    def play(self, operation):
        getattr(self, operation[0])(*operation[1:])
        report = self.host.meter.report()
        totals = report.totals
        assert totals.sum_microjoules == totals.counted_microjoules
        assert totals.counted_microjoules == sum(device.counted_microjoules for device in report.devices)
        assert report.identity_error_microjoules == 0
        assert totals.quarantine_microjoules == sum(device.quarantine_microjoules for device in report.devices)
        for device, counter in zip(report.devices, (self.host.gpu_counter, self.host.host_counter), strict=True):
            assert device.counted_microjoules == _really_counted(counter)
            assert device.counted_microjoules <= counter.true_microjoules
        accounts = (
            totals.request_microjoules,
            totals.idle_microjoules,
            totals.foreign_microjoules,
            totals.overhead_microjoules,
            totals.quarantine_microjoules,
            totals.open_microjoules,
        )
        assert min(accounts) >= 0

    def run(self, milliseconds, watts, gpu_watts, cpu):
        replicas = dict(zip(REPLICAS, cpu, strict=False))
        self.host.run(milliseconds, watts=watts, gpu_watts=gpu_watts, cpu=replicas, overhead=cpu[3], foreign=cpu[4])

    def begin(self, replica):
        if replica in self.alive:
            request = self.lab.request_id(next(self._numbers))
            self.host.meter.begin(request, replica, b"")
            self.open[request] = replica

    def step(self, replica, mask):
        """The mask chooses which of the replica's requests run; the others stay queued."""
        if replica not in self.alive:
            return
        mine = [request for request, at in self.open.items() if at == replica]
        chosen = [request for number, request in enumerate(mine) if mask >> number & 1]
        self.stepped |= set(chosen)
        self.host.engines[replica].begin(*(self.lab.decode(request) for request in chosen))

    def end(self, replica):
        if replica in self.alive:
            self.host.engines[replica].end()

    def settle(self, index, outcome):
        if self.open:
            request = list(self.open)[index % len(self.open)]
            del self.open[request]
            self.settled.append(self.host.meter.settle(request, outcome))

    def jump(self, microjoules):
        self.host.host_counter.add(microjoules)

    def reset(self, _):
        self.host.gpu_counter.reset()

    def lose(self, is_lost):
        self.host.gpu_counter.is_lost = is_lost

    def kill(self, replica):
        if replica in self.alive:
            self.alive.remove(replica)
            self.host.kill(replica)

    def stick(self, is_stuck):
        self.host.gpu_counter.is_stuck = is_stuck

    def suspend(self, milliseconds, microjoules):
        self.host.suspend(milliseconds / 1000, microjoules=microjoules)

    def restart(self, milliseconds):
        self._forget_what_was_not_recorded()
        self.host.restart_meter(away_ms=milliseconds)

    def reboot(self, _):
        self._forget_what_was_not_recorded()
        self.host.reboot()
        self.alive = set()

    def _forget_what_was_not_recorded(self):
        """The outside reader begins again where the meter's last record ended."""
        marks = self.host.journal.state.checkpoint.counters
        for counter in (self.host.host_counter, self.host.gpu_counter):
            recorded = marks[counter.facts.device_id].reading
            while counter.reads and counter.reads[-1].reading != recorded:
                if counter.reads[-1].boot != self.host.clock.boot:
                    break
                counter.reads.pop()

    def tick(self, _):
        self.host.meter.tick()
        self.alive &= set(self.host.processes.pids_of)


_interval_lengths = st.sampled_from((100_000_000, 500_000_000, 1_000_000_000))


@_settings
@given(operations=_operations, interval_ns=_interval_lengths)
def test_every_counted_microjoule_is_in_exactly_one_account(lab, operations, interval_ns):
    with lab.folder() as folder:
        story = Story(lab, folder, interval_ns)
        for operation in operations:
            story.play(operation)
        story.host.run(1000)
        story.host.meter.tick()
        settled = {
            settlement.request_id: settlement for settlement in (*story.settled, *story.host.meter.unacknowledged(0))
        }
        for request in set(story.open) - set(settled):
            settled[request] = story.host.meter.settle(request, "finished")
        billed = [
            settlement.energy.total_microjoules
            for settlement in settled.values()
            if settlement.outcome != "failed" and settlement.energy.total_microjoules is not None
        ]
        totals = story.host.meter.totals()
        assert totals.request_microjoules == sum(billed)
        assert totals.open_microjoules == 0
        assert totals.sum_microjoules == totals.counted_microjoules
        for request, settlement in settled.items():
            energy = settlement.energy
            if energy.total_microjoules is None:
                assert energy.unavailable_reason
            else:
                assert energy.active_microjoules + energy.floor_microjoules == energy.total_microjoules
                assert min(energy.active_microjoules, energy.floor_microjoules) >= 0
                assert 0 <= energy.estimated_microjoules <= energy.total_microjoules
                assert request in story.stepped or energy.total_microjoules == 0
        story.host.close()


_times = st.lists(
    st.tuples(
        st.integers(1, 250),
        st.integers(0, 300),
        st.integers(0, 700),
        st.sampled_from(("tick", "tick", "restart", "lose", "find", "begin")),
    ),
    min_size=1,
    max_size=30,
)


@_settings
@given(times=_times)
def test_what_is_counted_is_what_the_counters_moved(lab, times):
    """Also what they moved while the meter was away or the GPU couldn't be read: nothing here is unknowable."""
    with lab.folder() as folder:
        # 1000 W take 400 ms to go round, which is longer than any gap here: every wrap can be undone.
        host = lab.host(folder, host={"wrap_microjoules": 400_000_000}, gpu=True)
        numbers = itertools.count()
        moved = 0
        for milliseconds, watts, gpu_watts, what in times:
            host.run(milliseconds // 2, watts=watts, gpu_watts=gpu_watts)
            if what == "restart":
                host.restart_meter()
            elif what == "begin":
                host.meter.begin(lab.request_id(next(numbers)), "gpu-a", b"")
            elif what in ("lose", "find"):
                host.gpu_counter.is_lost = what == "lose"
            host.run(milliseconds - milliseconds // 2, watts=watts, gpu_watts=gpu_watts)
            host.meter.tick()
            moved += milliseconds * (watts + gpu_watts) * 1000
        host.gpu_counter.is_lost = False
        host.run(100, watts=0, gpu_watts=0)
        host.meter.tick()
        totals = host.meter.totals()
        host.close()
    assert totals.counted_microjoules == totals.sum_microjoules == moved
    assert totals.quarantine_microjoules == 0


_batches = st.lists(
    st.tuples(st.integers(1, 120), st.integers(1, 400), st.booleans(), st.booleans()), min_size=1, max_size=25
)


def _warm_up(lab, host, replica):
    """One closed interval with a step, from which the power of others can be estimated."""
    host.meter.begin(lab.request_id(9999), replica, b"")
    host.engines[replica].begin(lab.decode(lab.request_id(9999)))
    host.run(1000)
    host.meter.tick()
    host.engines[replica].end()
    host.meter.settle(lab.request_id(9999), "finished")


def _play_batches(lab, batches, *, requests, companions=0, replica="cpu-a", interval_ns=100_000_000, backwards=False):
    """The same steps for all ``requests``, companions joining some; the charges of the requests."""
    with lab.folder() as folder:
        host = lab.host(folder, gpu=True, interval_ns=interval_ns)
        _warm_up(lab, host, replica)
        others = [lab.request_id(1000 + number) for number in range(companions)]
        names = [lab.request_id(number + 1) for number in range(requests)]
        for request in (*names, *others):
            host.meter.begin(request, replica, b"")
        for milliseconds, watts, joined, ticked in batches:
            work = [lab.decode(request) for request in (*names, *(others if joined else ()))]
            host.engines[replica].begin(*(reversed(work) if backwards else work))
            host.run(milliseconds, watts=watts, gpu_watts=2 * watts, cpu={replica: 0.7}, foreign=0.4)
            if ticked:
                host.meter.tick()
        host.engines[replica].end()
        charges = [host.meter.settle(request, "finished").energy.total_microjoules for request in names]
        host.run(1000, watts=0, gpu_watts=0, cpu={})
        host.meter.tick()
        report = host.meter.report()
        host.close()
    assert report.identity_error_microjoules == 0
    return charges, report.totals, {device.device_id: device.counted_microjoules for device in report.devices}


@_settings
@given(
    batches=_batches,
    requests=st.integers(2, 9),
    companions=st.integers(0, 3),
    replica=st.sampled_from(("cpu-a", "gpu-a")),
)
def test_equal_requests_get_equal_joules(lab, batches, requests, companions, replica):
    charges, _, _ = _play_batches(lab, batches, requests=requests, companions=companions, replica=replica)
    assert max(charges) - min(charges) <= 1


@_settings
@given(batches=_batches, requests=st.integers(1, 5), replica=st.sampled_from(("cpu-a", "gpu-a")))
def test_the_order_of_requests_in_a_step_changes_nothing(lab, batches, requests, replica):
    forwards = _play_batches(lab, batches, requests=requests, companions=2, replica=replica)
    backwards = _play_batches(lab, batches, requests=requests, companions=2, replica=replica, backwards=True)
    assert forwards == backwards


@_settings
@given(batches=_batches)
def test_the_interval_length_changes_no_devices_total(lab, batches):
    counted = [
        _play_batches(lab, batches, requests=3, interval_ns=interval_ns)[2]
        for interval_ns in (100_000_000, 500_000_000, 1_000_000_000)
    ]
    assert counted[0] == counted[1] == counted[2]


@_settings
@given(batches=_batches, requests=st.integers(1, 8))
def test_two_replicas_on_one_host_never_charge_more_than_was_counted(lab, batches, requests):
    with lab.folder() as folder:
        host = lab.host(folder, replicas=("cpu-a", "cpu-b"))
        residents = {
            replica: [lab.request_id(first + number) for number in range(requests)]
            for replica, first in (("cpu-a", 0), ("cpu-b", 100))
        }
        for replica, names in residents.items():
            for request in names:
                host.meter.begin(request, replica, b"")
        for milliseconds, watts, both, ticked in batches:
            for replica, names in residents.items():
                if both or replica == "cpu-a":
                    host.engines[replica].begin(*(lab.decode(request) for request in names))
            host.run(milliseconds, watts=watts, cpu={"cpu-a": 1, "cpu-b": 0.5}, foreign=0.5)
            if ticked:
                host.meter.tick()
        charges = [
            host.meter.settle(request, "finished").energy.total_microjoules
            for names in residents.values()
            for request in names
        ]
        report = host.meter.report()
        host.close()
    _assert_never_more_than_counted(charges, report.totals.counted_microjoules - report.totals.foreign_microjoules)


class SnapshotMeter:
    """What the product pages describe: the counter's difference between a request's start and its end."""

    def __init__(self, counter):
        self._counter = counter
        self._began = {}
        self.charges = {}

    def begin(self, request):
        self._began[request] = self._counter.read()

    def settle(self, request):
        now = self._counter.read()
        self.charges[request] = difference(self._began[request], now, self._counter.facts).energy_microjoules


def _assert_never_more_than_counted(charges, counted):
    assert sum(charges) <= counted


def _eight_at_once(lab, host):
    """Eight concurrent requests under both meters: what each charged, and what was counted."""
    snapshots = SnapshotMeter(host.host_counter)
    requests = [lab.request_id(number) for number in range(8)]
    before = host.host_counter.read()
    for request in requests:
        host.meter.begin(request, "cpu-a", b"")
        snapshots.begin(request)
    for _ in range(10):
        host.engines["cpu-a"].begin(*(lab.decode(request) for request in requests))
        host.run(100)
        host.meter.tick()
    book = []
    for request in requests:
        book.append(host.meter.settle(request, "finished").energy.total_microjoules)
        snapshots.settle(request)
    counted = difference(before, host.host_counter.read(), host.host_counter.facts).energy_microjoules
    return book, list(snapshots.charges.values()), counted


def test_the_book_charges_eight_concurrent_requests_what_was_counted(lab, tmp_path):
    host = lab.host(tmp_path)
    book, _, counted = _eight_at_once(lab, host)
    _assert_never_more_than_counted(book, counted)
    assert counted - sum(book) <= 8
    host.close()


def test_snapshots_overcharge_eightfold_and_the_same_assertion_catches_it(lab, tmp_path):
    host = lab.host(tmp_path)
    _, snapshots, counted = _eight_at_once(lab, host)
    assert sum(snapshots) == 8 * counted
    with pytest.raises(AssertionError):
        _assert_never_more_than_counted(snapshots, counted)
    host.close()
