"""How much power a counter shows, averaged so that watts are seen and not the counter's own steps."""

# Fewer of a counter's own steps show its rhythm, not the power.
_TELLING_PERIODS = 5


class PowerGauge:
    """Mean power over windows of at least ``window_ns``."""

    def __init__(self, *, window_ns: int, period_ns: int) -> None:
        self._least_window_ns = window_ns
        self._telling_ns = _TELLING_PERIODS * period_ns
        self._window_microjoules = 0
        self._window_ns = 0
        self._milliwatts: int | None = None

    @property
    def milliwatts(self) -> int | None:
        """Mean power since the last whole window if that is five counter periods ago, else of that window.

        ``None`` while there is neither.
        """
        if self._window_ns >= self._telling_ns > 0:
            return self._window_microjoules * 1_000_000 // self._window_ns
        return self._milliwatts

    def add(self, energy_microjoules: int, elapsed_ns: int) -> None:
        """Take in an interval."""
        self._window_microjoules += energy_microjoules
        self._window_ns += elapsed_ns
        if self._window_ns >= self._least_window_ns:
            self._milliwatts = self._window_microjoules * 1_000_000 // self._window_ns
            self.interrupt()

    def interrupt(self) -> None:
        """An interval's energy isn't known: begin a new window."""
        self._window_microjoules = self._window_ns = 0
