"""The HTTP door of a running mesh."""

import concurrent.futures
import socket
import sqlite3
from contextlib import closing

import pytest
import requests
from running_echo import METERED, events, metered


def _post(mesh, data: bytes, **headers: str) -> requests.Response:
    url = f"{mesh.url}/v1/chat/completions"
    return requests.post(url, data=data, headers={**mesh.headers, **headers}, timeout=60)


def _check_envelope(response: requests.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["code"] == code
    assert error["message"]
    assert len(error["request_id"]) == 32
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "bad_request"),
        (b"{", 400, "bad_request"),
        (b"\xff\xfe", 400, "bad_request"),
        (b"[1]", 400, "bad_request"),
        (b'{"model": "auto", "model": "auto"}', 400, "bad_request"),
        (b'{"model": NaN}', 400, "bad_request"),
        (b'{"a":' * 50_000, 400, "bad_request"),
        (b"{}", 422, "unprocessable_entity"),
        (b'{"model": "auto"}', 422, "unprocessable_entity"),
        (b'{"model": "auto", "messages": 3}', 422, "unprocessable_entity"),
        (b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "n": 0}', 422, "unprocessable_entity"),
        (b'{"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}', 404, "not_found"),
        (b" " * (10 * 1024 * 1024 + 1), 413, "payload_too_large"),
    ],
)
def test_bad_input_gets_the_envelope_and_its_own_status(echo_mesh, data, status, code):
    _check_envelope(_post(echo_mesh, data), status, code)


def test_the_engines_own_refusal_comes_through_and_promises_no_receipt(echo_mesh):
    response = echo_mesh.chat("!refuse this")
    assert _check_envelope(response, 400, "bad_request")["message"] == "refused as asked"
    assert "X-Receipt-Id" not in response.headers


@pytest.mark.parametrize(("message", "times"), [("!refuse this", 0), (f"!refuse-late {METERED}", 1)])
def test_what_an_engine_ran_before_it_refused_is_booked_as_the_meshs(echo_mesh, message, times):
    response = echo_mesh.chat(message)
    assert response.status_code == 400
    booked = "SELECT count(*), sum(energy_microjoules > 0) FROM failed_attempts WHERE request_id = ?"
    request_id = response.headers["X-Request-Id"]

    def is_booked() -> bool:
        with closing(sqlite3.connect(f"file:{echo_mesh.data_dir}/ledger.sqlite3?mode=ro", uri=True)) as ledger:
            return ledger.execute(booked, (request_id,)).fetchone() == (times, times or None)

    assert echo_mesh.wait_until(is_booked)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer jc_LIVE_wrong"}, {"Authorization": "Basic eDp5"}])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/receipts/rcpt_" + "0" * 32])
def test_no_key_no_answer(echo_mesh, path, headers):
    response = requests.get(echo_mesh.url + path, headers=headers, timeout=10)
    _check_envelope(response, 401, "invalid_api_key")


def test_chat_needs_a_key_before_it_reads_the_body(echo_mesh):
    response = requests.post(f"{echo_mesh.url}/v1/chat/completions", data=b"{", timeout=10)
    _check_envelope(response, 401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/", "/v1/nope", "/v1/receipts/", "/v1/receipts/rcpt_" + "0" * 32, "/v1/receipts/x"])
def test_what_is_not_there_is_404(echo_mesh, path):
    response = requests.get(echo_mesh.url + path, headers=echo_mesh.headers, timeout=10)
    _check_envelope(response, 404, "not_found")


def test_a_wrong_method_is_405(echo_mesh):
    _check_envelope(requests.delete(f"{echo_mesh.url}/v1/models", timeout=10), 405, "method_not_allowed")


@pytest.mark.parametrize("tag", ["x" * 129, "caf\xe9", ""])
def test_a_customer_tag_must_be_short_visible_ascii(echo_mesh, tag):
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}'
    response = _post(echo_mesh, body, **{"X-Customer-Tag": tag.encode("latin-1")})
    _check_envelope(response, 400, "bad_request")


def test_public_routes_need_no_key(echo_mesh):
    assert requests.get(f"{echo_mesh.url}/healthz", timeout=10).json() == {"status": "ok"}
    group = requests.get(f"{echo_mesh.url}/v1/keys/group", timeout=10).json()
    assert len(bytes.fromhex(group["public_key"])) == 32
    assert (group["threshold"], group["signers"]) == (3, 5)


def test_a_unary_answer_header_body_and_receipt_agree(echo_mesh):
    response = echo_mesh.chat(METERED)
    receipt = echo_mesh.receipt(response.headers["X-Receipt-Id"])
    body = response.json()
    assert body["choices"][0]["message"]["content"] == f"{METERED} "
    assert float(response.headers["X-Energy-Joules"]) == body["energy"]["joules"] == receipt["energy"]["total_joules"]
    assert body["energy"]["joules"] > 0
    words = len(METERED.split())
    assert receipt["workload"]["tokens"] == {"input": words, "cached": 0, "output": words}
    assert receipt["workload"]["id"] == body["id"]
    assert len(receipt["verification"]["signature"]) == 128


def test_a_stream_ends_with_the_energy_and_no_extra_chunk(echo_mesh):
    response = echo_mesh.chat("one two three", stream=True)
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert len(chunks) == 4, "the role, and three words"
    assert [("energy" in chunk) for chunk in chunks] == [False, False, False, True]
    assert chunks[-1]["energy"]["receipt_id"] == response.headers["X-Receipt-Id"]
    assert response.headers["X-Routed-To"].startswith("self-hosted/local/")


def test_a_stream_with_usage_carries_the_energy_there(echo_mesh):
    *chunks, _ = events(echo_mesh.chat("one two", stream=True, stream_options={"include_usage": True}))
    assert len(chunks) == 4
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert [("energy" in chunk) for chunk in chunks] == [False, False, False, True]


def test_the_customer_tag_is_on_the_receipt(echo_mesh):
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}'
    response = _post(echo_mesh, body, **{"X-Customer-Tag": "team blue"})
    assert echo_mesh.receipt(response.headers["X-Receipt-Id"])["workload"]["customer_tag"] == "team blue"


def test_many_at_once_each_get_their_own_receipt_in_one_gapless_chain(echo_mesh):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda index: echo_mesh.chat(f"say {index}"), range(48)))
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [
        f"say {index} " for index in range(48)
    ]
    receipts = [echo_mesh.receipt(answer.headers["X-Receipt-Id"]) for answer in answers]
    sequence = sorted(receipt["chain"]["seq"] for receipt in receipts)
    assert sequence == list(range(sequence[0], sequence[0] + 48))


def test_a_client_that_leaves_gets_a_receipt_for_what_ran(echo_mesh):
    response = echo_mesh.chat("word " * 2000, stream=True)
    receipt_id = response.headers["X-Receipt-Id"]
    metered(response)
    response.close()

    def resolves() -> bool:
        url = f"{echo_mesh.url}/v1/receipts/{receipt_id}"
        return requests.get(url, headers=echo_mesh.headers, timeout=10).ok

    assert echo_mesh.wait_until(resolves)
    receipt = echo_mesh.receipt(receipt_id)
    assert 0 < receipt["workload"]["tokens"]["output"] < 2000
    assert receipt["energy"]["total_joules"] > 0


def test_garbage_on_the_socket_leaves_the_mesh_answering(echo_mesh):
    host, port = echo_mesh.url.removeprefix("http://").split(":")
    for garbage in (b"\x00" * 64, b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/models HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(garbage)
            raw.settimeout(5)
            raw.recv(4096)
    assert echo_mesh.chat("still there").ok
