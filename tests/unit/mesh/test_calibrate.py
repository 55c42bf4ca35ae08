"""A calibration against a made-up mesh whose costs are known, and the files that records are kept in."""

import io
import json
import random
import threading
from dataclasses import dataclass, field, replace

import pytest
from rich.console import Console

from mesh.calibrate import load_record, run_calibration
from mesh.calibration_store import load_calibration, read_record, store
from mesh.calibrator import Ask, Calibrator, Shape, grid
from mesh.errors import MeshError, NotRunning
from mesh.settings import load_settings
from metering.book import BookTotals
from metering.calibration import CalibrationRecord, ReplicaWork, Weights
from metering.errors import CalibrationRefused
from metering.meter_report import DeviceReport, MeterReport, ReplicaReport
from metering.settlement import MeteredSilicon

_MODEL = "small"
_FLOOR_MILLIWATTS = 30_000
_COSTS = {"steps": 90_000, "prefill_tokens": 2_000, "cached_tokens": 20, "decode_tokens": 9_000, "context_tokens": 2}
_NO_WORK = ReplicaWork(
    steps=0, prefill_tokens=0, cached_tokens=0, decode_tokens=0, context_tokens=0, busy_ns=0, active_microjoules=0
)


@dataclass
class _FakeMesh:
    """One replica; a request takes a tenth of a second, and the GPU draws its floor all the time.

    Until the floor is known, energy of steps is all that is drawn, as in the real meter.
    """

    costs: dict = field(default_factory=lambda: dict(_COSTS))
    open_requests: int = 0
    replica: dict = field(default_factory=dict)
    more_reports: tuple = ()
    strangers_at: int | None = None
    breaks_at: int | None = None
    bursts_at_s: tuple = ()
    busy_share: float = 0.1
    floor_milliwatts: int | None = None
    now_s: float = 0.0
    prompts: list = field(default_factory=list)
    records: list = field(default_factory=list)
    settled: int = 0
    counted_microjoules: int = 0
    work: ReplicaWork = _NO_WORK
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sleep(self, seconds):
        self._pass(seconds)

    def ask(self, prompt, output_tokens):
        with self.lock:
            if len(self.prompts) == self.breaks_at:
                raise MeshError("a request of the calibration failed: out of memory")
            self.settled += 2 if len(self.prompts) == self.strangers_at else 1
            words = len(prompt.split())
            cached = words if prompt in self.prompts else 0
            self.prompts.append(prompt)
            decode = output_tokens - 1
            counts = {
                "steps": 1 + decode // {16: 1, 128: 4}.get(words, 8),
                "prefill_tokens": words - cached,
                "cached_tokens": cached,
                "decode_tokens": decode,
                "context_tokens": decode * words,
            }
            drawn = sum(self.costs[name] * count for name, count in counts.items())
            is_floor_known = bool(self.records)
            active = drawn + (0 if is_floor_known else _FLOOR_MILLIWATTS * 100)
            self.counted_microjoules += drawn
            self._pass(0.1)
            self.work = replace(
                self.work,
                **{name: getattr(self.work, name) + count for name, count in counts.items()},
                active_microjoules=self.work.active_microjoules + active,
            )

    def report(self):
        ours = MeterReport(
            node="a",
            silicon=MeteredSilicon(vendor="nvidia", model="H100", device_ids=("GPU-1",), node="a"),
            notes=(),
            devices=(
                self._device("GPU-1", "gpu", self.counted_microjoules),
                self._device("GPU-2", "gpu", self.counted_microjoules),
                self._device("cpu-package-0", "cpu-package", round(self.now_s * 5e6)),
                self._device("dram-0", "dram", 0, readable=False),
            ),
            replicas=(ReplicaReport(**{**_replica(self.work), **self.replica}),),
            totals=BookTotals(
                counted_microjoules=round(self.now_s * 1000),
                idle_microjoules=round(self.now_s * 600),
                foreign_microjoules=round(self.now_s * 100),
            ),
            counters_microjoules=round(self.now_s * 1000),
            trueup_magnitude_microjoules=0,
            settled_requests=self.settled,
            open_requests=self.open_requests,
            unacknowledged=0,
            meter_key="",
            statement_sequence=0,
            incidents=(),
        )
        return (ours, *(replace(ours, **changes) for changes in self.more_reports))

    def calibrate(self, record):
        self.records.append(record)

    def _pass(self, seconds):
        for at in self.bursts_at_s:
            if self.now_s <= at < self.now_s + seconds:
                self.counted_microjoules += 50_000_000
        self.now_s += seconds
        self.counted_microjoules += round(_FLOOR_MILLIWATTS * 1000 * seconds)

    def _device(self, device_id, scope, counted_microjoules, *, readable=True):
        return DeviceReport(
            device_id=device_id,
            method="rapl" if scope != "gpu" else "nvml-total-energy",
            scope=scope,
            period_ns=1,
            maximum_power_milliwatts=None,
            error_percent=5.0,
            best_confidence="measured-direct",
            counted_microjoules=counted_microjoules,
            quarantine_microjoules=0,
            reading_microjoules=counted_microjoules if readable else None,
            read_at_monotonic_ns=round(self.now_s * 1e9) if readable else None,
            power_milliwatts=None,
            floor_milliwatts=self.floor_milliwatts,
            trouble=None if readable else "gone",
        )


