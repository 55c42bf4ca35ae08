"""Every settlement carries a statement, and the chain of them survives whatever the settlements survive."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.errors import JournalUnwritable
from metering.journal import Journal
from metering.statements import check_statement


def _statement(host, settlement):
    return check_statement(settlement.statement, host.key.public_key)


def _assert_chained(statements):
    assert statements[0].sequence == 1
    for before, after in itertools.pairwise(statements):
        assert after.sequence == before.sequence + 1
        assert after.previous_sha256 == before.sha256
        assert after.charged_microjoules == before.charged_microjoules + (after.microjoules or 0)
        assert after.counted_microjoules >= before.counted_microjoules


def _request(lab, host, number, outcome="finished", replica="cpu-a", context=b""):
    request = lab.request_id(number)
    host.meter.begin(request, replica, context)
    host.engines[replica].begin(lab.decode(request))
    host.run(30)
    return host.meter.settle(request, outcome)


def test_a_statement_says_what_the_settlement_says(lab, tmp_path):
    host = lab.host(tmp_path, gpu=True)
    finished = _request(lab, host, 1)
    aborted = _request(lab, host, 2, "aborted")
    failed = _request(lab, host, 3, "failed")
    statements = [_statement(host, settlement) for settlement in (finished, aborted, failed)]
    _assert_chained(statements)
    assert [each.request_id for each in statements] == [lab.request_id(number) for number in (1, 2, 3)]
    assert [each.outcome for each in statements] == ["finished", "aborted", "failed"]
    assert statements[0].microjoules == finished.energy.total_microjoules > 0
    assert statements[1].microjoules == aborted.energy.total_microjoules > 0
    assert statements[2].microjoules is None
    assert statements[2].charged_microjoules == host.meter.totals().request_microjoules
    assert statements[0].counted_microjoules == 30 * 10_000
    assert statements[0].open_ns == 30_000_000
    report = host.meter.report()
    assert report.meter_key == host.key.public_key.hex()
    assert report.statement_sequence == 3
    host.close()


def test_the_chain_goes_on_after_restarts_and_compactions(lab, tmp_path):
    host = lab.host(tmp_path)
    statements = []
    for number in range(30):
        settlement = _request(lab, host, number)
        statements.append(_statement(host, settlement))
        host.meter.acknowledge(settlement)
        if number % 4 == 0:
            host.restart_meter(away_ms=5)
        if number % 10 == 0:
            host.journal.close()
            Journal(tmp_path).close()  # opening it leaves a snapshot
            host.processes.pids_of.clear()
            host.start_meter()
    _assert_chained(statements)
    host.close()


def test_a_failed_attempt_keeps_its_place_in_the_chain_and_is_delivered(lab, tmp_path):
    host = lab.host(tmp_path, replicas=("cpu-a", "cpu-b"))
    request = lab.request_id(1)
    first = _request(lab, host, 1, "failed")
    host.meter.begin(request, "cpu-b", b"")
    host.restart_meter()
    second = host.meter.settle(request, "finished")
    _assert_chained([_statement(host, first), _statement(host, second)])
    assert host.meter.unacknowledged(0) == (first, second)
    host.close()


def test_after_a_reboot_numbers_that_a_power_cut_may_have_taken_are_not_used_again(lab, tmp_path):
    host = lab.host(tmp_path)
    before = _statement(host, _request(lab, host, 1))
    host.reboot()
    host.register("cpu-a", 500)
    after = _statement(host, _request(lab, host, 2))
    assert after.sequence > before.sequence + 1000
    assert after.previous_sha256 == before.sha256
    host.close()


def test_a_journal_that_ends_at_any_record_has_all_settlements_and_a_whole_chain(lab, tmp_path):
    host = lab.host(tmp_path / "whole")
    requests = [lab.request_id(number) for number in range(3)]
    for request in requests:
        host.meter.begin(request, "cpu-a", b"")
    host.run(100)
    host.kill("cpu-a")
    host.meter.tick()
    host.close()
    records = (tmp_path / "whole" / "journal.ndjson").read_bytes().splitlines(keepends=True)
    for length in range(len(records) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "journal.ndjson").write_bytes(b"".join(records[:length]))
        successor = lab.host(folder, replicas=())
        waiting = successor.meter.unacknowledged(0)
        begun = sum(b'"begun"' in record for record in records[:length])
        assert len(waiting) == begun
        if waiting:
            _assert_chained([_statement(successor, settlement) for settlement in waiting])
        assert successor.meter.report().statement_sequence == begun
        successor.close()


_turns = st.lists(
    st.one_of(
        st.tuples(st.just("request"), st.sampled_from(("finished", "aborted", "failed"))),
        st.tuples(st.just("request"), st.just("finished")),
        st.tuples(st.just("deliver"), st.integers(0, 10)),
        st.tuples(st.just("restart"), st.integers(0, 50)),
        st.tuples(st.just("die"), st.booleans()),
        st.tuples(st.just("retry"), st.sampled_from(("finished", "failed", "failed"))),
    ),
    max_size=30,
)


class Deliveries:
    """Plays turns, and keeps every settlement that anybody saw, those of failed attempts included."""

    def __init__(self, lab, host, full_disk):
        self.lab = lab
        self.host = host
        self.seen = {}
        self.kept = {}
        self.acknowledged = set()
        self._full_disk = full_disk
        self._numbers = itertools.count(1)
        self._attempts = itertools.count(1)
        self._pids = itertools.count(1000)

    def play(self, turn, detail):
        getattr(self, turn)(detail)
        waiting = self._look()
        assert waiting == {name: each for name, each in self.kept.items() if name not in self.acknowledged}

    def request(self, outcome):
        settlement = _request(self.lab, self.host, next(self._numbers), outcome)
        self.kept[settlement.attempt_id] = settlement

    def deliver(self, most):
        for settlement in self.host.meter.unacknowledged(0)[:most]:
            self.host.meter.acknowledge(settlement)
            self.acknowledged.add(settlement.attempt_id)

    def restart(self, milliseconds):
        self.host.restart_meter(away_ms=milliseconds)

    def die(self, is_disk_full):
        """The replica dies with three requests open; and the meter after it, where that can't be recorded."""
        requests = [self.lab.request_id(next(self._numbers)) for _ in range(3)]
        for request in requests:
            self.host.meter.begin(request, "cpu-a", b"")
        self.host.run(100)
        self.host.kill("cpu-a")
        if is_disk_full:
            with self._full_disk(self.host.folder / "journal.ndjson"), pytest.raises(JournalUnwritable):
                self.host.meter.tick()
            assert not set(requests) & {each.request_id for each in self._look().values()}
            self.host.restart_meter()
        else:
            self.host.meter.tick()
        self.kept |= {name: each for name, each in self._look().items() if each.request_id in requests}
        assert set(requests) <= {each.request_id for each in self.kept.values()}
        self.host.register("cpu-a", next(self._pids))

    def retry(self, outcome):
        """The first request of which no attempt went well; again and again, as long as ``outcome`` is failed."""
        failed = [each.request_id for each in self.host.meter.unacknowledged(0)]
        went_well = {each.request_id for each in self.kept.values() if each.outcome != "failed"}
        for request in [each for each in failed if each not in went_well][:1]:
            self.host.meter.begin(request, "cpu-a", b"attempt %d" % next(self._attempts))
            self.host.run(10)
            settlement = self.host.meter.settle(request, outcome)
            self.kept[settlement.attempt_id] = settlement

    def _look(self):
        waiting = self.host.meter.unacknowledged(0)
        for settlement in (*waiting, *self.kept.values()):
            sequence = _statement(self.host, settlement).sequence
            assert self.seen.setdefault(sequence, settlement) == settlement
        return {settlement.attempt_id: settlement for settlement in waiting}


