"""Requests that no honest client sends, over the wire: each gets its 4xx, and the mesh goes on answering."""

import json
import random
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests

_PATHS = ("chat/completions", "completions", "embeddings", "messages", "explain")
_GOOD = {
    "chat/completions": {"model": "auto", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "auto", "prompt": "hi"},
    "embeddings": {"model": "auto", "input": "hi"},
    "messages": {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]},
    "explain": {"model": "auto", "messages": [{"role": "user", "content": "hi"}]},
}
_BODIES = {
    "not JSON": b"{",
    "no object": b"[]",
    "bad UTF-8": b'{"model": "\xff"}',
    "half a surrogate pair": b'{"model": "\\udc00"}',
    "deep": b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "a key twice": b'{"model": "auto", "model": "auto"}',
    "NaN": b'{"temperature": NaN}',
    "infinite": b'{"temperature": 1e400}',
    "a huge number": b'{"n": ' + b"9" * 5000 + b"}",
    "too large": b'{"a": "' + b"x" * 10 * 1024 * 1024 + b'"}',
}


@pytest.fixture(scope="module", autouse=True)
def _it_goes_on_answering(echo_mesh) -> Iterator[None]:
    yield
    assert echo_mesh.chat("still there").json()["choices"][0]["message"]["content"] == "still there "


def _check(response: requests.Response, *statuses: int) -> None:
    assert response.status_code in statuses, response.text[:300]
    error = response.json()["error"]
    assert len(error["request_id"]) == 32
    assert "Traceback" not in response.text


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize("kind", _BODIES)
def test_a_bad_body_is_refused(echo_mesh, path, kind):
    response = requests.post(f"{echo_mesh.url}/v1/{path}", data=_BODIES[kind], headers=echo_mesh.headers, timeout=60)
    _check(response, 413 if kind == "too large" else 400)


@pytest.mark.parametrize("path", _PATHS)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_another_content_type_is_refused(echo_mesh, path, kind):
    headers = {**echo_mesh.headers, "Content-Type": kind}
    body = json.dumps(_GOOD[path])
    _check(requests.post(f"{echo_mesh.url}/v1/{path}", data=body, headers=headers, timeout=60), 400)


@pytest.mark.parametrize("path", _PATHS)
def test_oversized_headers_are_refused(echo_mesh, path):
    headers = {**echo_mesh.headers, "X-Long": "x" * 40_000}
    _check(requests.post(f"{echo_mesh.url}/v1/{path}", json=_GOOD[path], headers=headers, timeout=60), 400)


@pytest.mark.parametrize(("name", "value"), [("n", 10**6), ("max_tokens", 10**12), ("max_tokens", -1), ("n", 0.5)])
def test_a_count_that_cannot_be_is_refused(echo_mesh, name, value):
    body = {**_GOOD["chat/completions"], name: value}
    url = f"{echo_mesh.url}/v1/chat/completions"
    _check(requests.post(url, json=body, headers=echo_mesh.headers, timeout=60), 422)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages", "/healthz"])
def test_another_method_is_refused(echo_mesh, method, path):
    response = requests.request(method, echo_mesh.url + path, headers=echo_mesh.headers, timeout=60)
    assert response.status_code == 405
    assert response.headers["Allow"]


@pytest.mark.parametrize(
    "target",
    ["/v1/../v1/models", "/v1//models", "/v1/models%00", "/%2e%2e/", "//", "/v1/receipts/..%2f..%2fx", "/" * 99],
)
def test_a_trick_with_the_path_is_refused(echo_mesh, target):
    assert _status(echo_mesh, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n") in (400, 401, 404)


def test_random_bytes_in_place_of_a_body_are_refused(echo_mesh):
    chance = random.Random(7)
    for _ in range(60):
        path = chance.choice(_PATHS)
        good = bytearray(json.dumps(_GOOD[path]).encode())
        for _ in range(chance.randint(1, 5)):
            good[chance.randrange(len(good))] = chance.randrange(256)
        url = f"{echo_mesh.url}/v1/{path}"
        response = requests.post(url, data=bytes(good), headers=echo_mesh.headers, timeout=60)
        assert response.status_code < 500, (path, bytes(good))


def _status(mesh, head: str) -> int:
    """The status that a raw request gets; the header with the key is added."""
    address = urlsplit(mesh.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as raw:
        raw.sendall(f"{head}Authorization: Bearer {mesh.key}\r\n\r\n".encode())
        return int(raw.makefile("rb").readline().split()[1])
