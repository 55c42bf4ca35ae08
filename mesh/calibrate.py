"""`jc calibrate`: measures, on a running mesh, how a model's energy splits between kinds of work on its silicon."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from mesh.calibration_store import load_calibration, read_record, store
from mesh.calibrator import Calibrated, Calibrator, grid
from mesh.client import MeshClient
from mesh.errors import MeshError
from mesh.ray_session import join_ray
from mesh.run_state import DataFolder, RunState
from mesh.settings import Settings
from metering.calibration import CalibrationRecord
from metering.errors import CalibrationRefused, CounterLost
from metering.host_cpu import HostCpu
from metering.meter_report import MeterReport

if TYPE_CHECKING:  # ray reads its environment when it is imported, so `join_ray` imports it first
    from openai import OpenAI

_SHAPES_S = 240.0
_ANSWER_WITHIN_S = 30.0
_ACCOUNT = "mesh-calibration"
_MICROJOULES = 1e6


def run_calibration(settings: Settings, *, console: Console, model: str | None = None) -> Calibrated:
    """Calibrate a model of the mesh that runs on these settings' data folder, and store and use the result.

    ``model`` may be left out where the mesh serves one only.

    Raises:
        NotRunning: there is no mesh.
        MeshError: others use it, requests fail, or no weights can be fitted to what was measured.
    """
    name = _chosen_model(settings, model)
    folder = calibration_folder(settings)
    console.print(f"Calibrating {name}. Nobody else may use the mesh for about {_SHAPES_S / 60 + 4:.0f} minutes.")
    with _joined(settings) as state, _asking(state) as client:
        calibrated = Calibrator(
            _RunningMesh(state.namespace, name, client),
            name,
            chance=random.SystemRandom(),
            monotonic_s=time.monotonic,
            sleep=time.sleep,
            busy_s=_busy_s,
            say=lambda text: console.print(f"  {text}", style="dim"),
        ).run(
            grid(settings.model(name).context_tokens),
            seconds=_SHAPES_S,
            weights_in_use=lambda silicon, methods: load_calibration(folder, silicon, methods)[0].weights_of(name),
            made_unix_ns=time.time_ns(),
        )
    path = store(calibrated.record, folder)
    _show(calibrated, console)
    console.print(f"Stored in {path}. In use from now on, and from each start of the mesh on.")
    return calibrated


def load_record(settings: Settings, path: Path, *, console: Console) -> None:
    """Use and store a record that was made elsewhere, on the running mesh.

    Raises:
        NotRunning: there is no mesh.
        MeshError: the file is no record, or one for another model, silicon or kind of counter; nothing has changed.
    """
    try:
        record = read_record(path)
    except CalibrationRefused as malformed:
        raise MeshError(str(malformed)) from malformed
    if record.model not in {each.name for each in settings.models}:
        served = ", ".join(each.name for each in settings.models)
        raise MeshError(f"{path} is a record of the model {record.model}, and this mesh serves {served}")
    with _joined(settings) as state:
        _RunningMesh(state.namespace, record.model, None).calibrate(record)
    stored = store(record, calibration_folder(settings))
    console.print(f"{record.model} on {record.silicon} is calibrated as in {path}: {_error(record)}.")
    console.print(f"Stored in {stored}.")


def calibration_folder(settings: Settings) -> Path:
    """Where a mesh keeps its calibration records."""
    return settings.mesh.data_dir / "calibration"


def _chosen_model(settings: Settings, model: str | None) -> str:
    names = [each.name for each in settings.models if each.task == "generate"]  # it is asked for answers
    if model is None and len(names) == 1:
        return names[0]
    if model not in names:
        raise MeshError(f"say which model to calibrate, one of: {', '.join(names)}")
    return model


def _busy_s() -> float:
    """Processor time that this machine has used since it was booted, over its threads; 0 where nothing tells."""
    try:
        return HostCpu(Path("/proc")).busy_ns() / 1e9 / (os.cpu_count() or 1)
    except CounterLost:
        return 0.0


class _RunningMesh:
    """A running mesh over its own HTTP, and its meters over Ray. Without a client it cannot be asked anything."""

    def __init__(self, namespace: str, model: str, client: "OpenAI | None") -> None:
        self._namespace = namespace
        self._model = model
        self._client = client

    def ask(self, prompt: str, output_tokens: int) -> None:
        """One answer of exactly so many tokens."""
        import openai

        assert self._client is not None, "made without a client"
        try:
            answer = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=output_tokens,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
        except openai.OpenAIError as error:
            raise MeshError(f"a request of the calibration failed: {error}") from error
        if answer.usage is None or answer.usage.completion_tokens != output_tokens:
            raise MeshError(f"asked for {output_tokens} tokens, {self._model} answered with {answer.usage}")

    def report(self) -> tuple[MeterReport, ...]:
        """Every host's meter as of now."""
        return tuple(cast("list[MeterReport]", self._get([meter.report.remote() for meter in self._meters()])))

    def calibrate(self, record: CalibrationRecord) -> None:
        """Have the meters of the record's silicon use it.

        Raises:
            MeshError: it is of no use to any of them; none has changed.
        """
        refused = f"no replica of {record.model} is registered with a meter"
        fitting = []
        for report, meter in zip(self.report(), self._meters(), strict=True):
            if record.model in {replica.model for replica in report.replicas}:
                try:
                    record.check_fits(report.silicon.model, {device.method for device in report.devices})
                    fitting.append(meter)
                except CalibrationRefused as reason:
                    refused = str(reason)
        if not fitting:
            raise MeshError(refused)
        self._get([meter.calibrate.remote(record) for meter in fitting])

    def _meters(self) -> list[Any]:
        from serve.meter_actor import meters_of

        return list(meters_of(self._namespace))

    def _get(self, references: list[Any]) -> list[Any]:
        import ray
        from ray.exceptions import RayError

        try:
            return list(ray.get(references, timeout=_ANSWER_WITHIN_S))
        except RayError as failure:
            reason = getattr(failure, "cause", None) or type(failure).__name__
            raise MeshError(f"a host meter did not do as asked: {reason}") from failure


