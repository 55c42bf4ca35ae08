"""Several attempts at one request: each failed one is settled once, at the mesh's cost; only the last is billed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.errors import JournalUnwritable, RequestAlreadySettled, UnknownReplica, UnknownRequest
from metering.given_up import GivenUpAttempts
from metering.journal import Journal
from metering.statements import check_statement

REPLICAS = ("cpu-a", "cpu-b")


@pytest.fixture
def host(lab, tmp_path):
    simulated = lab.host(tmp_path)
    yield simulated
    simulated.close()


def context(attempt):
    return b"attempt %d" % attempt


def run(lab, host, attempt, replica="cpu-a", milliseconds=100):
    """An attempt that begins and works alone on the host's 10 watts; it stays open."""
    request = lab.request_id(1)
    host.meter.begin(request, replica, context(attempt))
    host.engines[replica].begin(lab.decode(request))
    host.run(milliseconds, cpu={replica: 1})
    return request


def assert_exact(host):
    totals = host.meter.totals()
    assert totals.sum_microjoules == totals.counted_microjoules
    assert host.meter.report().identity_error_microjoules == 0


class TestGivingUp:
    @pytest.mark.parametrize("told", [None, context(1)])
    def test_what_runs_has_failed_and_says_what_it_drew(self, lab, host, told):
        request = run(lab, host, 1)
        settlement = host.meter.give_up(request, told)
        assert (settlement.outcome, settlement.energy.total_microjoules) == ("failed", 1_000_000)
        assert host.meter.totals().request_microjoules == 0
        assert host.meter.totals().overhead_microjoules == 1_000_000
        assert_exact(host)
        assert host.meter.unacknowledged(0) == (settlement,)

    def test_a_late_word_of_its_replica_makes_it_no_charge(self, lab, host):
        request = run(lab, host, 1)
        failed = host.meter.give_up(request, context(1))
        for word in ("aborted", "finished", "failed"):
            assert host.meter.settle(request, word, replica="cpu-a", context=context(1)) == failed
        assert host.meter.totals().request_microjoules == 0

    @pytest.mark.parametrize("is_acknowledged", [False, True])
    def test_asking_again_gets_the_same(self, lab, host, is_acknowledged):
        request = run(lab, host, 1)
        failed = host.meter.give_up(request, context(1))
        if is_acknowledged:
            assert host.meter.acknowledge(failed)
        assert host.meter.give_up(request, context(1)) == failed
        assert host.meter.give_up(request, context(2)) is None, "another attempt's energy is not this one's"
        assert host.meter.give_up(request) is None

    @pytest.mark.parametrize("is_acknowledged", [False, True])
    def test_what_failed_with_its_replica_is_told_all_the_same(self, lab, host, is_acknowledged):
        request = run(lab, host, 1)
        host.kill("cpu-a")
        host.meter.tick()
        (failed,) = host.meter.unacknowledged(0)
        if is_acknowledged:
            host.meter.acknowledge(failed)
        assert host.meter.give_up(request, context(1)) == failed
        assert failed.energy.total_microjoules == 1_000_000

    def test_of_a_request_that_never_began_here_nothing_is_known(self, lab, host):
        assert host.meter.give_up(lab.request_id(1)) is None
        assert host.meter.give_up(lab.request_id(1), context(1)) is None
        assert host.meter.unacknowledged(0) == ()

    @pytest.mark.parametrize("outcome", ["finished", "aborted"])
    @pytest.mark.parametrize("told", [None, context(1), context(2)])
    def test_what_is_charged_stays_charged(self, lab, host, outcome, told):
        request = run(lab, host, 1)
        charged = host.meter.settle(request, outcome)
        assert host.meter.give_up(request, told) == charged
        host.meter.acknowledge(charged)
        assert host.meter.give_up(request, told) == charged
        assert host.meter.totals().request_microjoules == charged.energy.total_microjoules

    def test_an_attempt_that_was_given_up_before_it_began_does_not_begin(self, lab, tmp_path):
        """The door's word overtook the replica's."""
        host = lab.host(tmp_path, replicas=REPLICAS)
        request = lab.request_id(1)
        assert host.meter.give_up(request, context(1)) is None
        for replica in REPLICAS:
            with pytest.raises(RequestAlreadySettled, match="given up"):
                host.meter.begin(request, replica, context(1))
        with pytest.raises(UnknownRequest):
            host.meter.settle(request, "aborted", replica="cpu-a", context=context(1))
        run(lab, host, 2, "cpu-b")
        assert host.meter.settle(request, "finished").context == context(2)
        assert [each.outcome for each in host.meter.unacknowledged(0)] == ["finished"]
        host.close()

    def test_a_late_word_about_an_earlier_attempt_leaves_a_later_one_alone(self, lab, host):
        request = run(lab, host, 1)
        host.meter.give_up(request, context(1))
        run(lab, host, 2)
        assert host.meter.give_up(request, context(1)) is None
        for word in ("aborted", "failed"):
            with pytest.raises(UnknownRequest):
                host.meter.settle(request, word, replica="cpu-a", context=context(1))
        with pytest.raises(RequestAlreadySettled):
            host.meter.begin(request, "cpu-a", context(1))
        settled = host.meter.settle(request, "finished", replica="cpu-a", context=context(2))
        assert (settled.outcome, settled.context) == ("finished", context(2))

    def test_an_attempt_that_failed_does_not_begin_again(self, lab, host):
        """Ray calls again what a meter's death swallowed."""
        request = run(lab, host, 1)
        failed = host.meter.settle(request, "failed")
        with pytest.raises(RequestAlreadySettled, match="settled as failed"):
            host.meter.begin(request, "cpu-a", context(1))
        host.restart_meter()
        with pytest.raises(RequestAlreadySettled, match="settled as failed"):
            host.meter.begin(request, "cpu-a", context(1))
        assert host.meter.unacknowledged(0) == (failed,)

    def test_a_restarted_meter_gives_up_what_the_last_one_had_begun(self, lab, host):
        request = run(lab, host, 1)
        host.restart_meter()
        settlement = host.meter.give_up(request, context(1))
        assert (settlement.outcome, settlement.energy.total_microjoules) == ("failed", None)
        assert "restarted" in settlement.energy.unavailable_reason
        host.restart_meter()
        assert host.meter.give_up(request, context(1)) == settlement
        assert_exact(host)

    def test_what_cannot_be_recorded_is_asked_for_again(self, lab, host, full_disk):
        request = run(lab, host, 1)
        with full_disk(host.folder / "journal.ndjson"):
            for _ in range(2):
                with pytest.raises(JournalUnwritable):
                    host.meter.give_up(request, context(1))
            with pytest.raises(JournalUnwritable):
                host.meter.begin(request, "cpu-a", context(2))
        failed = host.meter.give_up(request, context(1))
        assert host.meter.unacknowledged(0) == (failed,)
        run(lab, host, 2)
        host.restart_meter()
        assert host.meter.unacknowledged(0) == (failed,)
        assert host.meter.settle(request, "aborted").context == context(2)


