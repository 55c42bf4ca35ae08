"""The whole application on a ledger and a door of the test's own: what every route has in common."""

import asyncio
import functools
import gc
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from made_pool import make_pool
from starlette.types import Message, Scope

from clusters.grid import YearlyMeansFeed
from placement.exchange_rates import PREFERENCES
from placement.tiers import Tier
from receipts.api_keys import SCOPES, ApiKey
from serve.door import Answer
from serve.door_limits import DoorLimits
from serve.error_envelopes import envelope, known_status
from serve.errors import RequestRefused
from serve.http_application import build_app
from serve.messages import Payload, Settled, Started
from serve.outermost import MOST_HEADER_BYTES
from serve.payments.manual import ManualPayments
from serve.planner import Planner
from serve.pool_health import PoolHealth
from serve.request_pins import RequestPins
from serve.shapes import Shape

_REQUEST = "ab" * 16
_BODY_S = 0.2
_MODEL_PATHS = [f"/v1/{shape.value}" for shape in Shape]
_GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "auto", "messages": [{"role": "user", "content": "canary"}]},
    "/v1/completions": {"model": "auto", "prompt": "canary"},
    "/v1/embeddings": {"model": "auto", "input": "canary"},
    "/v1/messages": {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "canary"}]},
}


class Ledger:
    """Knows a key for each set of scopes that it is named after; no other call may reach it."""

    def __init__(self) -> None:
        self.key_of = SimpleNamespace(remote=self._key_of)

    async def _key_of(self, secret: str) -> ApiKey | None:
        if not secret.startswith("jc_LIVE_"):
            return None
        return ApiKey(
            key_id="key_" + "1" * 16,
            account="acme",
            name="",
            scopes=tuple(secret.removeprefix("jc_LIVE_").split(",")),
            created_unix_ns=1,
            expires_unix_ns=None,
            revoked_unix_ns=None,
        )


class Door:
    """Gives every request its answer, or ends it with its error."""

    def __init__(self) -> None:
        self.pools = {"small@here/eu": make_pool("small@here/eu")}
        health = PoolHealth(_clock)
        self.planner = Planner(self.pools, YearlyMeansFeed(), PREFERENCES["balanced"], health, _clock)
        self.error: Exception = AssertionError("the door was asked")
        self.answered: Answer | None = None

    def new_request_id(self) -> str:
        return _REQUEST

    async def answer(self, *_: object) -> Answer:
        if self.answered is None:
            raise self.error
        return self.answered

    def explain(self, *_: object) -> None:
        raise self.error


def _clock() -> float:
    return 0.0


def make_app(error: Exception | None = None, *, answered: Answer | None = None) -> FastAPI:
    """The one application of these tests, whose door ends requests with this error, or gives them this answer."""
    door, app = _door_and_app()
    door.error, door.answered = error or AssertionError("the door was asked"), answered
    return app


@functools.cache
def _door_and_app() -> tuple[Door, FastAPI]:
    door, parts = Door(), (Ledger(), {"public_key": "00"})
    untyped: Any = (door, *parts)
    app = build_app(
        *untyped,
        meters=list,
        operator_account="operator",
        pins=RequestPins({}),
        limits=DoorLimits(most_requests=10, slow_reader_s=5, body_s=_BODY_S),
        payments=ManualPayments("here"),
    )
    return door, app


async def ask(app: FastAPI, method: str, path: str, *, scopes: str = ",".join(SCOPES), **rest: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer jc_LIVE_{scopes}"} | rest.pop("headers", {})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mesh") as client:
        return await client.request(method, path, headers=headers, **rest)


def error_of(response: httpx.Response, path: str = "") -> dict[str, Any]:
    """The error, in the envelope of its route."""
    told = response.json()
    if path == "/v1/messages":
        assert (told["type"], told["request_id"]) == ("error", _REQUEST)
    else:
        assert set(told) == {"error"}
    error: dict[str, Any] = told["error"]
    assert error["request_id"] == response.headers["X-Request-Id"] == response.headers["Request-Id"] == _REQUEST
    return error


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    paths = make_app().openapi()["paths"]
    return [(path, method, operation) for path, methods in paths.items() for method, operation in methods.items()]


