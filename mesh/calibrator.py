"""One calibration: shapes of load sent to a running mesh, their energy, and the weights fitted to it.

The mesh answers nobody else meanwhile. First its idle power is taken; then shapes of load, from a few short prompts
to many long ones, each give the energy of so many steps and tokens; costs are fitted to two thirds of the
shapes, and the error of the split is how far they miss the third that the fit never saw.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Protocol

from mesh.errors import MeshError
from metering.calibration import CalibrationRecord, ReplicaWork, Weights
from metering.calibration_fit import EnergyModel, fit
from metering.errors import MeteringError
from metering.meter_report import MeterReport

_GPU = "gpu"  # the scope of counters that one replica has for itself
_FLOOR_SAMPLES = 15
_FLOOR_SAMPLE_S = 1.0
# Ray and the mesh's own parts take some when nothing is asked of them.
_MOST_BUSY_SHARE = 0.2
# Longer than any counter's period, so that what a shape drew is in the book when it is read.
_SETTLE_S = 1.0
_TOKENS_PER_WORD = 2
_WORDS = (
    *("apple", "river", "stone", "light", "house", "green", "music", "paper", "garden", "winter", "bridge", "yellow"),
    *("doctor", "summer", "kitchen", "ocean", "mountain", "window", "silver", "morning", "forest", "engine", "butter"),
    *("number", "market", "island", "camera", "family", "planet", "dinner", "shadow", "letter", "travel", "pocket"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: random words in, exactly so many tokens out."""

    words: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Requests that are sent in one go, at most ``concurrency`` at a time.

    With ``is_repeated`` they all have one prompt, which the prefix cache then holds.
    """

    asks: tuple[Ask, ...]
    concurrency: int
    is_repeated: bool = False
    is_held_out: bool = False

    @property
    def title(self) -> str:
        """The shape in a few words."""
        kinds = dict.fromkeys(self.asks)
        ask = next(iter(kinds))
        what = f"{ask.words} words, {ask.output_tokens} tokens out" if len(kinds) == 1 else "mixed"
        return f"{what}{', cached' if self.is_repeated else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A calibration: its record, the costs behind it, and each shape with the work that was measured.

    ``foreign_share`` is what other processes took of the energy that wasn't idle, while the shapes ran.
    """

    record: CalibrationRecord
    model: EnergyModel
    shapes: tuple[tuple[Shape, ReplicaWork], ...]
    foreign_share: float


class CalibratedMesh(Protocol):
    """The running mesh as calibration sees it: one model's replicas and the meters of their hosts.

    Each may raise `MeshError`; a request that isn't answered in full must.
    """

    def ask(self, prompt: str, output_tokens: int) -> None:
        """Have the model answer with exactly so many tokens; called from several threads."""

    def report(self) -> tuple[MeterReport, ...]:
        """Every host's meter as of now."""

    def calibrate(self, record: CalibrationRecord) -> None:
        """Have the meters of the record's silicon use it from now on."""


def grid(context_tokens: int) -> tuple[Shape, ...]:
    """Short to long prompts, short to long answers, few to many together; cached prompts; and mixtures.

    None is of one request at a time: that has its steps to itself, nothing is split, and engines treat it in ways of
    its own. A third is held out of the fit, spread over all three axes, and so are the mixtures: requests that come
    while others are being answered are what the fit is for, and it never sees them.
    """
    shapes = [
        Shape(
            asks=(Ask(words=words, output_tokens=output),) * concurrency,
            concurrency=concurrency,
            is_held_out=(i + j + k) % 3 == 1,
        )
        for (i, words), (j, output), (k, concurrency) in itertools.product(
            enumerate((16, 128, 512)), enumerate((1, 16, 64)), enumerate((3, 8, 16))
        )
    ]
    shapes += [
        Shape(
            asks=(Ask(words=512, output_tokens=output),) * concurrency,
            concurrency=concurrency,
            is_repeated=True,
            is_held_out=concurrency == 8,
        )
        for output, concurrency in ((1, 3), (1, 8), (1, 16), (16, 4))
    ]
    kinds = tuple(Ask(words=words, output_tokens=output) for words, output in ((16, 48), (256, 8), (128, 24), (512, 2)))
    shapes += [Shape(asks=kinds * 3, concurrency=concurrency, is_held_out=True) for concurrency in (3, 8)]
    return tuple(shape for shape in shapes if all(_fits(ask, context_tokens) for ask in shape.asks))


def _fits(ask: Ask, context_tokens: int) -> bool:
    return ask.words * _TOKENS_PER_WORD + ask.output_tokens <= context_tokens