def test_attempts_that_were_given_up_long_ago_are_forgotten():
    given_up = GivenUpAttempts()
    for number in range(5000):
        given_up.add(f"{number}", context(1))
    assert not given_up.has("0", context(1))
    assert not given_up.has("4999", context(2))
    assert given_up.has("4999", context(1))


class TestJournal:
    """What becomes of failed attempts whose request began again, over the meters' lives."""

    def test_they_are_delivered_and_acknowledged_one_by_one(self, lab, tmp_path):
        host = lab.host(tmp_path, replicas=REPLICAS)
        request = run(lab, host, 1)
        first = host.meter.give_up(request, context(1))
        run(lab, host, 2, "cpu-b")
        second = host.meter.give_up(request, context(2))
        run(lab, host, 3)
        host.restart_meter()
        assert host.meter.unacknowledged(0) == (first, second)
        assert host.meter.report().unacknowledged == 2
        assert host.meter.acknowledge(second)
        host.restart_meter()
        assert host.meter.unacknowledged(0) == (first,)
        third = host.meter.settle(request, "finished")
        assert third.context == context(3)
        assert host.meter.acknowledge(third)
        assert host.meter.unacknowledged(0) == (first,)
        host.journal.close()
        Journal(tmp_path).close()  # opening it leaves a snapshot
        host.processes.pids_of.clear()
        host.start_meter()
        assert host.meter.unacknowledged(0) == (first,)
        assert host.meter.acknowledge(first)
        assert host.meter.unacknowledged(0) == ()
        host.restart_meter()
        assert host.meter.unacknowledged(0) == ()
        host.close()

    def test_a_journal_of_the_second_version_is_read(self, lab, tmp_path):
        """There a beginning took the failed attempt's settlement away; it is delivered now."""
        host = lab.host(tmp_path, replicas=REPLICAS)
        request = run(lab, host, 1)
        failed = host.meter.settle(request, "failed")
        run(lab, host, 2, "cpu-b")
        finished = host.meter.settle(request, "finished")
        host.close()
        file = tmp_path / "journal.ndjson"
        lines = file.read_bytes().replace(b'"version":3', b'"version":2').splitlines(keepends=True)
        file.write_bytes(b"".join(lines))
        successor = lab.host(tmp_path, replicas=())
        assert successor.meter.unacknowledged(0) == (failed, finished)
        successor.close()
        acknowledged = b'{"kind":"acknowledged","request_id":"%s"}\n' % request.encode()
        file.write_bytes(b"".join([*lines, acknowledged]))
        successor = lab.host(tmp_path, replicas=())
        assert successor.meter.unacknowledged(0) == (failed,)
        successor.close()


