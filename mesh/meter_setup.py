"""Putting a host meter together on the machine that it measures."""

import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pynvml

from clusters.silicon import Catalogue
from mesh.calibration_store import load_calibration
from mesh.private_folder import private_folder
from metering.clock import SystemClock
from metering.counters.detect import Machine, Sensors, detect
from metering.counters.ioreport import installed_module
from metering.cpu_shares import CpuShares
from metering.engine_steps import StepInbox
from metering.host_cpu import HostCpu
from metering.host_meter import HostMeter
from metering.host_silicon import metered_silicon
from metering.journal import Journal
from metering.process_tree import ProcessTrees
from metering.statements import MeterKey
from serve.messages import MeterCard

_PROC = Path("/proc")
_POWERCAP = Path("/sys/class/powercap")
# No single device on sale draws more; what signers are told of one that doesn't say what it can draw.
_UNKNOWN_MAXIMUM_MILLIWATTS = 2_000_000
_LINE = "line.sock"  # no longer than the other one's name: their paths have a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMeterSetup:
    """What a host meter is made of; travels to the actor, which makes it.

    ``journal`` and ``socket`` are on the host's own disk; a Unix socket's path may have 107 bytes at the most. The
    replicas' line has its socket beside it.
    ``calibration`` is the folder of the host's calibration records. ``mesh_pids`` are the roots of the mesh's own
    process trees on the host: whatever in them isn't a replica is the mesh's own work.
    """

    journal: Path
    socket: Path
    calibration: Path
    watts_per_thread: float | None
    interval_ms: int
    replay_file: Path | None
    mesh_pids: tuple[int, ...]

    def __call__(self) -> tuple[HostMeter, MeterCard]:
        """Find the counters and open the book.

        Raises:
            mesh.errors.StartFailed: the socket's folder is not this user's alone.
        """
        sensors = self._sensors()
        private_folder(self.socket.parent)
        key = MeterKey.load_or_create(self.journal / "meter-key", secrets.token_bytes)
        counters = (*sensors.devices, *sensors.host)
        methods = tuple(dict.fromkeys(counter.facts.method for counter in counters))
        node = os.uname().nodename
        silicon = metered_silicon(sensors, [counter.facts.device_id for counter in sensors.devices], node)
        calibration, notes = load_calibration(self.calibration, silicon.model, methods)
        sensors = replace(sensors, notes=(*sensors.notes, *notes))
        meter = HostMeter(
            sensors=sensors,
            processes=CpuShares(
                ProcessTrees(_PROC, monotonic_ns=time.monotonic_ns),
                HostCpu(_PROC),
                threads=sensors.cpu.threads,
                mesh_pids=self._living_mesh_pids(),
            ),
            inbox=StepInbox(self.socket),
            journal=Journal(self.journal),
            clock=SystemClock(),
            node=node,
            calibration=calibration,
            signing_key=key,
            interval_ns=self.interval_ms * 1_000_000,
        )
        return meter, MeterCard(
            public_key=key.public_key,
            maximum_power_milliwatts=sum(
                counter.facts.maximum_power_milliwatts or _UNKNOWN_MAXIMUM_MILLIWATTS for counter in counters
            ),
            interval_s=self.interval_ms / 1000,
            node=node,
            steps_socket=str(self.socket),
            line_socket=str(self.socket.with_name(_LINE)),
            silicon=silicon.model,
            gpu_ids=tuple(sensors.gpu_models),
            energy_method="+".join(methods) or None,
        )

    def _sensors(self) -> Sensors:
        return detect(
            Machine(
                proc_root=_PROC,
                powercap_root=_POWERCAP,
                nvml=pynvml,
                catalogue=Catalogue.load(),
                monotonic_ns=time.monotonic_ns,
                milliwatts_per_thread=None if self.watts_per_thread is None else round(self.watts_per_thread * 1000),
                apple=installed_module(),
                replay_file=self.replay_file,
            )
        )

    def _living_mesh_pids(self) -> tuple[int, ...]:
        """A meter that is started anew may find some of them gone."""
        return tuple(pid for pid in self.mesh_pids if (_PROC / str(pid)).exists())
