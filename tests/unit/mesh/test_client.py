import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mesh.client import MeshClient
from mesh.errors import MeshError, NotRunning


def test_without_a_key_and_a_mesh_it_is_the_mesh_that_is_missing():
    with pytest.raises(NotRunning, match="no mesh answers"):
        MeshClient("http://127.0.0.1:1", None).openai()


@pytest.mark.parametrize("key", ["jc_LIVE_…", "jc_LIVE_a b", "jc_LIVE_a\n", "Bearer jc_LIVE_a", "jc_LIVE_\ud800"])
def test_what_can_be_no_key_is_refused_and_not_shown(key):
    with pytest.raises(MeshError, match="no API key") as refused:
        MeshClient("http://127.0.0.1:1", key)
    assert key not in str(refused.value)


def test_nobody_there_is_said_with_the_address():
    with pytest.raises(NotRunning, match=r"http://127\.0\.0\.1:1"):
        MeshClient("http://127.0.0.1:1", None).group_key()


def test_a_time_without_a_zone_is_nobodys() -> None:
    with pytest.raises(MeshError, match="has no time zone"):
        list(MeshClient("http://127.0.0.1:1", "jc_LIVE_x").receipts(since=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_receipts_of_no_mesh_are_not_waited_for() -> None:
    waited_s: list[float] = []
    mesh = MeshClient("http://127.0.0.1:1", "jc_LIVE_x", sleep=waited_s.append)
    with pytest.raises(NotRunning, match="no mesh answers"):
        next(mesh.receipts(since=datetime(2026, 1, 1, tzinfo=UTC), model="small"))
    assert waited_s == []


def test_nothing_is_asked_before_a_receipt_is_taken() -> None:
    MeshClient("http://127.0.0.1:1", "jc_LIVE_x").receipts(since="30d")


class Proxy(HTTPServer):
    """Stands on this machine where a mesh would be; ``asked`` has each request's path and what it signed in with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.links: list[str] = []
        self.redirects: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        body = b"{}\n"
        self.send_response(307 if self.server.redirects else 200)
        if self.server.redirects:
            self.send_header("Location", self.server.redirects.pop(0))
        if self.server.links:
            self.send_header("Link", f'<{self.server.links.pop(0)}>; rel="next"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_without_a_key_the_sdk_is_not_made_so_that_it_sends_no_other_key(proxy: Proxy) -> None:
    with pytest.raises(MeshError, match="JC_API_KEY"):
        MeshClient(f"http://127.0.0.1:{proxy.server_port}", None).openai()
    assert proxy.asked == [("/v1/keys/group", None)]


@pytest.mark.parametrize("link", ["?limit=1&after=a", "/v1/receipts?limit=1&after=a"])
def test_a_mesh_may_be_at_a_path_of_its_host(proxy: Proxy, link: str) -> None:
    proxy.links = [link]
    mesh = MeshClient(f"http://127.0.0.1:{proxy.server_port}/mesh/", "jc_LIVE_x")
    assert list(mesh.receipts(since="30d", model="a&b")) == [{}, {}]
    mesh.receipt("rcpt_1")
    assert [path for path, _ in proxy.asked] == [
        "/mesh/v1/receipts?since=30d&model=a%26b&limit=1000",
        "/mesh/v1/receipts?limit=1&after=a",
        "/mesh/v1/receipts/rcpt_1",
    ]


def test_a_password_for_the_host_is_not_sent_in_place_of_the_key(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login bob password secret\nmachine localhost login bob password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    url, elsewhere = (f"http://{host}:{proxy.server_port}" for host in ("127.0.0.1", "localhost"))
    MeshClient(url, "jc_LIVE_x").receipt("rcpt_1")
    list(MeshClient(url, "jc_LIVE_x").receipts())
    MeshClient(url, None).group_key()
    proxy.redirects = ["/moved"]
    MeshClient(url, "jc_LIVE_x").receipt("rcpt_1")
    assert [sent for _, sent in proxy.asked] == ["Bearer jc_LIVE_x"] * 2 + [None] + ["Bearer jc_LIVE_x"] * 2
    proxy.redirects = [f"{elsewhere}/moved"]
    MeshClient(url, "jc_LIVE_x").receipt("rcpt_1")
    assert proxy.asked[-1] == ("/moved", None), "neither the key nor the password is for another host"


def test_a_proxy_of_the_environment_is_used(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    MeshClient("http://mesh.example", "jc_LIVE_x").receipt("rcpt_1")
    assert proxy.asked == [("http://mesh.example/v1/receipts/rcpt_1", "Bearer jc_LIVE_x")]
