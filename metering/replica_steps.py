"""One replica's engine steps as they were on the device: one after the other, the last one still running."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from metering.calibration import ReplicaWork, Weights
from metering.engine_steps import RequestWork, StepBegan, StepEnded

_NOTHING: tuple[tuple[int, ...], ...] = ((),) * len(RequestWork._fields)


class StepWork:
    """What one step computes for whom, weighed once for all the intervals and counters that it spans."""

    __slots__ = ("_total", "_weighed", "_weights", "requests")

    def __init__(self, requests: Sequence[RequestWork]) -> None:
        self.requests = requests
        self._weights: Weights | None = None
        self._weighed: dict[str, int] = {}
        self._total = 0

    def weighed(self, weights: Weights) -> tuple[Mapping[str, int], int]:
        """The weight of each request's part, and of all together."""
        if self._weights is not weights:
            self._weights, self._weighed = weights, {}
            count = len(self.requests)
            for work in self.requests:
                weight = weights.of(work, count)
                # An answer with several choices is several works of one request.
                self._weighed[work.request_id] = self._weighed.get(work.request_id, 0) + weight
            self._total = sum(self._weighed.values())
        return self._weighed, self._total


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """A step, or the part of it inside a window, and what it computes."""

    begin_ns: int
    end_ns: int
    work: StepWork


@dataclass(slots=True, kw_only=True)
class _OpenStep:
    step: int
    began_ns: int
    work: StepWork


class ReplicaSteps:
    """Turns reports of begin and end into spans.

    With async scheduling a step is scheduled while the one before it runs, so a step's time begins at its own
    begin or at the end of its predecessor, whichever is later, and a step behind a running one hasn't begun.
    Lost messages are bridged: a step whose end was lost ends where the next one begins.
    ``computed`` adds up the steps that are done; it knows no energy.
    """

    def __init__(self) -> None:
        self.computed = ReplicaWork(
            steps=0,
            prefill_tokens=0,
            cached_tokens=0,
            decode_tokens=0,
            context_tokens=0,
            busy_ns=0,
            active_microjoules=0,
        )
        self._done: deque[StepSpan] = deque()
        self._open: deque[_OpenStep] = deque()
        self._last_step = 0
        self._last_end_ns = 0

    def began(self, event: StepBegan) -> None:
        """A step was scheduled; a number that isn't new means that the engine started afresh."""
        if event.step <= self._last_step:
            self.cut(event.at_monotonic_ns)
        self._last_step = event.step
        self._open.append(_OpenStep(step=event.step, began_ns=event.at_monotonic_ns, work=StepWork(event.work)))

    def ended(self, event: StepEnded) -> None:
        """A step's results are in, and so are those of all before it."""
        while self._open and self._open[0].step <= event.step:
            step = self._open.popleft()
            end_ns = event.at_monotonic_ns
            if step.step < event.step and self._open:
                end_ns = min(end_ns, self._open[0].began_ns)
            self._finish(step, end_ns)
        self._last_end_ns = max(self._last_end_ns, event.at_monotonic_ns)

    def cut(self, at_monotonic_ns: int) -> None:
        """The engine died: whatever ran, ended here."""
        if self._open:
            self._finish(self._open.popleft(), at_monotonic_ns)
        self._open.clear()
        self._last_step = 0

    def spans(self, begin_ns: int, end_ns: int) -> tuple[StepSpan, ...]:
        """The steps inside a window, clipped to it; a running step reaches to its end."""
        inside = []
        for span in self._done:
            if span.end_ns > begin_ns and span.begin_ns < end_ns:
                clipped = max(span.begin_ns, begin_ns), min(span.end_ns, end_ns)
                inside.append(StepSpan(begin_ns=clipped[0], end_ns=clipped[1], work=span.work))
        if self._open:
            running = self._open[0]
            running_begin_ns = max(running.began_ns, self._last_end_ns, begin_ns)
            if running_begin_ns < end_ns:
                inside.append(StepSpan(begin_ns=running_begin_ns, end_ns=end_ns, work=running.work))
        return tuple(inside)

    def forget_before(self, monotonic_ns: int) -> None:
        """Drop the steps that no open interval can ask for."""
        while self._done and self._done[0].end_ns <= monotonic_ns:
            self._done.popleft()

    def _finish(self, step: _OpenStep, end_ns: int) -> None:
        begin_ns = max(step.began_ns, self._last_end_ns)
        self._add(step.work.requests, max(0, end_ns - begin_ns))
        if end_ns > begin_ns:
            self._done.append(StepSpan(begin_ns=begin_ns, end_ns=end_ns, work=step.work))
            self._last_end_ns = end_ns

    def _add(self, requests: Sequence[RequestWork], busy_ns: int) -> None:
        done = self.computed
        # By column: a busy engine computes for ten thousand requests a second.
        _, _, prefill, cached, decode, context = zip(*requests, strict=True) if requests else _NOTHING
        self.computed = ReplicaWork(
            steps=done.steps + 1,
            prefill_tokens=done.prefill_tokens + sum(prefill),
            cached_tokens=done.cached_tokens + sum(cached),
            decode_tokens=done.decode_tokens + sum(decode),
            context_tokens=done.context_tokens + sum(map(mul, decode, context)),
            busy_ns=done.busy_ns + busy_ns,
            active_microjoules=0,
        )
