import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.fleet import MOST_TOKENS
from serve.chat_request import parse_chat
from serve.errors import RequestRefused

_GOOD = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(
    ["model", "messages", "stream", "stream_options", "n", "max_tokens", "tools", "response_format", "role", "content"]
)


@given(st.dictionaries(_fields, _json, max_size=6))
def test_no_object_makes_the_request_reader_raise_anything_else(body):
    try:
        request = parse_chat({**_GOOD, **body}, 100)
    except RequestRefused as refused:
        assert refused.status == HTTPStatus.UNPROCESSABLE_ENTITY
        assert refused.param
    else:
        assert 1 <= request.least_tokens <= MOST_TOKENS


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_422_and_named(change, param):
    with pytest.raises(RequestRefused) as refused:
        parse_chat({**_GOOD, **change}, 100)
    assert (refused.value.status, refused.value.param) == (HTTPStatus.UNPROCESSABLE_ENTITY, param)


@pytest.mark.parametrize(
    ("content", "max_tokens", "least"), [("hi", None, 1), ("x" * 1600, None, 101), ("hi", 5000, 5000)]
)
def test_a_context_must_hold_the_prompt_and_a_token_or_all_that_may_be_answered(content, max_tokens, least):
    request = parse_chat({**_GOOD, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}, 100)
    assert request.least_tokens == least


def test_what_routing_needs_is_read():
    body = {
        "model": "some-model",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 7,
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_schema"},
        "messages": [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "last"}, {"type": "image_url", "image_url": {}}]},
        ],
    }
    request = parse_chat(json.loads(json.dumps(body)), 100)
    assert (request.stream, request.include_usage, request.max_tokens) == (True, True, 7)
    assert request.features == {"generate", "tools", "images"}
    assert request.signs.earlier_turns == 1
    assert request.signs.has_schema
    assert request.body == body


def test_the_signs_carry_what_the_classifier_reads():
    messages = [
        {"role": "system", "content": "Answer in Finnish."},
        {"role": "user", "content": "Prove it."},
        {"role": "assistant", "content": "No."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]},
    ]
    signs = parse_chat({"model": "auto", "messages": messages, "max_tokens": 9_000}, 2).signs
    assert signs.instructions == "Answer in Finnish.\nBe brief."
    assert signs.previous_prompt == "Prove it."
    assert signs.prompt == "And\nnow?"
    assert signs.max_tokens == 9_000
    assert signs.earlier_turns == 1
    texts = ("Answer in Finnish.", "Prove it.", "No.", "Be brief.", "And", "now?")
    assert signs.prompt_characters == sum(map(len, texts))


def test_the_later_name_of_the_token_limit_goes_first():
    body = {**_GOOD, "max_completion_tokens": 7, "max_tokens": 9_000}
    assert parse_chat(body, 2).signs.max_tokens == 7