@settings(max_examples=60, deadline=None)
@given(turns=_turns)
def test_no_settlement_is_lost_or_delivered_with_other_content_and_the_chain_is_whole(lab, full_disk, turns):
    with lab.folder() as folder:
        host = lab.host(folder, replicas=("cpu-a",))
        deliveries = Deliveries(lab, host, full_disk)
        for turn, detail in turns:
            deliveries.play(turn, detail)
        seen = deliveries.seen
        if seen:
            _assert_chained([_statement(host, seen[number]) for number in sorted(seen)])
        assert host.meter.report().statement_sequence == len(seen)
        host.close()


@pytest.mark.parametrize("lives", [(3,), (1, 4), (0, 2, 5, 1)])
def test_no_number_is_used_twice_however_often_and_early_the_power_is_cut(lab, tmp_path, lives):
    """What wasn't forced to the disk is gone; whoever got a statement still has it."""
    host = lab.host(tmp_path)
    sequences, numbers = [], itertools.count()
    for life, requests in enumerate((*lives, 3)):
        if life:
            host.reboot(by_power_cut=True)
            host.register("cpu-a", 500 + life)
        for _ in range(requests):
            settlement = _request(lab, host, next(numbers))
            sequences.append(_statement(host, settlement).sequence)
            host.meter.acknowledge(settlement)
    assert sequences[0] == 1
    assert len(set(sequences)) == len(sequences) == sum(lives) + 3
    host.close()