ENDS = (
    "given up",
    "given up unnamed",
    "failed",
    "replica dies",
    "replica dies unseen",
    "goes on elsewhere",
    "meter restarts",
)
ATTEMPTS = st.lists(
    st.tuples(
        st.sampled_from(REPLICAS), st.sampled_from(ENDS), st.sampled_from(["before", "after", "never"]), st.booleans()
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(attempts=ATTEMPTS, last=st.sampled_from(REPLICAS), outcome=st.sampled_from(["finished", "aborted"]))
def test_only_the_last_attempt_is_billed_and_every_microjoule_is_in_the_book(lab, attempts, last, outcome):
    """Attempts fail in every way, on either replica, and their replicas' late words come before or after the next."""
    with lab.folder() as folder:
        host = lab.host(folder, replicas=REPLICAS)
        pids, late, request = itertools.count(900), None, lab.request_id(1)
        for number, (replica, end, word_comes, is_delivered) in enumerate(attempts, start=1):
            run(lab, host, number, replica, milliseconds=37)
            late = _say(host, request, late)
            _end(host, request, number, replica, end, pids)
            host.engines[replica].end()
            late = (replica, number) if word_comes == "after" else None
            if word_comes == "before" and end != "goes on elsewhere":
                _say(host, request, (replica, number))
            if is_delivered:
                for settlement in host.meter.unacknowledged(0)[:1]:
                    host.meter.acknowledge(settlement)
                    assert settlement.outcome == "failed"
        run(lab, host, len(attempts) + 1, last, milliseconds=50)
        _say(host, request, late)
        final = host.meter.settle(request, outcome, replica=last, context=context(len(attempts) + 1))
        assert (final.outcome, final.context) == (outcome, context(len(attempts) + 1))
        assert host.meter.totals().request_microjoules == final.energy.total_microjoules == 500_000
        waiting = host.meter.unacknowledged(0)
        assert [each.outcome for each in waiting if each != final] == ["failed"] * (len(waiting) - 1)
        assert len({each.context for each in waiting}) == len(waiting), "no attempt is settled twice"
        assert check_statement(final.statement, host.key.public_key).sequence == len(attempts) + 1
        assert_exact(host)
        host.close()


def _say(host, request, late):
    """The word of a replica whose attempt is over for the door; the meter needn't know it."""
    if late is not None:
        replica, number = late
        try:
            settled = host.meter.settle(request, "aborted", replica=replica, context=context(number))
        except UnknownRequest:
            return
        assert settled.outcome == "failed"


def _end(host, request, number, replica, end, pids):
    match end:
        case "given up":
            assert host.meter.give_up(request, context(number)).outcome == "failed"
        case "given up unnamed":
            assert host.meter.give_up(request).outcome == "failed"
        case "failed":
            host.meter.settle(request, "failed", replica=replica, context=context(number))
        case "replica dies":
            host.kill(replica)
            host.run(100, cpu={})
            host.meter.tick()
            with pytest.raises(UnknownReplica):
                host.meter.begin(request, replica, b"")
            host.register(replica, next(pids))
            assert host.meter.give_up(request, context(number)).energy.total_microjoules is not None
        case "replica dies unseen":
            host.kill(replica)
            assert host.meter.give_up(request, context(number)).outcome == "failed"
            host.register(replica, next(pids))
        case "meter restarts":
            host.restart_meter()
            host.processes.use_ns.clear()  # a new meter counts processor time from its own start
            assert host.meter.give_up(request, context(number)).energy.total_microjoules is None
        case "goes on elsewhere":
            pass
