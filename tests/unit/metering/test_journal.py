"""What a meter's restart finds, whatever the last one was doing when it ended."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.book import BookTotals
from metering.checkpoint import Checkpoint, CounterMark
from metering.counters.counter import Reading
from metering.errors import JournalUnusable, JournalUnwritable
from metering.figures import unknown_figures
from metering.journal import BegunRequest, Journal, RegisteredReplica
from metering.meter_report import Incident
from metering.settlement import MeteredSilicon, Settlement, TokenCounts
from metering.statements import ChainHead

CHECKPOINT = Checkpoint(
    totals=BookTotals(request_microjoules=5, idle_microjoules=2, counted_microjoules=7),
    trueup_magnitude_microjoules=3,
    settled_requests=1,
    boot_id="boot",
    at_monotonic_ns=99,
    counters={
        "cpu": CounterMark(
            method="rapl",
            counted_microjoules=7,
            quarantine_microjoules=0,
            reading=Reading(energy_microjoules=2**50, at_monotonic_ns=98),
            suspended_ns=4,
        ),
        "GPU-1": CounterMark(
            method="nvml-total-energy", counted_microjoules=0, quarantine_microjoules=0, reading=None, suspended_ns=0
        ),
    },
    chain=ChainHead(sequence=9, sha256="ab" * 32, charged_microjoules=5),
)
REPLICA = RegisteredReplica(replica="a", pid=7, started_ticks=9, model="m", device_ids=("GPU-1",))


def _begun(number=1, context=b"\x00\xffcontext"):
    return BegunRequest(
        request_id=f"{number:032x}", replica="a", context=context, begun_monotonic_ns=5, start_unix_ns=2**61
    )


def _settlement(number=1, outcome="finished"):
    return Settlement(
        request_id=f"{number:032x}",
        replica="a",
        outcome=outcome,
        start_unix_ns=2**61,
        duration_ns=12,
        energy=unknown_figures("no counter"),
        tokens=TokenCounts(input=3, cached=0, output=1),
        silicon=MeteredSilicon(vendor="amd", model="AMD EPYC", device_ids=("cpu-package-0",), node="n"),
        context=b"\x00\xff",
    )


def _reopened(folder):
    journal = Journal(folder)
    journal.close()
    return journal.state


def _filled(folder):
    journal = Journal(folder)
    journal.registered(REPLICA)
    journal.begun(_begun(1))
    journal.begun(_begun(2))
    journal.settled((_settlement(1),), CHECKPOINT)
    return journal


def test_everything_is_found_again(tmp_path):
    _filled(tmp_path).close()
    state = _reopened(tmp_path)
    assert state.replicas == {"a": REPLICA}
    assert list(state.begun.values()) == [_begun(2)]
    assert list(state.settled.values()) == [_settlement(1)]
    assert state.checkpoint == CHECKPOINT


def test_what_was_acknowledged_or_left_is_gone(tmp_path):
    journal = _filled(tmp_path)
    journal.acknowledged(_settlement(1))
    journal.left("a")
    journal.close()
    state = _reopened(tmp_path)
    assert state.settled == {}
    assert state.replicas == {}


def test_a_request_that_begins_again_replaces_its_failed_attempt(tmp_path):
    journal = _filled(tmp_path)
    journal.settled((_settlement(2, "failed"),), CHECKPOINT)
    journal.begun(_begun(2, b"again"))
    journal.close()
    state = _reopened(tmp_path)
    assert list(state.settled) == [_settlement(1).request_id]
    assert state.begun[_begun(2).request_id].context == b"again"


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 5000))
def test_a_journal_cut_anywhere_opens_with_what_was_whole(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("journal")
    _filled(folder).close()
    file = folder / "journal.ndjson"
    whole = file.read_bytes()
    file.write_bytes(whole[: cut % (len(whole) + 1)])
    state = _reopened(folder)
    assert len(state.settled) + len(state.begun) <= 2
    assert _reopened(folder).settled == state.settled


def test_damage_in_the_middle_is_named_and_not_passed_over(tmp_path):
    _filled(tmp_path).close()
    file = tmp_path / "journal.ndjson"
    lines = file.read_bytes().split(b"\n")
    lines[2] = b'{"kind": "nonsense"}'
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalUnusable, match=r"journal.ndjson, line 3"):
        Journal(tmp_path)


def test_another_version_is_refused(tmp_path):
    (tmp_path / "journal.ndjson").write_text('{"kind":"version","version":99}\n')
    with pytest.raises(JournalUnusable, match="version 99"):
        Journal(tmp_path)


def test_two_meters_cannot_hold_it(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(JournalUnusable, match="another meter"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_it_stays_bounded(tmp_path):
    journal = Journal(tmp_path, compact_after_bytes=10_000)
    journal.settled((_settlement(1),), CHECKPOINT)
    for number in range(2000):
        journal.checkpoint(Checkpoint(totals=BookTotals(counted_microjoules=number, idle_microjoules=number)))
    journal.close()
    assert (tmp_path / "journal.ndjson").stat().st_size < 15_000
    state = _reopened(tmp_path)
    assert list(state.settled.values()) == [_settlement(1)]
    assert state.checkpoint.totals.counted_microjoules == 1999


def test_a_full_disk_is_an_error_and_leaves_the_journal_whole(tmp_path, full_disk):
    journal = _filled(tmp_path)
    file = tmp_path / "journal.ndjson"
    size = file.stat().st_size
    with full_disk(file), pytest.raises(JournalUnwritable, match="cannot write"):
        journal.settled((_settlement(2),), CHECKPOINT)
    assert file.stat().st_size == size
    assert list(journal.state.settled) == [_settlement(1).request_id]
    journal.settled((_settlement(2),), CHECKPOINT)
    journal.close()
    assert len(_reopened(tmp_path).settled) == 2


def test_settlements_that_are_made_together_are_found_together_or_not_at_all(tmp_path):
    journal = _filled(tmp_path)
    journal.settled((_settlement(2), _settlement(3)), replace(CHECKPOINT, settled_requests=3))
    journal.close()
    file = tmp_path / "journal.ndjson"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    torn = _reopened(tmp_path)
    assert list(torn.settled) == [_settlement(1).request_id]
    assert torn.checkpoint == CHECKPOINT
    file.write_bytes(whole)
    assert len(_reopened(tmp_path).settled) == 3


def test_the_newest_incidents_are_kept(tmp_path):
    journal = Journal(tmp_path)
    for number in range(40):
        journal.incident(Incident(at_unix_ns=number, what="gone"))
    journal.close()
    assert [incident.at_unix_ns for incident in _reopened(tmp_path).incidents] == list(range(8, 40))


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalUnusable, match="cannot use the journal folder"):
        Journal(tmp_path / "file")
