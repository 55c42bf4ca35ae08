import stat
from pathlib import Path

import pytest

from mesh.errors import StartFailed
from mesh.fast_path import fast_path_environment, forget_sockets


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    for data_dir in (tmp_path, *tmp_path.iterdir()):
        forget_sockets(data_dir)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_of_it_lies_in_folders_of_this_user_only(tmp_path):
    environment = fast_path_environment(tmp_path, headers_within_s=10, client_within_s=65)
    for name, path in environment.items():
        if path.startswith("/"):
            folder = Path(path) if name.endswith("_BASE") else Path(path).parent
            assert _mode(folder) == 0o700, name
    assert _mode(Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"])) == 0o700


def test_a_socket_s_path_fits_however_deep_the_data_folder_lies(tmp_path):
    deep = tmp_path / ("d" * 100)
    socket = Path(fast_path_environment(deep, headers_within_s=10, client_within_s=65)["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    node = "a" * 56
    assert len(str(socket.parent / node / f"{socket.name}.4194304.tmp")) <= 107
    assert socket.parent.exists()
    forget_sockets(deep)
    assert not socket.parent.exists()
    other = fast_path_environment(tmp_path / ("e" * 100), headers_within_s=10, client_within_s=65)
    assert Path(other["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent != socket.parent


def test_ports_are_free_ones_so_that_two_meshes_share_none(tmp_path):
    environment = fast_path_environment(tmp_path, headers_within_s=10, client_within_s=65)
    ports = {environment[f"RAY_SERVE_FALLBACK_PROXY_{kind}_PORT"] for kind in ("HTTP", "GRPC")}
    assert len(ports) == 2
    assert not ports & {"8500", "9500"}


def test_a_folder_that_others_can_read_is_refused(tmp_path):
    (tmp_path / "haproxy").mkdir()
    (tmp_path / "haproxy").chmod(0o755)
    with pytest.raises(StartFailed, match="only this user"):
        fast_path_environment(tmp_path, headers_within_s=10, client_within_s=65)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "haproxy").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartFailed, match="only this user"):
        fast_path_environment(tmp_path, headers_within_s=10, client_within_s=65)


def test_a_machine_without_haproxy_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "none"))
    with pytest.raises(StartFailed, match="needs HAProxy"):
        fast_path_environment(tmp_path, headers_within_s=10, client_within_s=65)
