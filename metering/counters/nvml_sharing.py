"""Whether an NVIDIA GPU is a replica's alone: MIG, MPS, and who else computes on it.

NVML's process ids are the host's. In a container they mean nothing, unless the driver translates them (some do),
and then it shows the container's processes only. So outside of the host's pid namespace a list in which none of our
own processes occurs is judged by its length: the replica does compute there, so a single entry is the replica, and
of several it cannot be told. A process that the driver doesn't list isn't seen.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

# The inode of the first pid namespace of every Linux kernel: PROC_PID_INIT_INO, linux/proc_ns.h.
_HOST_PID_NAMESPACE = "pid:[4026531836]"
_MPS_SERVER = "nvidia-cuda-mps-server"


def sees_host_pids(proc_root: Path) -> bool:
    """Whether this process's pid namespace is the host's; ``False`` where that can't be read."""
    try:
        return str((proc_root / "self/ns/pid").readlink()) == _HOST_PID_NAMESPACE
    except OSError:
        return False


class NvmlSharing:
    """Who else uses one GPU. Asks NVML several times: for every second or so, not for every reading."""

    def __init__(self, pynvml: ModuleType, uuid: str, *, has_host_pids: bool) -> None:
        self._pynvml = pynvml
        self._uuid = uuid
        self._has_host_pids = has_host_pids

    def others(self, own_pids: frozenset[int]) -> str | None:
        """Why the GPU isn't these processes' alone, or why that can't be told; ``None`` when it is."""
        nvml = self._pynvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            if self._asked(lambda: nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE):
                return f"{self._uuid}: MIG divides the GPU, and its counter covers all of it"
            if self._asked(lambda: bool(nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3(handle))):
                return f"{self._uuid}: MPS shares the GPU between processes"
            listed = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)}
        except nvml.NVMLError as wrong:
            return f"{self._uuid}: NVML doesn't say who computes on the GPU: {wrong}"
        return self._judged(listed, own_pids)

    def _judged(self, listed: set[int], own_pids: frozenset[int]) -> str | None:
        strangers = sorted(listed - own_pids)
        if not strangers:
            return None
        names = {pid: self._name(pid) for pid in strangers}
        if any(_MPS_SERVER in name for name in names.values()):
            return f"{self._uuid}: MPS shares the GPU between processes"
        if self._has_host_pids or listed & own_pids:
            return f"{self._uuid}: others compute on the GPU: {_shown(names.items())}"
        if len(strangers) == 1:
            return None
        return (
            f"{self._uuid}: {len(strangers)} processes compute on the GPU, and from inside this container it can't be "
            "told which of them are others'"
        )

    def _asked(self, question: Callable[[], bool]) -> bool:
        """The answer; no where the GPU or its driver doesn't know the thing."""
        try:
            return question()
        except self._pynvml.NVMLError:
            return False

    def _name(self, pid: int) -> str:
        try:
            name: str | bytes = self._pynvml.nvmlSystemGetProcessName(pid)
        except (self._pynvml.NVMLError, UnicodeDecodeError):
            return ""
        return name.decode(errors="replace") if isinstance(name, bytes) else name


def _shown(names: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"process {pid} ({name})" if name else f"process {pid}" for pid, name in names)