def _replica(work):
    return {
        "replica": "r",
        "model": _MODEL,
        "device_ids": ("GPU-1",),
        "is_calibrated": False,
        "unavailable": None,
        "shared": None,
        "resident_requests": 0,
        "work": work,
    }


def _run(mesh, *, seconds=1.0, model=_MODEL, shapes=None, said=None):
    calibrator = Calibrator(
        mesh,
        model,
        chance=random.Random(1),
        monotonic_s=lambda: mesh.now_s,
        sleep=mesh.sleep,
        busy_s=lambda: mesh.now_s * mesh.busy_share,
        say=(said if said is not None else []).append,
    )
    return calibrator.run(
        shapes or grid(2048),
        seconds=seconds,
        weights_in_use=lambda silicon, methods: Weights(step=12),
        made_unix_ns=99,
    )


def test_known_costs_are_found_and_used():
    mesh = _FakeMesh()
    calibrated = _run(mesh)
    record = calibrated.record
    assert (record.model, record.silicon, record.made_unix_ns) == (_MODEL, "H100", 99)
    assert record.methods == ("nvml-total-energy", "rapl")
    assert record.weights.step == pytest.approx(45_000_000, rel=0.01)
    assert record.weights.decode_token == pytest.approx(4_500_000, rel=0.01)
    assert record.weights.cached_token == pytest.approx(10_000, rel=0.05)
    assert record.weights.context_token == pytest.approx(1_000, rel=0.05)
    assert record.weights.allocation_percent < 0.1
    assert record.fitted_shapes + record.held_out_shapes == len(calibrated.shapes) == len(grid(2048))
    assert mesh.records[-1] == record


def test_the_floor_is_in_use_before_the_shapes_and_the_weights_stay_meanwhile():
    mesh = _FakeMesh()
    _run(mesh)
    assert [each.weights.step for each in mesh.records] == [12, mesh.records[-1].weights.step]
    assert mesh.records[0].floor_milliwatts == mesh.records[1].floor_milliwatts


def test_the_floor_is_of_the_models_own_gpu_and_of_what_the_host_shares():
    assert _run(_FakeMesh()).record.floor_milliwatts == {"GPU-1": _FLOOR_MILLIWATTS, "cpu-package-0": 5_000}


def test_what_stirs_while_the_machine_is_idle_does_not_raise_the_floor():
    mesh = _FakeMesh(bursts_at_s=tuple(each + 0.5 for each in range(13)))
    assert _run(mesh).record.floor_milliwatts["GPU-1"] == _FLOOR_MILLIWATTS


def test_no_prompt_comes_twice_but_where_the_cache_is_measured():
    mesh = _FakeMesh()
    _run(mesh, shapes=[shape for shape in grid(2048) if not shape.is_repeated], seconds=100)
    assert len(set(mesh.prompts)) == len(mesh.prompts)
    again = _FakeMesh()
    _run(again)
    assert len(set(again.prompts)) < len(again.prompts)


