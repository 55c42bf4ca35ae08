"""`MeshClient.explain` and `.pools`, and the commands over them, against an HTTP server of the test's own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from mesh.client import MeshClient
from mesh.command import main
from mesh.errors import MeshError

PLAN: dict[str, Any] = {
    "tier": "L0",
    "needs": {"input_tokens": 4.0, "output_tokens": 60.0, "least_tokens": 1, "features": []},
    "pins": {"model": None, "region": "asia", "residency": [], "operators": None},
    "rates": {"usd_per_kgco2": 0.2, "usd_per_hour_waited": 0.01},
    "candidates": [],
    "rejected": [{"pool": "small@acme/eu-fi", "reason": "is in region eu-fi", "is_for_now": False}],
}


class FakeMesh(HTTPServer):
    """Answers every POST with ``plan`` and every GET with no pools; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.asked: list[tuple[str, str | None, str | None, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeMesh

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(PLAN if self.server.status == 200 else {"error": {"message": "X-Region is none"}}, body)

    def do_GET(self) -> None:
        self._answer({"data": []}, None)

    def _answer(self, document: Any, asked: Any) -> None:
        headers = self.headers
        self.server.asked.append((self.path, headers.get("Authorization"), headers.get("X-Region"), asked))
        data = json.dumps(document).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


@pytest.fixture
def mesh() -> Iterator[FakeMesh]:
    with FakeMesh() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_request_and_the_region_go_as_a_chat_would(mesh):
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    assert MeshClient(mesh.url, "jc_LIVE_x").explain(body, region="eu") == PLAN
    assert MeshClient(mesh.url, "jc_LIVE_x").explain(body) == PLAN
    assert mesh.asked == [
        ("/v1/explain", "Bearer jc_LIVE_x", "eu", body),
        ("/v1/explain", "Bearer jc_LIVE_x", None, body),
    ]


def test_a_refusal_is_told_with_its_message(mesh):
    mesh.status = 400
    with pytest.raises(MeshError, match="X-Region is none"):
        MeshClient(mesh.url, "jc_LIVE_x").explain({})


def test_pools_are_asked_for_with_the_key(mesh):
    assert MeshClient(mesh.url, "jc_LIVE_x").pools() == []
    assert mesh.asked == [("/v1/pools", "Bearer jc_LIVE_x", None, None)]


def test_the_command_asks_what_a_chat_with_its_options_would(mesh):
    options = ["--region", "asia", "--max-tokens", "9", "--model", "small", "--url", mesh.url, "--api-key", "k"]
    ran = CliRunner().invoke(main, ["explain", "Who?", *options])
    assert ran.exit_code == 1, "no pool is left"
    assert "no pool is left" in ran.output
    ((_, _, region, body),) = mesh.asked
    assert region == "asia"
    assert body == {"model": "small", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 9}


def test_the_command_gives_the_plan_as_json(mesh):
    ran = CliRunner().invoke(main, ["explain", "Who?", "--json", "--url", mesh.url])
    assert json.loads(ran.output) == PLAN
    assert json.loads(CliRunner().invoke(main, ["pools", "--json", "--url", mesh.url]).output) == []
