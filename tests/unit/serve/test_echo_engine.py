"""The engine in whose place tests put no model keeps what `serve.engine_spec.Engine` promises, in each shape."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from echo import EchoEngine
from silent_reporter import SilentReporter

from serve.errors import RequestRefused
from serve.messages import DONE, Payload
from serve.shapes import Shape

_ID = "0123456789abcdef" * 2
_WORDS = "one two three four"
_PROMPTS: dict[Shape, dict[str, Any]] = {
    Shape.CHAT: {"messages": [{"role": "user", "content": _WORDS}]},
    Shape.COMPLETION: {"prompt": _WORDS},
    Shape.MESSAGES: {"messages": [{"role": "user", "content": [{"type": "text", "text": _WORDS}]}], "max_tokens": 99},
}
_GENERATING = list(_PROMPTS)
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "days", "unit"],
}


@pytest.fixture
def reporter() -> SilentReporter:
    return SilentReporter()


@pytest.fixture
def engine(reporter) -> EchoEngine:
    return EchoEngine("small", reporter)


async def _stream(
    engine: EchoEngine, shape: Shape, body: Mapping[str, Any], delivered: Sequence[int] = (), stop_at: str | None = None
) -> list[Payload]:
    told = []
    async for item in engine.answer(_ID, shape, {**body, "stream": True}, delivered):
        assert isinstance(item, Payload)
        told.append(item)
        if stop_at is not None and f'"{stop_at} "'.encode() in item.data:
            engine.stop_at_length(_ID)
    return told


async def _body(engine: EchoEngine, shape: Shape, body: Mapping[str, Any]) -> dict[str, Any]:
    (payload,) = [item async for item in engine.answer(_ID, shape, body) if isinstance(item, Payload)]
    return json.loads(payload.data)


def _data(payloads: Sequence[Payload]) -> list[dict[str, Any]]:
    assert payloads[-1].data == DONE
    return [json.loads(payload.data.decode().partition("data: ")[2]) for payload in payloads[:-1]]


def _said(shape: Shape, payloads: Sequence[Payload]) -> tuple[str, str, int]:
    """The text, why it ended, and how many tokens it counts."""
    text, end, tokens = "", "", 0
    for event in _data(payloads):
        if shape is Shape.MESSAGES:
            text += (event.get("delta") or {}).get("text", "")
            end = (event.get("delta") or {}).get("stop_reason") or end
            tokens = (event.get("usage") or {}).get("output_tokens", tokens)
            continue
        for choice in event["choices"]:
            text += choice["text"] if shape is Shape.COMPLETION else choice["delta"].get("content", "")
            assert not (end and choice["finish_reason"]), "it ends once"
            end = choice["finish_reason"] or end
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return text, end, tokens


@pytest.mark.parametrize("shape", _GENERATING)
async def test_a_stream_says_the_words_counts_them_and_ends(engine, shape):
    ends = "end_turn" if shape is Shape.MESSAGES else "stop"
    assert _said(shape, await _stream(engine, shape, _PROMPTS[shape])) == (f"{_WORDS} ", ends, 4)


@pytest.mark.parametrize("shape", _GENERATING)
async def test_a_stream_that_is_stopped_ends_with_length_and_its_usage(engine, reporter, shape):
    length = "max_tokens" if shape is Shape.MESSAGES else "length"
    assert _said(shape, await _stream(engine, shape, _PROMPTS[shape], stop_at="two")) == ("one two ", length, 2)
    assert len(reporter.produced) == 2, "nothing was computed after the stop"


async def test_all_choices_are_stopped_that_have_not_ended(engine):
    body = {"prompt": ["one two three", "one"], "n": 2}
    events = _data(await _stream(engine, Shape.COMPLETION, body, stop_at="two"))
    ends = {choice["index"]: choice["finish_reason"] for event in events for choice in event["choices"]}
    assert ends == {0: "length", 1: "length", 2: "stop", 3: "stop"}
    assert events[-1]["usage"]["completion_tokens"] == 6


async def test_a_stop_of_what_is_not_here_does_nothing(engine):
    engine.stop_at_length(_ID)
    assert _said(Shape.CHAT, await _stream(engine, Shape.CHAT, _PROMPTS[Shape.CHAT])) == (f"{_WORDS} ", "stop", 4)
    engine.stop_at_length(_ID)
    assert _said(Shape.CHAT, await _stream(engine, Shape.CHAT, _PROMPTS[Shape.CHAT])) == (f"{_WORDS} ", "stop", 4)


@pytest.mark.parametrize("shape", _GENERATING)
async def test_a_resumed_stream_is_the_whole_one_and_only_its_new_tokens_are_told(engine, reporter, shape):
    whole = await _stream(engine, shape, _PROMPTS[shape])
    tokens = [token for payload in whole for token in payload.token_ids]
    assert len(tokens) == 4
    reporter.produced.clear()
    resumed = await _stream(engine, shape, _PROMPTS[shape], delivered=tokens[:3])
    assert [payload.data for payload in resumed] == [payload.data for payload in whole]
    assert [token for payload in resumed for token in payload.token_ids] == tokens[3:]
    assert len(reporter.produced) == 1


async def test_several_choices_have_no_tokens_to_resume_from(engine):
    whole = await _stream(engine, Shape.CHAT, {**_PROMPTS[Shape.CHAT], "n": 2})
    assert {payload.token_ids for payload in whole} == {()}
    with pytest.raises(RequestRefused, match="not the tokens"):
        await _stream(engine, Shape.CHAT, {**_PROMPTS[Shape.CHAT], "n": 2}, delivered=(1,))


@pytest.mark.parametrize(
    ("options", "text", "end"),
    [
        ({"max_tokens": 2}, "one two ", "length"),
        ({"max_completion_tokens": 3}, "one two three ", "length"),
        ({"max_tokens": 4}, f"{_WORDS} ", "stop"),
        ({"stop": ["three", "two"]}, "one ", "stop"),
    ],
)
async def test_limits_and_stop_strings_end_an_answer(engine, options, text, end):
    answer = await _body(engine, Shape.CHAT, {**_PROMPTS[Shape.CHAT], **options})
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, end)


def _tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": _SCHEMA}} for name in names]


@pytest.mark.parametrize(
    ("asked", "options", "called", "end"),
    [
        ("the weather of 3 days", {}, ["get_weather"], "tool_calls"),
        ("weather and time zones", {}, ["get_weather", "time_zone"], "tool_calls"),
        ("weather and time zones", {"parallel_tool_calls": False}, ["get_weather"], "tool_calls"),
        ("hello", {}, [], "stop"),
        ("hello", {"tool_choice": "required"}, ["get_weather"], "tool_calls"),
        ("weather", {"tool_choice": "none"}, [], "stop"),
        ("x", {"tool_choice": {"type": "function", "function": {"name": "time_zone"}}}, ["time_zone"], "stop"),
    ],
)
async def test_tools_are_called_as_the_choice_and_the_words_say(engine, asked, options, called, end):
    body = {"messages": [{"role": "user", "content": asked}], "tools": _tools("get_weather", "time_zone"), **options}
    (choice,) = (await _body(engine, Shape.CHAT, body))["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert ([call["function"]["name"] for call in calls], choice["finish_reason"]) == (called, end)
    for call in calls:
        days = 3 if "3" in asked else 0
        assert json.loads(call["function"]["arguments"]) == {"city": asked, "days": days, "unit": "C"}


async def test_a_tool_s_result_is_answered_in_words(engine):
    messages = [{"role": "user", "content": "the weather"}, {"role": "tool", "content": "weather: sunny"}]
    (choice,) = (await _body(engine, Shape.CHAT, {"messages": messages, "tools": _tools("get_weather")}))["choices"]
    assert choice["message"]["content"] == "weather: sunny "


async def test_anthropic_s_tools_are_called_in_blocks(engine):
    tool = {"name": "get_weather", "input_schema": _SCHEMA}
    body = {"messages": [{"role": "user", "content": "hello 5"}], "max_tokens": 99, "tools": [tool]}
    answer = await _body(engine, Shape.MESSAGES, {**body, "tool_choice": {"type": "any"}})
    (block,) = answer["content"]
    assert (block["name"], block["input"]["days"], answer["stop_reason"]) == ("get_weather", 5, "tool_use")


async def test_a_schema_is_answered_with_an_instance_of_it(engine):
    schema = {
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
        "type": "object",
        "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 2}, "skip": {}},
        "required": ["points"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "points", "schema": schema}}
    answer = await _body(
        engine, Shape.CHAT, {"messages": [{"role": "user", "content": "at 7"}], "response_format": form}
    )
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"points": [{"x": 7}, {"x": 7}]}


async def test_images_are_taken(engine):
    content = [{"type": "text", "text": "look at"}, {"type": "image_url", "image_url": {"url": "data:image/png;,"}}]
    answer = await _body(engine, Shape.CHAT, {"messages": [{"role": "user", "content": content}]})
    assert answer["choices"][0]["message"]["content"] == "look at "


async def test_embeddings_are_the_same_in_both_encodings_and_meter_the_prompts_only(engine, reporter):
    texts = ["one two", "three"]
    floats = await _body(engine, Shape.EMBEDDING, {"input": texts})
    packed = await _body(engine, Shape.EMBEDDING, {"input": texts, "encoding_format": "base64"})
    for each, encoded in zip(floats["data"], packed["data"], strict=True):
        assert each["embedding"] == list(struct.unpack("<8f", base64.b64decode(encoded["embedding"])))
    assert floats["data"][0]["embedding"] != floats["data"][1]["embedding"]
    assert floats["usage"]["prompt_tokens"] == reporter.work[0].prompt_tokens == 3
    assert reporter.produced == [{}, {}]


async def test_token_ids_are_prompts_too(engine):
    one = await _body(engine, Shape.EMBEDDING, {"input": [5, 6, 7], "dimensions": 4})
    assert (len(one["data"]), len(one["data"][0]["embedding"]), one["usage"]["total_tokens"]) == (1, 4, 3)
    with pytest.raises(RequestRefused, match="8 dimensions"):
        await _body(engine, Shape.EMBEDDING, {"input": "x", "dimensions": 9})