def test_a_repeated_prompt_is_in_the_cache_before_its_shape_is_measured():
    works = [work for shape, work in _run(_FakeMesh()).shapes if shape.is_repeated]
    assert works
    assert all(work.prefill_tokens == 0 and work.cached_tokens for work in works)


def test_a_shape_goes_on_until_its_time_is_up():
    short, long = _FakeMesh(), _FakeMesh()
    _run(short, seconds=1)
    _run(long, seconds=200)
    assert len(long.prompts) > 2 * len(short.prompts)
    assert all(work.steps for _, work in _run(_FakeMesh(), seconds=0).shapes)


def test_every_length_and_concurrency_is_fitted_and_held_out():
    shapes = [shape for shape in grid(2048) if not shape.is_repeated and len(set(shape.asks)) == 1]
    for held_out in (False, True):
        chosen = [shape for shape in shapes if shape.is_held_out is held_out]
        assert {shape.concurrency for shape in chosen} == {3, 8, 16}
        assert {shape.asks[0].words for shape in chosen} == {16, 128, 512}
        assert {shape.asks[0].output_tokens for shape in chosen} == {1, 16, 64}


def test_a_model_with_a_short_context_gets_the_shapes_that_fit():
    shapes = grid(300)
    assert {ask.words for shape in shapes for ask in shape.asks} == {16, 128}
    assert any(shape.is_held_out for shape in shapes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"open_requests": 2}, "2 requests are running"),
        ({"replica": {"model": "other"}}, "no replica of 'small'"),
        ({"replica": {"unavailable": "no energy counter"}}, "cannot be known: no energy counter"),
        ({"replica": {"shared": "MIG is on"}}, "not its alone: MIG is on"),
        (
            {"more_reports": ({"silicon": MeteredSilicon(vendor="x", model="A100", device_ids=(), node="b")},)},
            r"more than one silicon \(A100 by .*; H100 by ",
        ),
        ({"strangers_at": 30}, "requests were settled while calibration sent"),
        ({"breaks_at": 30}, "out of memory"),
    ],
)
def test_a_calibration_that_cannot_be_right_is_refused_and_changes_no_weights(changes, reason):
    mesh = _FakeMesh(**changes)
    with pytest.raises(MeshError, match=reason):
        _run(mesh)
    assert {record.weights for record in mesh.records} <= {Weights(step=12)}


def test_requests_of_others_while_the_floor_is_taken_are_noticed():
    mesh = _FakeMesh()
    resting = mesh.sleep

    def sleep(seconds):
        resting(seconds)
        mesh.settled += 1

    mesh.sleep = sleep
    with pytest.raises(MeshError, match="idle power"):
        _run(mesh)
    assert mesh.records == []


def test_a_busy_machine_has_no_idle_power():
    mesh = _FakeMesh(busy_share=0.85)
    with pytest.raises(MeshError, match="85% busy while the mesh was idle"):
        _run(mesh)
    assert mesh.records == []


def test_what_other_processes_took_meanwhile_is_told():
    assert _run(_FakeMesh()).foreign_share == pytest.approx(0.25, rel=0.01)


def test_a_failed_fit_leaves_weights_and_floors_as_they_were():
    mesh = _FakeMesh(costs={**_COSTS, "prefill_tokens": 0}, floor_milliwatts=7)
    with pytest.raises(MeshError, match="weights and floors stay as they were: the energy did not grow"):
        _run(mesh)
    assert {each.weights for each in mesh.records} == {Weights(step=12)}
    assert set(mesh.records[0].floor_milliwatts.values()) != {7}, "it had measured another"
    assert set(mesh.records[-1].floor_milliwatts.values()) == {7}


def test_too_few_shapes_say_so():
    few = [
        Shape(asks=(Ask(words=16, output_tokens=1),), concurrency=1, is_held_out=bool(each % 2)) for each in range(4)
    ]
    with pytest.raises(MeshError, match="too few"):
        _run(_FakeMesh(), shapes=few)


_RECORD = CalibrationRecord(
    model="org/small",
    silicon="NVIDIA H100 80GB HBM3",
    methods=("nvml-total-energy", "rapl"),
    weights=Weights(step=5, allocation_percent=3.0),
    floor_milliwatts={"GPU-1": 70_000},
    fitted_shapes=20,
    held_out_shapes=10,
    made_unix_ns=1,
)
_METHODS = ("rapl", "rapl", "nvml-total-energy")