@contextmanager
def _joined(settings: Settings) -> Iterator[RunState]:
    """The mesh that runs on the data folder.

    Raises:
        NotRunning: there is none.
        StartFailed: its Ray cannot be reached.
    """
    state = DataFolder(settings.mesh.data_dir).running()
    join_ray(state, settings.mesh.data_dir)
    import ray

    try:
        yield state
    finally:
        ray.shutdown()


@contextmanager
def _asking(state: RunState) -> Iterator["OpenAI"]:
    """A client of the mesh, with a key of an account that may do nothing but ask."""
    import ray

    from receipts.api_keys import NewKey
    from receipts.ledger_actor import ledger_of

    made = cast("NewKey", ray.get(ledger_of(state.namespace).create_key.remote(_ACCOUNT, "calibration")))
    with MeshClient(state.url, made.secret).openai() as client:
        yield client


def _show(calibrated: Calibrated, console: Console) -> None:
    record, costs = calibrated.record, calibrated.model
    shapes = Table("shape", box=None)
    for header in ("at a time", "steps", "measured J", "predicted J", "off by"):
        shapes.add_column(header, justify="right")
    for shape, work in calibrated.shapes:
        predicted = costs.predict(work)
        shapes.add_row(
            f"{shape.title}{' (held out)' if shape.is_held_out else ''}",
            str(shape.concurrency),
            str(work.steps),
            f"{work.active_microjoules / _MICROJOULES:.2f}",
            f"{predicted / _MICROJOULES:.2f}",
            f"{predicted / work.active_microjoules - 1:+.1%}",
        )
    console.print(shapes)
    for device, milliwatts in record.floor_milliwatts.items():
        console.print(f"floor of {device}: {milliwatts / 1000:.3f} W")
    weights = record.weights
    console.print(
        f"a computed prompt token takes {costs.prefill_token / _MICROJOULES:.6f} J above the floor; as many as that "
        f"take: an engine step {_relative(weights.step)}, a cached token {_relative(weights.cached_token)}, a decode "
        f"token {_relative(weights.decode_token)} and, per 1,000 tokens of context, "
        f"{_relative(weights.context_token * 1000)} more"
    )
    if costs.undetermined:
        names = ", ".join(each.replace("_", " ") for each in costs.undetermined)
        console.print(f"these could not be told apart by the shapes, and are right only together: {names}")
    console.print(
        f"other processes took {calibrated.foreign_share:.0%} of the energy above idle meanwhile; the less, the better"
    )
    console.print(f"{record.model} on {record.silicon} by {'+'.join(record.methods)}: {_error(record)}")


def _relative(weight: int) -> str:
    return f"{weight / 1e6:.4g}"


def _error(record: CalibrationRecord) -> str:
    if record.weights.allocation_percent is None:
        return "the allocation error was not measured"
    return (
        f"allocation error {record.weights.allocation_percent:.2f} % over {record.held_out_shapes} shapes that the "
        f"fit of {record.fitted_shapes} others had not seen"
    )