_OPERATIONS = _operations()
_KEYED = [(path, method, each["x-scope"]) for path, method, each in _OPERATIONS if "x-scope" in each]


def test_every_route_is_in_the_document():
    routes = {
        (route.path_format, method.lower())
        for route in make_app().routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert routes == {(path, method) for path, method, _ in _OPERATIONS}


@pytest.mark.parametrize(("path", "method", "operation"), _OPERATIONS)
def test_every_operation_says_who_may_and_what_it_answers(path, method, operation):
    assert operation["security"] == ([{"bearer": []}, {"x-api-key": []}] if "x-scope" in operation else [])
    statuses = set(operation["responses"])
    assert {"400", "500", "503"} <= statuses
    assert any(status.startswith("2") for status in statuses)
    if "x-scope" in operation:
        assert {"401", "403"} <= statuses
    if "requestBody" in operation:
        assert {"408", "413", "422"} <= statuses
    assert "HTTPValidationError" not in json.dumps(operation)
    for status, response in operation["responses"].items():
        kind = "MessagesErrorEnvelope" if path == "/v1/messages" else "ErrorEnvelope"
        if not status.startswith("2"):
            assert response["content"]["application/json"]["schema"]["$ref"].endswith(f"/{kind}")


def test_the_document_is_served_to_everyone_and_refers_only_to_what_it_has():
    document = make_app().openapi()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for reference in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert reference in schemas


async def test_the_document_is_at_its_address():
    response = await ask(make_app(), "GET", "/openapi.json", headers={"Authorization": ""})
    assert response.json()["openapi"].startswith("3.1")


@pytest.mark.parametrize(("path", "method", "scope"), _KEYED)
async def test_no_route_answers_without_a_key_or_its_scope(path, method, scope):
    path = path.replace("{kind}", "key").replace("{", "").replace("}", "")
    path += "?window=day" if "budgets" in path else ""
    none = await ask(make_app(), method, path, headers={"Authorization": ""}, json={})
    assert (none.status_code, none.headers["WWW-Authenticate"]) == (401, "Bearer")
    others = ",".join(each for each in SCOPES if each != scope)
    lacks = await ask(make_app(), method, path, scopes=others, json={})
    error = error_of(lacks, path.partition("?")[0])
    assert (lacks.status_code, error["code"]) == (403, "insufficient_scope")
    assert scope in error["message"]


@pytest.mark.parametrize("path", _MODEL_PATHS)
@pytest.mark.parametrize(
    ("status", "code", "anthropics"),
    [
        (400, "bad_request", "invalid_request_error"),
        (402, "insufficient_balance", "billing_error"),
        (404, "not_found", "not_found_error"),
        (409, "conflict", "invalid_request_error"),
        (413, "payload_too_large", "request_too_large"),
        (422, "unprocessable_entity", "invalid_request_error"),
        (429, "energy_budget_exceeded", "rate_limit_error"),
        (502, "upstream_error", "api_error"),
        (503, "service_unavailable", "overloaded_error"),
        (504, "timeout", "timeout_error"),
    ],
)
async def test_a_refusal_has_its_code_and_the_type_of_its_api(path, status, code, anthropics):
    refusal = RequestRefused(known_status(status), "why", "field", retry_after_s=7, receipt_id="rcpt_1")
    response = await ask(make_app(refusal), "POST", path, json=_GOOD[path])
    error = error_of(response, path)
    assert (response.status_code, error["code"], error["message"], error["param"]) == (status, code, "why", "field")
    assert (response.headers["Retry-After"], response.headers["X-Receipt-Id"]) == ("7", "rcpt_1")
    assert error["receipt_id"] == "rcpt_1"
    if path == "/v1/messages":
        assert error["type"] == anthropics
    assert ("X-Should-Retry" in response.headers) == (status == 409)


@pytest.mark.parametrize("path", [*_MODEL_PATHS, "/v1/explain"])
async def test_a_fault_of_ours_is_500_and_quotes_nothing(path, caplog):
    body = _GOOD.get(path, _GOOD["/v1/chat/completions"])
    with caplog.at_level(logging.DEBUG):
        response = await ask(make_app(ValueError("canary in a text")), "POST", path, json=body)
    assert (response.status_code, error_of(response, path)["code"]) == (500, "internal_error")
    assert "canary" not in response.text + caplog.text
    assert _REQUEST in caplog.text


def _answer(items: AsyncGenerator[Payload | Settled, None]) -> Answer:
    return Answer(
        request_id=_REQUEST,
        pool=make_pool("small@here/eu"),
        tier=Tier.L0,
        started=Started(replica="r", silicon="cpu", energy_method=None),
        items=items,
    )


async def _broken_stream() -> AsyncGenerator[Payload | Settled, None]:
    yield Payload(b'data: {"choices":[{"index":0,"delta":{"content":"one "},"finish_reason":null}]}\n\n')
    raise ValueError("canary in a text")


@pytest.mark.parametrize("path", [path for path in _MODEL_PATHS if path != "/v1/embeddings"])
async def test_a_stream_that_a_fault_of_ours_breaks_off_says_so_and_quotes_nothing(path, caplog):
    """One that only ended would look whole."""
    response = await ask(
        make_app(answered=_answer(_broken_stream())), "POST", path, json=_GOOD[path] | {"stream": True}
    )
    *_, last = response.text.removesuffix("\n\n").split("\n\n")
    head, _, data = last.rpartition("data: ")
    assert head == ("event: error\n" if path == "/v1/messages" else "")
    assert json.loads(data)["error"]["code"] == "internal_error"
    assert "canary" not in response.text + caplog.text
    assert _REQUEST in caplog.text


@pytest.mark.parametrize("took", [1, 2], ids=["the headers", "an event"])
async def test_an_answer_ends_with_its_client_at_once_and_not_when_garbage_is_collected(took):
    """Of a client that stops reading and goes; Starlette leaves what it sends suspended."""
    ended: list[str] = []

    async def endless() -> AsyncGenerator[Payload | Settled, None]:
        try:
            while True:
                yield Payload(b'data: {"choices":[{"index":0,"delta":{"content":"on "},"finish_reason":null}]}\n\n')
        finally:
            ended.append("yes")

    items = endless()
    await anext(items)  # as the door's, it has begun
    app, body = make_app(answered=_answer(items)), json.dumps(_GOOD[_MODEL_PATHS[0]] | {"stream": True}).encode()
    is_full = asyncio.Event()
    sent: list[Message] = []

    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        if (first := next(received, None)) is not None:
            return first
        await is_full.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) >= took:
            is_full.set()
            await asyncio.Event().wait()

    gc.disable()
    try:
        await app(_scope(_MODEL_PATHS[0]), receive, send)
        assert ended == ["yes"]
    finally:
        gc.enable()


