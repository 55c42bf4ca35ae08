"""Utilisation times published TDP: for machines that offer no counter. Derived, never measured, and says so."""

from collections.abc import Callable

from metering.counters.counter import CounterFacts, Reading, timely
from metering.host_cpu import HostCpu

_ERROR_PERCENT = 30.0


class UtilTdpCounter:
    """Busy CPU time of the machine times the watts of one busy hardware thread.

    The reading is a pure function of the busy time since boot, so microjoules never drift, however often it is
    read. Per thread, because a virtual machine sees a slice of the socket: the whole socket's TDP on two
    visible threads would bill tens of times too much.
    """

    def __init__(
        self,
        host_cpu: HostCpu,
        *,
        tdp_milliwatts: int,
        tdp_threads: int,
        visible_threads: int,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self._host_cpu = host_cpu
        self._tdp_milliwatts = tdp_milliwatts
        self._tdp_threads = tdp_threads
        self._monotonic_ns = monotonic_ns
        self._facts = CounterFacts(
            device_id="cpu",
            method="util-tdp",
            scope="cpu",
            period_ns=host_cpu.tick_ns,
            wrap_microjoules=None,
            maximum_power_milliwatts=-(-tdp_milliwatts * visible_threads // tdp_threads),
            error_percent=_ERROR_PERCENT,
            best_confidence="derived",
            closes_at_will=True,
        )

    @property
    def facts(self) -> CounterFacts:
        """What holds for this machine."""
        return self._facts

    def read(self) -> Reading:
        """Energy that the busy time since boot stands for.

        Raises:
            CounterLost: the busy time can't be read.
        """
        return timely(self._energy_microjoules, self._monotonic_ns)

    def _energy_microjoules(self) -> int:
        return self._host_cpu.busy_ns() * self._tdp_milliwatts // self._tdp_threads // 1_000_000
