"""A stream of each API whose engine breaks in its middle: the client gets one answer, whole, and pays once."""

import json

import pytest
import requests

_WORDS = "!break-once two three four"
_BODIES = {
    "chat/completions": {"messages": [{"role": "user", "content": _WORDS}]},
    "completions": {"prompt": _WORDS, "max_tokens": 50},
    "messages": {"messages": [{"role": "user", "content": _WORDS}], "max_tokens": 50},
}


def _texts(path: str, events: list[dict]) -> list[str]:
    if path == "messages":
        return [each["delta"]["text"] for each in events if each["type"] == "content_block_delta"]
    choices = [choice for each in events for choice in each["choices"]]
    return [choice["text"] if path == "completions" else choice["delta"].get("content", "") for choice in choices]


@pytest.mark.parametrize("path", _BODIES)
def test_a_stream_goes_on_where_it_broke(echo_mesh, path):
    response = requests.post(
        f"{echo_mesh.url}/v1/{path}",
        json={"model": "auto", "stream": True, **_BODIES[path]},
        headers=echo_mesh.headers,
        stream=True,
        timeout=60,
    )
    lines = [line for line in response.iter_lines(decode_unicode=True) if line.startswith("data: ")]
    data = [line.removeprefix("data: ") for line in lines]
    assert (data[-1] == "[DONE]") == (path != "messages")
    events = [json.loads(each) for each in data if each != "[DONE]"]
    assert "".join(_texts(path, events)).split() == _WORDS.split()
    (energy,) = [each["energy"] for each in events if "energy" in each]
    receipt = echo_mesh.receipt(response.headers["X-Receipt-Id"])
    assert energy["receipt_id"] == receipt["receipt_id"]
    assert [each["outcome"] for each in receipt["execution"]["attempts"]] == ["engine error"]
    if path == "messages":
        assert [each["type"] for each in events][-2:] == ["message_delta", "message_stop"]
