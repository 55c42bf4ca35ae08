import subprocess
import sys
import textwrap

import pytest

from mesh.errors import NotRunning, StartFailed
from mesh.run_state import DataFolder, RunState

_STATE = RunState(pid=1, url="http://127.0.0.1:1", ray_address="a", namespace="n", logs="l", is_ray_ours=True)


def test_a_second_mesh_on_the_same_folder_is_refused_and_told_who_runs(tmp_path):
    first = DataFolder(tmp_path)
    first.hold()
    first.write(_STATE)
    with pytest.raises(StartFailed, match=r"http://127\.0\.0\.1:1.*JC_DATA_DIR"):
        DataFolder(tmp_path).hold()
    first.release()
    DataFolder(tmp_path).hold()


def test_a_state_left_by_a_killed_mesh_is_not_taken_for_a_running_one(tmp_path):
    folder = DataFolder(tmp_path)
    folder.hold()
    folder.write(_STATE)
    assert DataFolder(tmp_path).running() == _STATE
    folder.release()
    folder.write(_STATE)
    with pytest.raises(NotRunning):
        DataFolder(tmp_path).running()


def test_a_second_mesh_with_the_signer_group_of_a_copied_folder_is_refused(tmp_path):
    original, copy = (DataFolder(tmp_path / name, group_locks=tmp_path) for name in ("original", "copy"))
    original.hold()
    original.hold_group("4fb63f9af454cacb")
    copy.hold()
    with pytest.raises(StartFailed, match=r"4fb63f9af454cacb.*copy; stop the other mesh"):
        copy.hold_group("4fb63f9af454cacb")
    copy.hold_group("another")
    original.release()
    copy.hold_group("4fb63f9af454cacb")


def test_stop_ends_the_process_that_holds_the_folder_and_no_other(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys, time
        from pathlib import Path
        from mesh.run_state import DataFolder, RunState
        folder = DataFolder(Path(sys.argv[1]))
        folder.hold()
        folder.write(RunState(pid=os.getpid(), url="u", ray_address="a", namespace="n", logs="l", is_ray_ours=True))
        print("holding", flush=True)
        signal.sigwait([signal.SIGTERM])
        folder.release()
    """)
    command = [sys.executable, "-c", "import signal; signal.pthread_sigmask(0, [15])\n" + program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        assert DataFolder(tmp_path).stop(deadline_s=10).pid == holder.pid
        assert holder.wait(10) == 0


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartFailed, match="file"):
        DataFolder(tmp_path / "file" / "below").hold()