def _scope(path: str) -> Scope:
    """As uvicorn makes it."""
    headers = [(b"authorization", f"Bearer jc_LIVE_{','.join(SCOPES)}".encode())]
    asgi = {"version": "3.0", "spec_version": "2.3"}
    rest = {"query_string": b"", "headers": headers, "root_path": "", "scheme": "http", "http_version": "1.1"}
    return {"type": "http", "asgi": asgi, "method": "POST", "path": path, "raw_path": path.encode(), **rest}


_BAD_BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[1]", 400),
    (b'"x"', 400),
    (b'{"model": "auto", "model": "auto"}', 400),
    (b'{"a": {"b": 1, "b": 2}}', 400),
    (b'{"model": NaN}', 400),
    (b'{"model": 1e999}', 400),
    (b'{"seed": 111111111111111111111111}', 400),
    (b'{"model": "\\ud800"}', 400),
    (b'{"a":' * 50_000, 400),
    (b'{"a":' + b"[" * 101 + b"]" * 101 + b"}", 400),
    (b"{}", 422),
    (b'{"model": 7}', 422),
]


@pytest.mark.parametrize("path", [*_MODEL_PATHS, "/v1/explain"])
@pytest.mark.parametrize(("body", "status"), _BAD_BODIES)
async def test_a_bad_body_gets_its_4xx_on_every_route_of_models(path, body, status):
    response = await ask(make_app(), "POST", path, content=body)
    assert response.status_code == status, response.text
    error_of(response, path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "n"),
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/completions", "n"),
        ("/v1/completions", "max_tokens"),
        ("/v1/embeddings", "dimensions"),
        ("/v1/messages", "max_tokens"),
    ],
)
@pytest.mark.parametrize("value", [-1, 10**9 + 1, 10**19, 1.5, "7", True, [1]])
async def test_a_huge_or_wrong_count_is_never_passed_on(path, name, value):
    response = await ask(make_app(), "POST", path, json={**_GOOD[path], name: value})
    assert (response.status_code, error_of(response, path)["param"]) == (422, name)


