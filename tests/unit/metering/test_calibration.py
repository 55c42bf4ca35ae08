"""Weights, the work of a replica, and records of calibrations."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.calibration import Calibration, CalibrationRecord, ReplicaWork, Weights
from metering.engine_steps import RequestWork
from metering.errors import CalibrationRefused

_RECORD = CalibrationRecord(
    model="small",
    silicon="AMD EPYC",
    methods=("rapl", "nvml-total-energy"),
    weights=Weights(step=7, cached_token=3, allocation_percent=4.25),
    floor_milliwatts={"cpu-package-0": 40_000, "GPU-1": 70_000},
    fitted_shapes=20,
    held_out_shapes=9,
    made_unix_ns=1_790_000_000_000_000_000,
)
_work = st.builds(
    RequestWork,
    request_id=st.just("a"),
    prompt_tokens=st.just(0),
    prefill_tokens=st.integers(0, 1000),
    cached_tokens=st.integers(0, 1000),
    decode_tokens=st.integers(0, 4),
    context_tokens=st.integers(0, 4000),
)


def test_a_request_weighs_what_it_computes_and_its_part_of_the_step():
    weights = Weights(step=600, prefill_token=100, cached_token=5, decode_token=70, context_token=2)
    work = RequestWork("a", 9, prefill_tokens=3, cached_tokens=4, decode_tokens=2, context_tokens=10)
    assert weights.of(work, 3) == 200 + 300 + 20 + 2 * (70 + 20)


@settings(deadline=None)
@given(work=_work, requests=st.integers(1, 512), step=st.integers(0, 10**12))
def test_the_step_is_shared_equally_and_nothing_else_is(work, requests, step):
    shared = Weights(step=step)
    assert shared.of(work, requests) - Weights().of(work, requests) == step // requests


def test_work_since_an_earlier_moment():
    earlier = ReplicaWork(
        steps=1, prefill_tokens=2, cached_tokens=3, decode_tokens=4, context_tokens=5, busy_ns=6, active_microjoules=7
    )
    later = ReplicaWork(
        steps=11, prefill_tokens=22, cached_tokens=33, decode_tokens=44, context_tokens=55, busy_ns=66,
        active_microjoules=77,
    )  # fmt: skip
    assert later.since(earlier) == ReplicaWork(
        steps=10, prefill_tokens=20, cached_tokens=30, decode_tokens=40, context_tokens=50, busy_ns=60,
        active_microjoules=70,
    )  # fmt: skip


def test_a_record_survives_its_file():
    assert CalibrationRecord.from_json(_RECORD.to_json()) == _RECORD
    unmeasured = replace(_RECORD, weights=Weights())
    assert CalibrationRecord.from_json(unmeasured.to_json().encode()) == unmeasured


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "joule-mesh.receipt"}, "isn't a joule-mesh.calibration"),
        ({"version": 2}, "version 1"),
        ({"model": ""}, "model must be a text"),
        ({"model": 3}, "model must be a text"),
        ({"methods": ["rapl", 3, "rapl"]}, "methods must be a text"),
        ({"model": 3, "made_unix_ns": -1}, "model must be a text; made_unix_ns must be"),
        ({"methods": None}, "NoneType"),
        ({"floor_milliwatts": {"GPU-1": -1}}, "GPU-1 must be a whole number"),
        ({"floor_milliwatts": {"GPU-1": 1.5}}, "GPU-1 must be a whole number"),
        ({"floor_milliwatts": [1]}, "mapping"),
        ({"fitted_shapes": True}, "fitted_shapes must be a whole number"),
        ({"more": 1}, "more"),
        ({"weights": {"prefill_token": 0}}, "prefill_token"),
        ({"weights": {"step": -1}}, "step must be a whole number"),
        ({"weights": {"allocation_percent": float("nan")}}, "allocation_percent"),
        ({"weights": {"allocation_percent": "4"}}, "allocation_percent"),
        ({"weights": {"unheard_of": 1}}, "unheard_of"),
    ],
)
def test_a_record_that_is_wrong_says_where(change, reason):
    document = {**json.loads(_RECORD.to_json()), **change}
    with pytest.raises(CalibrationRefused, match=reason):
        CalibrationRecord.from_json(json.dumps(document))


@settings(deadline=None)
@given(
    junk=st.binary(max_size=40)
    | st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
        json.dumps
    )
)
def test_junk_is_no_record(junk):
    with pytest.raises(CalibrationRefused):
        CalibrationRecord.from_json(junk)


def test_a_record_adds_to_a_calibration_and_wins():
    before = Calibration(
        weights={"small": Weights(step=1), "large": Weights(step=2)},
        floor_milliwatts={"GPU-1": 1, "GPU-2": 2},
    )
    after = before.with_record(_RECORD)
    assert after.weights_of("small") == _RECORD.weights
    assert after.weights_of("large") == Weights(step=2)
    assert after.weights_of("unheard of") == Weights()
    assert after.floor_milliwatts == {"GPU-1": 70_000, "GPU-2": 2, "cpu-package-0": 40_000}
    assert before.weights_of("small") == Weights(step=1)
