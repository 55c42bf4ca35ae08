"""A mesh behind HAProxy: what it listens on, its streams and errors, and what becomes of it when it stops."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from mesh_processes import command_of, descendants, listening, off_loopback
from running_echo import EchoMesh, built_in_settings, events, running_echo_mesh

_SLOW_READER_S = 2
_BODY_S = 5
_MOST_REQUESTS = 4
_LARGE_WORDS, _LARGE_WORD_CHARACTERS = 80, 100_000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[EchoMesh]:
    folder = tmp_path_factory.mktemp("fast")
    settings = built_in_settings()
    settings["mesh"]["fast_path"] = True
    settings["ingress"]["most_requests"] = _MOST_REQUESTS
    settings["deadlines"] |= {"slow_reader_s": _SLOW_READER_S, "body_s": _BODY_S}
    for model in settings["models"]:
        model["context_tokens"] = 100 * _LARGE_WORDS * _LARGE_WORD_CHARACTERS
        model["prior_joules_per_token"] = 1e-6
    with running_echo_mesh(folder, settings=settings) as running:
        yield running
    assert not _processes_of(folder), "something of the mesh goes on after it was stopped"


def _processes_of(folder: Path) -> list[int]:
    """Processes that were started with a path of this folder."""
    return [pid for pid in psutil.pids() if pid != os.getpid() and str(folder) in command_of(pid)]


def test_haproxy_answers_and_only_loopback_is_listened_on(mesh):
    port = int(mesh.url.rpartition(":")[2])
    seen = []

    def haproxy_answers() -> bool:
        seen.append(listening(mesh.process.pid))
        return any(who.endswith("/haproxy") for who in seen[-1].get(f"0100007F:{port:04X}", ()))

    assert mesh.wait_until(haproxy_answers)
    assert [off for off in map(off_loopback, seen) if off] == []


def test_a_unary_answer_and_a_stream_with_their_joules(mesh):
    answer = mesh.chat("one two three")
    assert answer.status_code == 200
    assert answer.json()["energy"]["receipt_id"] == answer.headers["X-Receipt-Id"]
    assert f"rcpt_{answer.headers['X-Request-Id']}" == answer.headers["X-Receipt-Id"], "it has one id, the mesh's"
    with mesh.chat("one two three", stream=True, stream_options={"include_usage": True}) as stream:
        parsed = events(stream)
    assert parsed[-1] == "[DONE]"
    assert parsed[-2]["energy"]["receipt_id"] == stream.headers["X-Receipt-Id"]


def test_a_stream_comes_piece_by_piece(mesh):
    with mesh.chat("!pace 0.3 a b c", stream=True) as stream:
        came = [time.monotonic() for line in stream.iter_lines() if line]
    assert came[-1] - came[0] > 0.6, "it came all at once"


def test_our_own_errors_pass_untouched(mesh):
    refused = requests.post(f"{mesh.url}/v1/chat/completions", json={}, timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert requests.get(f"{mesh.url}/nowhere", timeout=30).json()["error"]["code"] == "not_found"


def _large_text() -> str:
    """Eight million characters: twice what gRPC takes by itself, and nearly what the door does."""
    return " ".join(_LARGE_WORDS * ["w" * _LARGE_WORD_CHARACTERS])


def test_a_request_and_an_answer_of_eight_megabytes_pass(mesh):
    text = _large_text()
    answer = mesh.chat(text)
    assert answer.status_code == 200, answer.text[:300]
    assert answer.json()["choices"][0]["message"]["content"].strip() == text


def test_clients_that_do_not_read_are_given_up_and_billed_for_what_ran(mesh):
    before = _receipts(mesh)
    unread = [_open_stream(mesh) for _ in range(_MOST_REQUESTS)]
    try:
        assert mesh.wait_until(lambda: mesh.chat("one").status_code == 503), "the streams hold no place"
        assert mesh.wait_until(lambda: mesh.chat("one").status_code == 200), "the streams hold their places for ever"
        assert {each.recv(300).splitlines()[0] for each in unread} == {b"HTTP/1.1 200 OK"}
        assert mesh.wait_until(lambda: _receipts(mesh) >= before + len(unread) + 1)
    finally:
        for each in unread:
            each.close()


def test_more_than_an_ingress_takes_is_refused_with_the_time_to_wait(mesh):
    streams = [mesh.chat("!pace 1 a b c", stream=True) for _ in range(_MOST_REQUESTS)]
    try:
        refused = mesh.chat("one")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
    finally:
        for stream in streams:
            stream.close()
    assert mesh.wait_until(lambda: mesh.chat("one").status_code == 200)


def _receipts(mesh: EchoMesh) -> int:
    page = requests.get(f"{mesh.url}/v1/receipts?limit=100", headers=mesh.headers, timeout=30)
    page.raise_for_status()
    return len(page.json()["data"])


def _open_stream(mesh: EchoMesh) -> socket.socket:
    """A stream, larger than all buffers on its way, of which nothing is read."""
    messages = [{"role": "user", "content": _large_text()}]
    body = json.dumps({"model": "auto", "messages": messages, "stream": True}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", int(mesh.url.rpartition(":")[2])))
    connection.sendall(_head(mesh, len(body)) + body)
    return connection


def _head(mesh: EchoMesh, body_bytes: int) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: mesh\r\nAuthorization: Bearer {mesh.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    )
    return head.encode()


def test_a_body_that_does_not_come_is_given_up(mesh):
    with socket.create_connection(("127.0.0.1", int(mesh.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(_head(mesh, body_bytes=100) + b"{")
        answer = b""
        while b'"request_id"' not in answer and (more := connection.recv(10_000)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b'"request_id"' in answer, "it isn't HAProxy's own"


def test_an_ingress_that_dies_is_an_error_in_our_envelope_and_another_comes(mesh):
    with mesh.chat("!pace 1 a b c", stream=True):
        ingress = next(
            pid
            for pid in descendants(mesh.process.pid)
            if "ServeReplica" in command_of(pid) and "ingress" in command_of(pid)
        )
        os.kill(ingress, signal.SIGKILL)
    seen = set()
    give_up = time.monotonic() + 40
    while time.monotonic() < give_up:
        try:
            answer = mesh.chat("one")
        except requests.ConnectionError:
            continue  # what failed on a connection that was used before is closed, so that the client sends it again
        if answer.status_code == 200:
            break
        seen.add((answer.status_code, answer.json()["error"]["code"]))
    assert answer.status_code == 200
    assert seen <= {(502, "upstream_error"), (503, "service_unavailable")}
