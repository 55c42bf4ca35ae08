import json

import pytest

from serve.answer import energy_headers, unary_body, with_energy
from serve.messages import Payload, Settled
from serve.shapes import Shape

_ENERGY = {
    "total_joules": 0.000012,
    "estimated_joules": 0.000002,
    "method": "util-tdp",
    "method_confidence": "derived",
    "scope": ["cpu", "dram"],
    "counter_period_ms": 10.0,
    "mean_batch": 1.5,
    "errors": {
        "conservation_percent": 0.0,
        "counter_percent": 30.0,
        "allocation_percent": None,
        "allocation_reason": "not calibrated",
    },
}
_RECEIPT = {"receipt_id": "rcpt_" + "a" * 32, "energy": _ENERGY, "carbon": {"gco2eq_total": 0.0000000016}}
_DONE = b"data: [DONE]\n\n"
_USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1}}\n\n'


def _event(text: str, finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


async def _stream(*events: bytes):
    for event in events:
        yield Payload(event)
    yield Settled(json.dumps(_RECEIPT).encode())


async def _answer(*events: bytes, include_usage: bool) -> list[bytes]:
    return [event async for event in with_energy(_stream(*events), Shape.CHAT, include_usage=include_usage)]


def _parsed(event: bytes):
    return json.loads(event.removeprefix(b"data: "))


async def _message(*events: bytes) -> list[bytes]:
    return [event async for event in with_energy(_stream(*events), Shape.MESSAGES, include_usage=True)]


async def test_a_message_carries_the_energy_with_its_stop_reason_and_ends_with_its_own_last_event():
    start = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"event: message_delta"}}\n\n'
    )
    delta = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{}}\n\n'
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    first, second, third = await _message(start, delta, stop, _DONE)
    assert (first, third) == (start, stop)
    head, _, data = second.partition(b"data: ")
    assert head == b"event: message_delta\n"
    told = json.loads(data)
    assert told.pop("energy")["receipt_id"] == _RECEIPT["receipt_id"]
    assert told == json.loads(delta.partition(b"data: ")[2])


async def test_a_completion_with_usage_carries_the_energy_there_wherever_the_usage_stands():
    text = b'data: {"id":"x","choices":[{"index":0,"text":"hi","finish_reason":"stop"}]}\n\n'
    usage = b'data: {"id":"x","choices":[],"system_fingerprint":"f","usage":{"total_tokens":3}}\n\n'
    events = with_energy(_stream(text, usage, _DONE), Shape.COMPLETION, include_usage=True)
    assert [("energy" in _parsed(event)) if event != _DONE else None async for event in events] == [False, True, None]


@pytest.mark.parametrize("body", [b'{"a":{"b":1.50}}', b'{"a":[{}]}\n', b"{}"])
def test_a_body_keeps_its_bytes_before_the_energy(body):
    told = unary_body(body, _RECEIPT)
    assert told.startswith(body.rstrip()[:-1])
    assert json.loads(told).pop("energy")["joules"] == 0.000012


def test_headers_are_plain_decimals():
    assert energy_headers(_RECEIPT) == {
        "X-Energy-Joules": "0.000012",
        "X-Energy-Method": "util-tdp",
        "X-Energy-Confidence": "derived",
        "X-Energy-Estimated-Joules": "0.000002",
        "X-Energy-Scope": "cpu+dram",
        "X-Energy-Counter-Period-ms": "10",
        "X-Energy-Mean-Batch": "1.5",
        "X-Energy-Error-Percent": "conservation=0, counter=30, allocation=unavailable",
        "X-Carbon-mg": "0.000001600"[:-2],
    }


def test_absent_energy_is_said_never_zero():
    absent = {
        **_RECEIPT,
        "energy": {
            **dict.fromkeys(_ENERGY),
            "method_confidence": "unavailable",
            "scope": [],
            "errors": {"conservation_percent": 0.0, "counter_percent": None, "allocation_percent": None},
        },
        "carbon": {"gco2eq_total": None},
    }
    headers = energy_headers(absent)
    assert headers.pop("X-Energy-Error-Percent") == "conservation=0, counter=unavailable, allocation=unavailable"
    assert set(headers.values()) == {"unavailable"}


def test_a_unary_body_keeps_everything_and_gains_energy():
    body = json.loads(unary_body(b'{"id":"x","choices":[{"message":{"content":"\xc3\xa9"}}]}', _RECEIPT))
    assert body["choices"][0]["message"]["content"] == "é"
    assert body["energy"]["joules"] == 0.000012
    assert body["energy"]["receipt_id"] == _RECEIPT["receipt_id"]


async def test_without_usage_the_finish_chunk_carries_the_energy_and_no_chunk_is_added():
    sent = [_event(""), _event("a"), _event("b", "stop"), _USAGE, _DONE]
    got = await _answer(*sent, include_usage=False)
    assert got[:2] == sent[:2]
    assert len(got) == 4
    assert got[-1] == _DONE
    last = _parsed(got[2])
    assert last["energy"]["method"] == "util-tdp"
    assert {key: last[key] for key in ("id", "choices")} == _parsed(sent[2])


async def test_with_usage_the_usage_chunk_carries_it_and_nothing_else_is_touched():
    sent = [_event("a"), _event("b", "stop"), _USAGE, _DONE]
    got = await _answer(*sent, include_usage=True)
    assert got[:2] == sent[:2]
    assert len(got) == len(sent)
    assert _parsed(got[2])["usage"] == {"prompt_tokens": 1}
    assert _parsed(got[2])["energy"]["confidence"] == "derived"


async def test_with_several_choices_the_last_finish_chunk_carries_it_and_the_order_stays():
    sent = [_event("a"), _event("", "stop", 0), _event("b", None, 1), _event("", "length", 1), _USAGE, _DONE]
    got = await _answer(*sent, include_usage=False)
    assert got[:3] == sent[:3]
    assert "energy" in _parsed(got[3])
    assert len(got) == 5


async def test_text_that_looks_like_a_finish_or_a_usage_chunk_is_passed_at_once():
    tricky = _event('"finish_reason":"stop" "choices":[],"usage":{ [DONE]')
    got = await _answer(tricky, _event("", "stop"), _USAGE, _DONE, include_usage=False)
    assert got[0] == tricky
    assert "energy" not in _parsed(got[0])
    assert len(got) == 3
