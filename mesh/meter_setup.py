"""Putting a host meter together on the machine that it measures."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pynvml

from clusters.silicon import Catalogue
from metering.clock import SystemClock
from metering.counters.detect import Machine, Sensors, detect
from metering.cpu_shares import CpuShares
from metering.engine_steps import StepInbox
from metering.host_cpu import HostCpu
from metering.host_meter import HostMeter
from metering.journal import Journal
from metering.process_tree import ProcessTrees
from serve.messages import MeterCard

_PROC = Path("/proc")
_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMeterSetup:
    """What a host meter is made of; travels to the actor, which makes it.

    ``journal`` and ``socket`` are on the host's own disk; a Unix socket's path may have 107 bytes at the most.
    """

    journal: Path
    socket: Path
    watts_per_thread: float | None

    def __call__(self) -> tuple[HostMeter, MeterCard]:
        """Find the counters and open the book."""
        clock = SystemClock()
        sensors = detect(
            Machine(
                proc_root=_PROC,
                powercap_root=_POWERCAP,
                nvml=pynvml,
                catalogue=Catalogue.load(),
                monotonic_ns=time.monotonic_ns,
                milliwatts_per_thread=None if self.watts_per_thread is None else round(self.watts_per_thread * 1000),
            )
        )
        self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        meter = HostMeter(
            sensors=sensors,
            processes=CpuShares(
                ProcessTrees(_PROC, monotonic_ns=time.monotonic_ns),
                HostCpu(_PROC),
                threads=sensors.cpu.threads,
                # The Ray node that started this actor: its workers, less the replicas, are the mesh's own work.
                mesh_pids=(os.getppid(),),
            ),
            inbox=StepInbox(self.socket),
            journal=Journal(self.journal),
            clock=clock,
            node=os.uname().nodename,
        )
        return meter, _card(meter, sensors, self.socket)


def _card(meter: HostMeter, sensors: Sensors, socket: Path) -> MeterCard:
    methods = dict.fromkeys(counter.facts.method for counter in (*sensors.devices, *sensors.host))
    return MeterCard(
        socket_path=str(socket),
        silicon=meter.silicon.model,
        gpu_ids=tuple(counter.facts.device_id for counter in sensors.devices),
        energy_method="+".join(methods) or None,
    )