class Calibrator:
    """Drives one calibration of one model.

    ``busy_s`` is the processor time that this machine has used so far, as a mean over its threads. ``say`` is told
    what happens, in plain words.
    """

    def __init__(
        self,
        mesh: CalibratedMesh,
        model: str,
        *,
        chance: random.Random,
        monotonic_s: Callable[[], float],
        sleep: Callable[[float], None],
        busy_s: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._mesh = mesh
        self._model = model
        self._chance = chance
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._busy_s = busy_s
        self._say = say

    def run(
        self,
        shapes: Sequence[Shape],
        *,
        seconds: float,
        weights_in_use: Callable[[str, tuple[str, ...]], Weights],
        made_unix_ns: int,
    ) -> Calibrated:
        """Measure the floor and every shape, for about so many seconds in all, and fit; the meters then use the result.

        ``weights_in_use``, by silicon and methods, stay until the fit has succeeded.

        Raises:
            MeshError: the mesh isn't idle, others used it meanwhile, or no weights can be fitted.
        """
        reports = self._idle_reports()
        silicon, methods = self._measured_silicon(reports)
        self._say(f"idle power of {silicon}, for {_FLOOR_SAMPLES * _FLOOR_SAMPLE_S:.0f} s")
        record = CalibrationRecord(
            model=self._model,
            silicon=silicon,
            methods=methods,
            weights=weights_in_use(silicon, methods),
            floor_milliwatts=self._floor(),
            fitted_shapes=0,
            held_out_shapes=0,
            made_unix_ns=made_unix_ns,
        )
        # From here on the energy of steps is that above the floor.
        self._mesh.calibrate(record)
        try:
            return self._weigh(record, shapes, seconds)
        except BaseException:
            self._mesh.calibrate(replace(record, floor_milliwatts=_floors(reports)))
            raise

    def _weigh(self, record: CalibrationRecord, shapes: Sequence[Shape], seconds: float) -> Calibrated:
        """Measure the shapes and have the meters use the weights that fit them."""
        before = self._mesh.report()
        measured = self._measure(shapes, seconds / len(shapes))
        foreign_share = _foreign_share(before, self._mesh.report())
        fitted = [work for shape, work in measured if not shape.is_held_out]
        held_out = [work for shape, work in measured if shape.is_held_out]
        try:
            costs = fit(fitted)
            fresh = costs.weights(round(costs.error_percent(held_out), 2))
        except MeteringError as failed:
            raise MeshError(f"the calibration failed, and weights and floors stay as they were: {failed}") from failed
        record = replace(record, weights=fresh, fitted_shapes=len(fitted), held_out_shapes=len(held_out))
        self._mesh.calibrate(record)
        return Calibrated(record=record, model=costs, shapes=measured, foreign_share=foreign_share)

    def _idle_reports(self) -> tuple[MeterReport, ...]:
        """Reports of the hosts that run the model, once it is certain that nothing else does.

        Raises:
            MeshError: a request runs, or the model cannot be measured.
        """
        reports = self._mesh.report()
        running = sum(report.open_requests for report in reports)
        if running:
            raise MeshError(f"{running} requests are running; calibrate when nobody else uses the mesh")
        replicas = [replica for report in reports for replica in report.replicas if replica.model == self._model]
        if not replicas:
            raise MeshError(f"no replica of {self._model!r} is registered with a meter")
        for replica in replicas:
            if replica.unavailable is not None:
                raise MeshError(f"the energy of {self._model} cannot be known: {replica.unavailable}")
            if replica.shared is not None:
                raise MeshError(f"the energy of {self._model} is not its alone: {replica.shared}")
        return tuple(report for report in reports if any(each.model == self._model for each in report.replicas))

    def _measured_silicon(self, reports: Sequence[MeterReport]) -> tuple[str, tuple[str, ...]]:
        """The one silicon that the model runs on, and the methods of its counters.

        Raises:
            MeshError: it runs on several, and a request could go to any.
        """
        kinds = {
            (report.silicon.model, tuple(sorted({device.method for device in report.devices}))) for report in reports
        }
        if len(kinds) != 1:
            listed = "; ".join(f"{silicon} by {'+'.join(methods)}" for silicon, methods in sorted(kinds))
            raise MeshError(f"{self._model} runs on more than one silicon ({listed}): calibrate each in its own mesh")
        return kinds.pop()

    def _floor(self) -> dict[str, int]:
        """The low end of each device's idle power: whatever else stirs on the machine only ever adds to it.

        Raises:
            MeshError: a request was answered meanwhile, or the machine was busy with something else.
        """
        samples: dict[str, list[int]] = {}
        began, busy_s = self._monotonic_s(), self._busy_s()
        first = before = self._mesh.report()
        for _ in range(_FLOOR_SAMPLES):
            self._sleep(_FLOOR_SAMPLE_S)
            after = self._mesh.report()
            for device, milliwatts in self._powers(before, after):
                samples.setdefault(device, []).append(milliwatts)
            before = after
        if any(report.open_requests for report in before) or _settled(first) != _settled(before):
            raise MeshError("others sent requests while the idle power was measured; calibrate when nobody else does")
        busy_share = (self._busy_s() - busy_s) / (self._monotonic_s() - began)
        if busy_share > _MOST_BUSY_SHARE:
            raise MeshError(
                f"this machine's processors were {busy_share:.0%} busy while the mesh was idle, so its idle power "
                "cannot be measured; stop the other work, or calibrate later"
            )
        return {device: sorted(powers)[len(powers) // 10] for device, powers in samples.items()}

    def _powers(self, before: Sequence[MeterReport], after: Sequence[MeterReport]) -> Iterator[tuple[str, int]]:
        """Milliwatts, between two reports, of the model's GPUs and of everything that its hosts share."""
        earlier = {(report.node, device.device_id): device for report in before for device in report.devices}
        for report in after:
            ours = [replica for replica in report.replicas if replica.model == self._model]
            gpus = {device for replica in ours for device in replica.device_ids}
            for now in report.devices if ours else ():
                then = earlier.get((report.node, now.device_id))
                if then is None or (now.scope == _GPU and now.device_id not in gpus):
                    continue
                elapsed_ns = (now.read_at_monotonic_ns or 0) - (then.read_at_monotonic_ns or 0)
                if then.read_at_monotonic_ns is not None and elapsed_ns > 0:
                    microjoules = now.counted_microjoules - then.counted_microjoules
                    yield now.device_id, microjoules * 1_000_000 // elapsed_ns

    def _measure(self, shapes: Sequence[Shape], slice_s: float) -> tuple[tuple[Shape, ReplicaWork], ...]:
        self._send(Shape(asks=(Ask(words=16, output_tokens=4),), concurrency=1))
        measured = []
        for number, shape in enumerate(shapes, 1):
            work = self._measure_one(shape, slice_s)
            self._say(
                f"shape {number} of {len(shapes)}: {shape.title}, {shape.concurrency} at a time: "
                f"{work.active_microjoules / 1e6:.2f} J above the floor, {work.steps} steps"
            )
            measured.append((shape, work))
        return tuple(measured)

    def _measure_one(self, shape: Shape, slice_s: float) -> ReplicaWork:
        """Send a shape's requests until its time is up.

        Raises:
            MeshError: the meters saw other requests meanwhile, or a request failed.
        """
        prompt = self._prompt(shape.asks[0]) if shape.is_repeated else None
        if prompt is not None:
            self._mesh.ask(prompt, 1)
        self._sleep(_SETTLE_S)
        before, settled_before = self._totals()
        began = self._monotonic_s()
        sent = self._send(shape, prompt)
        while self._monotonic_s() - began < slice_s:
            sent += self._send(shape, prompt)
        self._sleep(_SETTLE_S)
        after, settled_after = self._totals()
        if settled_after - settled_before != sent:
            raise MeshError(
                f"{settled_after - settled_before} requests were settled while calibration sent {sent}: "
                "calibrate when nobody else uses the mesh"
            )
        return after.since(before)

    def _send(self, shape: Shape, prompt: str | None = None) -> int:
        """Send the shape's requests once; how many they were."""
        prompts = [prompt or self._prompt(ask) for ask in shape.asks]
        with ThreadPoolExecutor(shape.concurrency) as threads:
            list(threads.map(self._mesh.ask, prompts, [ask.output_tokens for ask in shape.asks]))
        return len(shape.asks)

    def _prompt(self, ask: Ask) -> str:
        """Words in an order that never was, so that no cache holds them."""
        return " ".join(self._chance.choices(_WORDS, k=ask.words))

    def _totals(self) -> tuple[ReplicaWork, int]:
        """Work of all of the model's replicas, and requests that any meter has settled."""
        reports = self._mesh.report()
        works = [replica.work for report in reports for replica in report.replicas if replica.model == self._model]
        if not works:
            raise MeshError(f"the replicas of {self._model!r} are gone")
        return _sum(works), _settled(reports)


def _floors(reports: Sequence[MeterReport]) -> dict[str, int]:
    """The floors in use, of the devices that have one."""
    devices = [device for report in reports for device in report.devices]
    return {each.device_id: each.floor_milliwatts for each in devices if each.floor_milliwatts is not None}


def _sum(works: Sequence[ReplicaWork]) -> ReplicaWork:
    return ReplicaWork(**{each.name: sum(getattr(work, each.name) for work in works) for each in fields(ReplicaWork)})


def _settled(reports: Sequence[MeterReport]) -> int:
    return sum(report.settled_requests for report in reports)


def _foreign_share(before: Sequence[MeterReport], after: Sequence[MeterReport]) -> float:
    foreign = sum(report.totals.foreign_microjoules for report in after)
    foreign -= sum(report.totals.foreign_microjoules for report in before)
    busy = _not_idle_microjoules(after) - _not_idle_microjoules(before)
    return foreign / busy if busy > 0 else 0.0


def _not_idle_microjoules(reports: Sequence[MeterReport]) -> int:
    return sum(report.totals.counted_microjoules - report.totals.idle_microjoules for report in reports)
