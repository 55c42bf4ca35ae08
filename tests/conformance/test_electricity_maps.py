"""The Electricity Maps client against its API as documented; a server on this machine plays the answers.

They lie in `electricity_maps/`: the API reference's example, one in its shape for an estimated hour, and a refusal as
users of the service quote it. Nothing was recorded here: there is no key.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from clusters.electricity_maps import ElectricityMapsClient, NoFigure
from clusters.hourly_figures import hour_text

_ANSWERS = Path(__file__).parent / "electricity_maps"
_KEY = "a-key-that-nobody-may-see"
_NOW = 1_762_355_000.0


@dataclass
class Service:
    """What the server answers next, and what it was asked."""

    url: str = ""
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    byte_every_s: float | None = None
    asked: list[tuple[str, dict[str, list[str]], str | None]] = field(default_factory=list)

    def client(self) -> ElectricityMapsClient:
        return ElectricityMapsClient(self.url, _KEY, wall_clock_s=lambda: _NOW, answers_within_s=0.5)

    def plays(self, name: str, status: int = 200, **headers: str) -> "Service":
        self.body, self.status = (_ANSWERS / name).read_bytes(), status
        self.headers = {each.replace("_", "-"): value for each, value in headers.items()}
        return self


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            state.asked.append((asked.path, parse_qs(asked.query), self.headers.get("auth-token")))
            time.sleep(state.delay_s)
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            if state.byte_every_s is None:
                self.wfile.write(state.body)
                return
            with contextlib.suppress(OSError):  # the client hangs up
                for byte in state.body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(state.byte_every_s)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v3"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_asks_as_the_reference_says_and_understands_its_example(service):
    figure = service.plays("latest-DE.json").client().latest("DE")
    assert service.asked == [
        ("/v3/carbon-intensity/latest", {"zone": ["DE"], "emissionFactorType": ["lifecycle"]}, _KEY)
    ]
    assert (figure.zone, figure.gco2_per_kwh, figure.is_estimated) == ("DE", 322, False)
    assert hour_text(figure.hour_unix_s) == "2019-05-21T00:00Z"
    assert figure.source == "Electricity Maps, lifecycle"


def test_an_estimate_says_so_and_how(service):
    figure = service.plays("latest-FR-estimated.json").client().latest("FR")
    assert figure.is_estimated
    assert figure.source == "Electricity Maps, lifecycle, TIME_SLICER_AVERAGE"


@pytest.mark.parametrize(
    ("status", "says", "is_passing"),
    [
        (401, "401: it refuses the key", False),
        (403, "403: the key's plan does not cover DE", False),
        (404, "404: it has no recent data for DE", False),
        (500, "500", True),
        (503, "503", True),
        (302, "302", False),
    ],
)
def test_a_refusal_is_told_without_the_key(service, status, says, is_passing):
    client = service.plays("refused.json", status, Location="http://127.0.0.1:9/elsewhere").client()
    with pytest.raises(NoFigure, match=says) as refused:
        client.latest("DE")
    assert refused.value.is_passing is is_passing
    assert refused.value.retry_after_s is None
    assert _KEY not in f"{refused.value}{refused.value!r}{client!r}"
    assert len(service.asked) == 1, "the key must follow no redirect"


@pytest.mark.parametrize(
    ("retry_after", "waits_s"),
    [("17", 17), (formatdate(_NOW + 90, usegmt=True), 90), (None, 60), ("soon", 60), ("999999", 3600), ("-5", 60)],
)
def test_a_rate_limit_says_how_long_to_wait(service, retry_after, waits_s):
    service.plays("refused.json", 429, **({} if retry_after is None else {"Retry_After": retry_after}))
    with pytest.raises(NoFigure, match="429") as limited:
        service.client().latest("DE")
    assert limited.value.retry_after_s == pytest.approx(waits_s, abs=1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"zone": "US-CAR-DUK"}, "answered for 'US-CAR-DUK' instead of DE"),
        ({"carbonIntensity": None}, "no figure for DE"),
        ({"carbonIntensity": -1}, "carbonIntensity"),
        ({"carbonIntensity": 1e300}, "carbonIntensity"),
        ({"datetime": "0001-01-01T00:00:00+14:00"}, "year 1"),
        ({"carbonIntensity": "322"}, "carbonIntensity"),
        ({"carbonIntensity": True}, "carbonIntensity"),
        ({"isEstimated": "no"}, "isEstimated"),
        ({"datetime": "2019-05-21T00:00:00"}, "datetime"),
        ({"emissionFactorType": "direct"}, "'direct' factors"),
    ],
)
def test_an_answer_that_is_not_the_figure_asked_for_is_refused(service, change, says):
    service.plays("latest-DE.json")
    service.body = json.dumps(json.loads(service.body) | change).encode()
    with pytest.raises(NoFigure, match=says):
        service.client().latest("DE")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{", b"\xff\xfe", b'{"zone": "DE"}'])
def test_garbage_is_refused(service, body):
    service.body = body
    with pytest.raises(NoFigure, match="not understood"):
        service.client().latest("DE")


def test_nobody_there_is_passing(service, caplog):
    client = ElectricityMapsClient("http://127.0.0.1:9/v3", _KEY, wall_clock_s=lambda: _NOW)
    with caplog.at_level(logging.DEBUG), pytest.raises(NoFigure, match="does not answer") as away:
        client.latest("DE")
    assert away.value.is_passing
    assert _KEY not in caplog.text


def test_an_answer_that_trickles_in_is_not_waited_for(service):
    service.plays("latest-DE.json").byte_every_s = 0.1
    began = time.monotonic()
    with pytest.raises(NoFigure, match="does not answer: TimeoutError"):
        service.client().latest("DE")
    assert time.monotonic() - began < len(service.body) * service.byte_every_s / 2


@pytest.mark.parametrize("letter", ["\n", "\u2026"])
def test_a_key_that_is_no_header_is_not_shown(letter):
    client = ElectricityMapsClient("http://127.0.0.1:9/v3", _KEY + letter, wall_clock_s=lambda: _NOW)
    with pytest.raises(NoFigure) as refused:
        client.latest("DE")
    assert _KEY not in str(refused.value)
    assert refused.value.__cause__ is None
