"""One replica's engine steps as they were on the device: one after the other, the last one still running."""

from collections import deque
from dataclasses import dataclass

from metering.engine_steps import RequestWork, StepBegan, StepEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """A step, or the part of it inside a window, and what it computed for whom."""

    begin_ns: int
    end_ns: int
    work: tuple[RequestWork, ...]


@dataclass(slots=True, kw_only=True)
class _OpenStep:
    step: int
    began_ns: int
    work: tuple[RequestWork, ...]


class ReplicaSteps:
    """Turns reports of begin and end into spans.

    With async scheduling a step is scheduled while the one before it runs, so a step's time begins at its own
    begin or at the end of its predecessor, whichever is later, and a step behind a running one hasn't begun.
    Lost messages are bridged: a step whose end was lost ends where the next one begins.
    """

    def __init__(self) -> None:
        self._done: deque[StepSpan] = deque()
        self._open: deque[_OpenStep] = deque()
        self._last_step = 0
        self._last_end_ns = 0

    def began(self, event: StepBegan) -> None:
        """A step was scheduled; a number that isn't new means that the engine started afresh."""
        if event.step <= self._last_step:
            self.cut(event.at_monotonic_ns)
        self._last_step = event.step
        self._open.append(_OpenStep(step=event.step, began_ns=event.at_monotonic_ns, work=event.work))

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
        if end_ns > begin_ns:
            self._done.append(StepSpan(begin_ns=begin_ns, end_ns=end_ns, work=step.work))
            self._last_end_ns = end_ns