def test_stored_records_are_loaded(tmp_path):
    folder = tmp_path / "calibration"
    path = store(_RECORD, folder)
    other = replace(_RECORD, model="other", weights=Weights(step=6))
    store(other, folder)
    calibration, notes = load_calibration(folder, _RECORD.silicon, _METHODS)
    assert read_record(path) == _RECORD
    assert calibration.weights_of("org/small") == _RECORD.weights
    assert calibration.weights_of("other") == other.weights
    assert calibration.floor_milliwatts == {"GPU-1": 70_000}
    assert notes == ()


def test_a_newer_record_takes_the_olders_place(tmp_path):
    newer = replace(_RECORD, weights=Weights(step=9), made_unix_ns=2)
    assert store(_RECORD, tmp_path) == store(newer, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [store(newer, tmp_path).name]
    assert load_calibration(tmp_path, _RECORD.silicon, _METHODS)[0].weights_of("org/small").step == 9


def test_the_newer_record_of_two_models_tells_a_devices_floor(tmp_path):
    for model, made, floor in (("z", 1, 1), ("a", 3, 3), ("m", 2, 2)):
        store(replace(_RECORD, model=model, made_unix_ns=made, floor_milliwatts={"GPU-1": floor}), tmp_path)
    assert load_calibration(tmp_path, _RECORD.silicon, _METHODS)[0].floor_milliwatts == {"GPU-1": 3}


def test_names_that_read_alike_have_files_of_their_own(tmp_path):
    assert store(_RECORD, tmp_path) != store(replace(_RECORD, model="org-small"), tmp_path)


def test_what_is_not_used_is_said(tmp_path):
    store(replace(_RECORD, silicon="A100"), tmp_path)
    store(replace(_RECORD, methods=("rapl",)), tmp_path)
    (tmp_path / "broken.json").write_text('{"kind": ')
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "old.json").write_text(json.dumps({**json.loads(_RECORD.to_json()), "version": 0}))
    calibration, notes = load_calibration(tmp_path, _RECORD.silicon, _METHODS)
    assert not calibration.weights
    text = "\n".join(notes)
    assert "the calibration of org/small on A100 is of no use here: this is NVIDIA H100 80GB HBM3" in text
    assert "was measured by rapl, and this host measures by nvml-total-energy+rapl" in text
    assert f"{tmp_path / 'broken.json'}: not a calibration record: Expecting value" in text
    assert f"{tmp_path / 'folder.json'}: Is a directory" in text
    assert f"{tmp_path / 'old.json'}: not a calibration record" in text
    assert len(notes) == 5


def test_no_folder_is_no_calibration(tmp_path):
    assert load_calibration(tmp_path / "none", "H100", ())[1] == ()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MeshError, match=r"cannot store the calibration in .*file"):
        store(_RECORD, tmp_path / "file")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CalibrationRefused, match=r"gone\.json: No such file"):
        read_record(tmp_path / "gone.json")


def _settings(tmp_path):
    return load_settings(None, port=None, data_dir=tmp_path / "data")


def _console():
    return Console(file=io.StringIO())


def test_a_record_of_an_unknown_model_is_refused_before_anything_is_asked(tmp_path):
    path = store(_RECORD, tmp_path)
    with pytest.raises(MeshError, match=r"a record of the model org/small, and this mesh serves smollm2"):
        load_record(_settings(tmp_path), path, console=_console())


def test_a_malformed_record_is_refused_by_its_file(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(MeshError, match=r"x\.json: not a calibration record"):
        load_record(_settings(tmp_path), tmp_path / "x.json", console=_console())


def test_calibration_needs_a_running_mesh_and_a_model_of_it(tmp_path):
    with pytest.raises(NotRunning):
        run_calibration(_settings(tmp_path), console=_console())
    with pytest.raises(MeshError, match="say which model"):
        run_calibration(_settings(tmp_path), console=_console(), model="unheard of")
    with pytest.raises(MeshError, match="say which model"):
        run_calibration(_settings(tmp_path), console=_console(), model="all-minilm-l6-v2")  # it answers nothing
