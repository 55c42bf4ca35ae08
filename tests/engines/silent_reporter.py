"""In place of a step reporter, where nobody meters."""

from collections.abc import Mapping, Sequence

from metering.engine_steps import RequestWork


class SilentReporter:
    """Takes every report and keeps the steps, as `metering.engine_steps.StepReporter` would send them."""

    def __init__(self) -> None:
        self.work: list[RequestWork] = []
        self.produced: list[dict[str, int]] = []

    def began(self, step: int, at_monotonic_ns: int, work: Sequence[RequestWork]) -> None:
        self.work += work

    def ended(self, step: int, at_monotonic_ns: int, produced: Mapping[str, int]) -> None:
        self.produced.append(dict(produced))

    def close(self) -> None:
        return
