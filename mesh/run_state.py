"""Which mesh runs on a data folder: a lock that its process holds, and a file that says where it listens."""

import fcntl
import json
import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mesh.errors import NotRunning, StartFailed

_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A mesh that answers; ``logs`` is where its processes write, ``is_ray_ours`` when it started its Ray itself."""

    pid: int
    url: str
    ray_address: str
    namespace: str
    logs: str
    is_ray_ours: bool


class DataFolder:
    """The data folder of one mesh; only one process at a time may run a mesh on it."""

    def __init__(self, folder: Path, *, group_locks: Path | None = None) -> None:
        """``group_locks`` is where all meshes of this user on this machine look; else the temporary folder."""
        self._folder = folder
        self._group_locks = group_locks
        self._lock = folder / "mesh.lock"
        self._state = folder / "run.json"
        self._held: list[int] = []

    def hold(self) -> None:
        """Create the folder, private to this user, and lock it for this process's life.

        Raises:
            StartFailed: another mesh runs on this folder, or it cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take(self._lock)
            self._state.unlink(missing_ok=True)  # of a mesh that was killed: its process id may be anybody's now
        except BlockingIOError as taken:
            running = self._read()
            where = f" (process {running.pid}, {running.url})" if running else ""
            raise StartFailed(
                f"a mesh already runs on {self._folder}{where}; "
                "stop it with `jc down`, or choose another data folder with --data-dir or JC_DATA_DIR"
            ) from taken
        except OSError as unusable:
            raise StartFailed(f"cannot use the data folder {self._folder}: {unusable}") from unusable

    def hold_group(self, key_id: str) -> None:
        """Lock the folder's signer group for this process's life: a copy of the folder holds the same one.

        Two meshes that sign with one key would give the same places in the accounts' chains to different receipts.
        A copy on another machine cannot be seen from here.

        Raises:
            StartFailed: a mesh with this group runs on this machine, or the lock cannot be written.
        """
        locks = self._group_locks or Path(tempfile.gettempdir())
        path = locks / f"joule-mesh-{os.getuid()}-group-{key_id}.lock"
        try:
            self._take(path)
        except BlockingIOError as taken:
            raise StartFailed(
                f"a mesh already runs with the signer group {key_id}, which {self._folder} holds too: one of the two "
                "folders is a copy; stop the other mesh, or move the signers, group.json and the ledger out of this one"
            ) from taken
        except OSError as unusable:
            raise StartFailed(f"cannot lock the signer group in {path}: {unusable}") from unusable

    def write(self, state: RunState) -> None:
        """Say what runs here; readers see the old state or the new, never half of one."""
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(state)))
        partial.replace(self._state)

    def release(self) -> None:
        """Forget the state and the locks."""
        self._state.unlink(missing_ok=True)
        while self._held:
            os.close(self._held.pop())

    def running(self) -> RunState:
        """The mesh that runs on this folder.

        Raises:
            NotRunning: nobody holds the lock.
        """
        state = self._read() if self._is_held() else None
        if state is None:
            raise NotRunning(
                f"no mesh runs on {self._folder}; start one with `jc up`, "
                "or name one that runs by --config or --data-dir"
            )
        return state

    def stop(self, deadline_s: float) -> RunState:
        """Ask the running mesh to stop and wait until it has.

        Raises:
            NotRunning: there is none.
            StartFailed: it did not stop in time.
        """
        state = self.running()
        os.kill(state.pid, signal.SIGTERM)
        give_up = time.monotonic() + deadline_s
        while self._is_held():
            if time.monotonic() > give_up:
                raise StartFailed(f"process {state.pid} did not stop within {deadline_s:g} s; look at its log")
            time.sleep(_POLL_S)
        return state

    def _take(self, path: Path) -> None:
        """Lock a file for as long as this process holds it; BlockingIOError when another process does."""
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        self._held.append(descriptor)

    def _read(self) -> RunState | None:
        try:
            return RunState(**json.loads(self._state.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _is_held(self) -> bool:
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False
