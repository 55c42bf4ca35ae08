"""The machine's energy counters, read by a process that shares no code with the meter.

`python -m benchmarks.counter_reader` writes ``monotonic_ns device microjoules`` lines until it is terminated. What a
GPU or a RAPL zone says is taken as it is; where there is neither, busy processor time by watts per thread.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clusters.silicon import Catalogue, detect_cpu

_EVERY_S = 0.005
_BUSY = ("user", "nice", "system", "irq", "softirq")
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Read = Callable[[], int]


def main() -> None:
    counters = {**_gpus(), **(_rapl() or _busy_time())}
    while True:
        lines = []
        for device, read in counters.items():
            before_ns = time.monotonic_ns()
            lines.append(f"{before_ns} {device} {read()}\n")
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
        time.sleep(_EVERY_S)


def _gpus() -> dict[str, Read]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {
        str(pynvml.nvmlDeviceGetUUID(handle)): lambda handle=handle: (
            1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        )
        for handle in handles
    }


def _rapl() -> dict[str, Read]:
    zones = sorted(Path("/sys/class/powercap").glob("intel-rapl:*"))
    names = {zone.name: (zone / "name").read_text().strip() for zone in zones}
    counters: dict[str, Read] = {}
    for zone in zones:
        name = names[zone.name]
        if name != "dram" and not name.startswith("package-"):
            continue
        if not os.access(zone / "energy_uj", os.R_OK):
            return {}
        package = names[zone.name.rpartition(":")[0]] if name == "dram" else name
        device = f"dram-{package.removeprefix('package-')}" if name == "dram" else f"cpu-{package}"
        counters[device] = _unwrapped(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
    return counters


def _unwrapped(file: Path, wrap: int) -> Read:
    turns, last = 0, 0

    def read() -> int:
        nonlocal turns, last
        now = int(file.read_text())
        turns += now < last
        last = now
        return turns * wrap + now

    return read


def _busy_time() -> dict[str, Read]:
    power = Catalogue.load().thread_power(detect_cpu(Path("/proc")))
    if power is None:
        sys.exit("no counter here, and no published TDP for this processor")
    microwatts_per_thread = power.tdp_milliwatts * 1000 / power.threads

    def read() -> int:
        with Path("/proc/stat").open(encoding="ascii") as file:
            ticks = dict(zip(_FIELDS, map(int, file.readline().split()[1:8]), strict=True))
        return int(sum(ticks[field] for field in _BUSY) / _TICKS_PER_S * microwatts_per_thread)

    return {"cpu": read}


if __name__ == "__main__":
    main()