@pytest.mark.parametrize("path", [*_MODEL_PATHS, "/v1/explain"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br, gzip"},
    ],
)
async def test_a_body_of_another_kind_is_400_and_the_header_is_named(path, headers):
    response = await ask(make_app(), "POST", path, content=json.dumps(_GOOD["/v1/messages"]), headers=headers)
    assert (response.status_code, error_of(response, path)["param"]) == (400, next(iter(headers)))


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=UTF-8", ""])
async def test_json_in_utf_8_is_taken(kind):
    refusal = RequestRefused(known_status(402), "it came to the door")
    body = json.dumps(_GOOD["/v1/completions"])
    response = await ask(make_app(refusal), "POST", "/v1/completions", content=body, headers={"Content-Type": kind})
    assert response.status_code == 402


@pytest.mark.parametrize("path", _MODEL_PATHS)
async def test_a_slow_body_is_given_up(path):
    async def drip() -> AsyncIterator[bytes]:
        yield b'{"model":'
        await asyncio.sleep(60)

    response = await ask(make_app(), "POST", path, content=drip())
    assert (response.status_code, error_of(response, path)["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/messages", "/nowhere"])
@pytest.mark.parametrize(
    "headers", [{"X-Long": "x" * MOST_HEADER_BYTES}, {f"X-{number}": "x" for number in range(200)}]
)
async def test_oversized_headers_are_400_on_every_path(path, headers):
    response = await ask(make_app(), "GET", path, headers=headers)
    assert (response.status_code, error_of(response, path)["code"]) == (400, "bad_request")


@pytest.mark.parametrize(("path", "method", "_operation"), _OPERATIONS)
@pytest.mark.parametrize("wrong", ["HEAD", "OPTIONS", "TRACE", "PATCH", "BREW"])
async def test_another_method_is_405_and_says_which_there_are(path, method, _operation, wrong):
    response = await ask(make_app(), wrong, path)
    assert response.status_code == 405
    assert method.upper() in response.headers["Allow"]
    assert set(response.headers["Allow"].split(", ")) <= {"GET", "POST", "PUT", "DELETE"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1//models",
        "/v1/chat/completions/",
        "/v1/chat%2Fcompletions/x",
        "/v1/keys/../models/x",
        "/v1/%2e%2e/openapi.json",
        "/V1/models",
        "/v1/models%00",
        "/v1/receipts/",
        "//openapi.json",
        "/" + "x" * 8000,
    ],
)
async def test_tricks_with_the_path_are_404(path):
    response = await ask(make_app(), "GET", path)
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found"), path
    assert len(response.text) < 1000


async def test_models_are_listed_with_what_they_can_and_draw():
    app = make_app()
    listed = (await ask(app, "GET", "/v1/models")).json()
    assert [each["id"] for each in listed["data"]] == ["auto", "small"]
    small = listed["data"][1]
    assert (small["object"], small["task"], small["tier"], small["context_tokens"]) == ("model", "generate", "L3", 2048)
    assert small["typical_joules"] == {"per_request": None, "per_1000_output_tokens": None}
    assert (await ask(app, "GET", "/v1/models/small")).json() == small
    assert (await ask(app, "GET", "/v1/models/gpt-9")).status_code == 404
    assert (await ask(app, "GET", "/v1/models/org/name")).status_code == 404


@pytest.mark.parametrize("status", [418, 451, 499])
def test_a_status_that_has_no_code_is_one_of_its_class_that_has(status):
    assert known_status(status) == 400
    assert known_status(599) == known_status(700) == 500


@pytest.mark.parametrize("shape", [None, *Shape])
def test_every_known_status_has_an_envelope_in_every_api(shape):
    for status in (400, 401, 402, 403, 404, 405, 408, 409, 413, 422, 429, 500, 502, 503, 504):
        error = envelope(shape, known_status(status), "why", _REQUEST)["error"]
        assert set(error) == {"message", "type", "param", "code", "request_id"}
