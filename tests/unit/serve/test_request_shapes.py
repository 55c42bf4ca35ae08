"""What the door reads of completions, embeddings and messages."""

from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.fleet import MOST_TOKENS
from serve.errors import RequestRefused
from serve.hold_amount import TEMPLATE_TOKENS, most_tokens
from serve.model_request import ModelRequest
from serve.prompt_list import MOST_PROMPTS
from serve.request_shapes import parse_request
from serve.seam import why_not_resumable
from serve.shapes import Shape

_TURN = {"role": "user", "content": "hello"}
_GOOD: dict[Shape, dict[str, Any]] = {
    Shape.CHAT: {"model": "auto", "messages": [_TURN]},
    Shape.COMPLETION: {"model": "auto", "prompt": "hello"},
    Shape.EMBEDDING: {"model": "auto", "input": "hello"},
    Shape.MESSAGES: {"model": "auto", "messages": [_TURN], "max_tokens": 9},
}


def read(shape: Shape, body_bytes: int = 100, **changes: Any) -> ModelRequest:
    return parse_request(shape, {**_GOOD[shape], **changes}, body_bytes)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(
    [
        *("model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of", "max_tokens", "tools"),
        *("functions", "response_format", "system", "stop_sequences", "output_config", "encoding_format"),
        *("dimensions", "echo", "suffix", "type", "text", "content"),
    ]
)


@given(st.sampled_from(Shape), st.dictionaries(_fields, _json, max_size=6))
def test_no_object_makes_a_reader_raise_anything_else(shape, changes):
    try:
        request = read(shape, **changes)
    except RequestRefused as refused:
        assert refused.status == HTTPStatus.UNPROCESSABLE_ENTITY
        assert refused.param
    else:
        assert 1 <= request.least_tokens <= MOST_TOKENS
        assert why_not_resumable(request.body) != ""
        assert most_tokens(request, 2048) <= 2048 * max(request.choices, request.prompts)


@pytest.mark.parametrize(
    ("shape", "change", "param"),
    [
        (Shape.COMPLETION, {"prompt": None}, "prompt"),
        (Shape.COMPLETION, {"prompt": ""}, "prompt"),
        (Shape.COMPLETION, {"prompt": []}, "prompt"),
        (Shape.COMPLETION, {"prompt": [1, "a"]}, "prompt"),
        (Shape.COMPLETION, {"prompt": [-1]}, "prompt"),
        (Shape.COMPLETION, {"prompt": [True]}, "prompt"),
        (Shape.COMPLETION, {"prompt": [[]]}, "prompt"),
        (Shape.COMPLETION, {"prompt": ["a"] * 65, "n": 2}, "n"),
        (Shape.COMPLETION, {"n": 129}, "n"),
        (Shape.COMPLETION, {"n": 1, "best_of": 2}, "best_of"),
        (Shape.COMPLETION, {"max_tokens": 0}, "max_tokens"),
        (Shape.COMPLETION, {"suffix": "x"}, "suffix"),
        (Shape.COMPLETION, {"prompt_embeds": "x"}, "prompt_embeds"),
        (Shape.EMBEDDING, {"input": None}, "input"),
        (Shape.EMBEDDING, {"input": ["a"] * (MOST_PROMPTS + 1)}, "input"),
        (Shape.EMBEDDING, {"encoding_format": "bytes"}, "encoding_format"),
        (Shape.EMBEDDING, {"encoding_format": ["float"]}, "encoding_format"),
        (Shape.EMBEDDING, {"dimensions": 0}, "dimensions"),
        (Shape.EMBEDDING, {"stream": True}, "stream"),
        (Shape.MESSAGES, {"max_tokens": None}, "max_tokens"),
        (Shape.MESSAGES, {"max_tokens": 0}, "max_tokens"),
        (Shape.MESSAGES, {"messages": []}, "messages"),
        (Shape.MESSAGES, {"messages": [{"role": "owner", "content": "x"}]}, "messages.0"),
        (Shape.MESSAGES, {"messages": [{"role": ["user"], "content": "x"}]}, "messages.0"),
        (Shape.MESSAGES, {"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        (Shape.MESSAGES, {"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
        (Shape.MESSAGES, {"system": 7}, "system"),
        (Shape.MESSAGES, {"stop_sequences": "x"}, "stop_sequences"),
        (Shape.MESSAGES, {"tools": [7]}, "tools"),
        (Shape.CHAT, {"model": "x" * 257}, "model"),
        (Shape.CHAT, {"stream": 1}, "stream"),
        (Shape.CHAT, {"messages": [{"role": "user", "content": [{"type": [], "text": "x"}]}]}, "messages.0.content"),
    ],
)
def test_a_wrong_field_is_422_and_named(shape, change, param):
    with pytest.raises(RequestRefused) as refused:
        read(shape, **change)
    assert (refused.value.status, refused.value.param) == (HTTPStatus.UNPROCESSABLE_ENTITY, param)


def test_every_shape_asks_for_models_of_its_task():
    assert {shape: read(shape).features for shape in Shape} == {
        Shape.CHAT: {"generate"},
        Shape.COMPLETION: {"generate"},
        Shape.EMBEDDING: {"embed"},
        Shape.MESSAGES: {"generate"},
    }


@pytest.mark.parametrize("prompt", ["hello", [1, 2, 3], ["hello"], [[1, 2, 3]]])
def test_a_prompt_is_text_or_token_ids(prompt):
    request = read(Shape.COMPLETION, prompt=prompt)
    assert (request.prompts, request.choices, request.max_tokens) == (1, 1, 16)


def test_each_prompt_is_answered_n_times_and_the_longest_must_fit():
    request = read(Shape.COMPLETION, prompt=["a" * 160, "b" * 16], n=3, max_tokens=4)
    assert (request.prompts, request.choices) == (2, 6)
    assert (request.prompt_characters, request.longest_characters, request.least_tokens) == (176, 160, 11)


def test_an_echo_alone_generates_nothing():
    assert read(Shape.COMPLETION, echo=True, max_tokens=0).max_tokens == 0


def test_of_an_embedding_the_input_alone_is_held_for():
    request = read(Shape.EMBEDDING, input=["a", "b", "c"], body_bytes=90)
    assert most_tokens(request, 2048) == 90 + 3 * TEMPLATE_TOKENS
    assert most_tokens(request, 100) == 3 * 100


def test_of_prompts_with_n_answers_each_is_read_n_times():
    request = read(Shape.COMPLETION, prompt=["a", "b"], n=2, max_tokens=5, body_bytes=50)
    assert most_tokens(request, 10**6) == 2 * 50 + 4 * (TEMPLATE_TOKENS + 5)


def test_what_routing_needs_of_messages_is_read():
    request = read(
        Shape.MESSAGES,
        stream=True,
        system=[{"type": "text", "text": "Be brief."}],
        tools=[{"name": "look", "input_schema": {"type": "object"}}],
        messages=[
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "seen"}]},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    )
    assert (request.stream, request.max_tokens, request.features) == (True, 9, {"generate", "tools"})
    assert (request.signs.prompt, request.signs.previous_prompt) == ("And?", "first")
    assert (request.signs.instructions, request.signs.earlier_turns) == ("Be brief.", 1)
    assert request.prompt_characters == len("Be brief." + "first" + "seen" + "And?")
    assert request.is_all_text


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image", "source": {}}],
        [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": {}}]}],
    ],
)
def test_an_image_in_messages_is_seen_wherever_it_is(content):
    request = read(Shape.MESSAGES, messages=[{"role": "user", "content": content}])
    assert request.features == {"generate", "images"}
    assert most_tokens(request, 2048) == 2048
