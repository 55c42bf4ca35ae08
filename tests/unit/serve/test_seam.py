import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serve.errors import SeamBroken
from serve.messages import DONE
from serve.seam import Seam, why_not_resumable

_TEXTS = st.text(alphabet='ab \n😀👩‍🚀é́🏳️‍🌈\u0301"\\{}', max_size=12)


def _event(choices: list[dict[str, Any]], created: int = 1, **more: object) -> bytes:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": created, "choices": choices, **more}
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _delta(finish: str | None = None, index: int = 0, **delta: object) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def _call(index: int, **parts: Any) -> dict[str, Any]:
    """A tool call's piece; ``name`` and ``arguments`` go into its function."""
    function = {name: parts.pop(name) for name in ("name", "arguments") if name in parts}
    return {"index": index, **parts, **({"function": function} if function else {})}


def _assembled(events: Iterable[bytes]) -> dict[str, Any]:
    """All that a client learns from a stream, as the OpenAI SDK adds it up; strings that come twice show as doubled."""
    said: dict[str, Any] = {}
    for event in events:
        chunk = {"choices": [], "end": "end"} if event == DONE else json.loads(event.removeprefix(b"data: "))
        told = [("end", chunk.get("end")), ("usage", [chunk.get("usage")]), *_members("", chunk["choices"])]
        for place, value in told:
            if value not in (None, "", [], [None]):
                said[place] = said[place] + value if place in said else value
    return said


def _members(place: str, value: Any) -> Iterable[tuple[str, Any]]:
    """The leaves of a chunk by place; what has an index is of that place, whichever chunk it comes in."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _members(f"{place}.{name}", inner) if name != "index" else ()
    elif isinstance(value, list) and value and isinstance(value[0], dict) and "index" in value[0]:
        for each in value:
            yield from _members(f"{place}[{each['index']}]", each)
    else:
        yield place, value


@st.composite
def _pieces(draw, whole: Any) -> list[Any]:
    """A text or a list in pieces, empty ones among them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@st.composite
def _stream(draw, answer: dict[str, Any], *, created: int) -> list[bytes]:
    """The answer as one attempt might stream it: in any pieces, with its own random tool ids."""
    events = [[_delta(role="assistant", content="")]] if draw(st.booleans()) else []
    role = {} if events else {"role": "assistant"}
    for name in ("reasoning", "content", "refusal"):
        for piece in draw(_pieces(answer[name])):
            events.append([_delta(**role, **{name: piece})])
            role = {}
    for index, arguments in enumerate(answer["arguments"]):
        names = {"id": f"call-{created}-{index}", "type": "function", "name": f"tool_{index}"}
        for piece in draw(_pieces(arguments)):
            events.append([_delta(**role, tool_calls=[_call(index, **names, arguments=piece)])])
            role, names = {}, {}
    entries = draw(_pieces([*enumerate(answer["logprobs"])]))
    places = sorted(draw(st.lists(st.integers(0, len(events)), min_size=len(entries), max_size=len(entries))))
    for place, piece in reversed([*zip(places, entries, strict=True)]):
        tokens = {"logprobs": {"content": [each for _, each in piece]}, "token_ids": [token for token, _ in piece]}
        events.insert(place, [{**_delta(content=""), **tokens}])
    if draw(st.booleans()):
        events.append([_delta("stop")])
    else:
        events[-1][0]["finish_reason"] = "stop"
    chunks = [_event(choices, created) for choices in events]
    return [*chunks, _event([], created, usage={"completion_tokens": 7}), DONE]


_ANSWERS = st.fixed_dictionaries(
    {
        "reasoning": _TEXTS,
        "content": _TEXTS,
        "refusal": st.just("") | _TEXTS,
        "arguments": st.lists(_TEXTS, max_size=3),
        "logprobs": st.lists(st.floats(-9, 0).map(lambda value: {"token": "t", "logprob": value}), max_size=5),
    }
)


@st.composite
def _cut_streams(draw) -> tuple[list[bytes], list[bytes], int]:
    answer = draw(_ANSWERS)
    uncut = draw(_stream(answer, created=1))
    return uncut, draw(_stream(answer, created=2)), draw(st.integers(0, len(uncut)))


def _received(sent: Sequence[bytes], resumed: Iterable[bytes]) -> list[bytes]:
    seam = Seam(sent)
    return [*sent, *(event for each in resumed for event in seam.beyond(each))]


def _without_ids(said: dict[str, Any]) -> dict[str, Any]:
    return {place: value for place, value in said.items() if not place.endswith(".id")}


@settings(deadline=None)
@given(_cut_streams())
def test_what_was_sent_and_what_lies_beyond_are_the_whole_answer_once(streams):
    uncut, resumed, cut = streams
    received = _received(uncut[:cut], resumed)
    assert _without_ids(_assembled(received)) == _without_ids(_assembled(uncut))
    ids = {place: value for place, value in _assembled(received).items() if place.endswith(".id")}
    before = _assembled(uncut[:cut])
    assert ids == {place: before.get(place, value) for place, value in _assembled(resumed).items() if place in ids}
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in received if event != DONE]
    assert {chunk["created"] for chunk in chunks} == {1 if cut else 2}


@settings(deadline=None)
@given(_cut_streams(), st.data())
def test_an_answer_may_be_cut_again(streams, data):
    uncut, resumed, cut = streams
    received = _received(uncut[:cut], resumed)
    again = data.draw(st.integers(0, len(received)))
    assert _without_ids(_assembled(_received(received[:again], uncut))) == _without_ids(_assembled(uncut))


@settings(deadline=None)
@given(_cut_streams(), st.data())
def test_another_answer_is_never_passed_on(streams, data):
    """A character of the delivered text is another one: the client must not get a mixture."""
    uncut, resumed, cut = streams
    told = _assembled(uncut[:cut]).get("[0].delta.content", "")
    assume(told)
    place = data.draw(st.integers(0, len(told) - 1))
    other = _assembled(resumed)["[0].delta.content"]
    other = f"{other[:place]}#{other[place + 1 :]}"
    changed = [_event([_delta(role="assistant", content=other)]), _event([_delta("stop")]), DONE]
    with pytest.raises(SeamBroken, match="content"):
        _received(uncut[:cut], changed)


def test_an_answer_that_ends_before_what_was_sent_is_refused():
    sent = [_event([_delta(role="assistant", content="Hello")])]
    for short in ([_event([_delta("stop", content="Hell")])], [_event([_delta(content="Hell")]), DONE], [DONE]):
        with pytest.raises(SeamBroken, match="content ends before"):
            _received(sent, short)


def test_an_answer_that_goes_on_after_its_end_is_refused():
    sent = [_event([_delta("stop", role="assistant", content="Hello")])]
    for longer in (_delta("stop", content="Hello you"), _delta("length", content="Hello")):
        with pytest.raises(SeamBroken, match="after its end"):
            _received(sent, [_event([longer])])


def test_a_tool_call_keeps_the_id_and_the_name_that_the_client_has():
    first = _call(0, id="call-a", type="function", name="look_up", arguments='{"q')
    again = _call(0, id="call-b", type="function", name="look_up", arguments='{"query": ')
    sent = [_event([_delta(role="assistant", content="")]), _event([_delta(tool_calls=[first])])]
    (beyond,) = Seam(sent).beyond(_event([_delta(role="assistant", tool_calls=[again])], created=2))
    assert json.loads(beyond.removeprefix(b"data: "))["choices"][0]["delta"] == {
        "tool_calls": [_call(0, arguments='uery": ')]
    }
    other = _call(0, id="call-b", type="function", name="look_out", arguments='{"q')
    with pytest.raises(SeamBroken, match="name"):
        Seam(sent).beyond(_event([_delta(tool_calls=[other])]))


def test_log_probabilities_that_were_sent_are_dropped_though_their_replay_has_none():
    entries = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]
    sent = [_event([{**_delta(role="assistant", content="a"), "logprobs": {"content": entries[:1]}}])]
    replayed = [{"token": "a", "logprob": 0.0}, entries[1]]
    (beyond,) = Seam(sent).beyond(_event([{**_delta(content="ab"), "logprobs": {"content": replayed}}]))
    (choice,) = json.loads(beyond.removeprefix(b"data: "))["choices"]
    assert choice == {**_delta(content="b"), "logprobs": {"content": entries[1:]}}


def test_prompt_token_ids_come_once():
    sent = [_event([_delta(role="assistant", content="")], prompt_token_ids=[1, 2])]
    (beyond,) = Seam(sent).beyond(_event([_delta(role="assistant", content="a")], prompt_token_ids=[1, 2]))
    assert "prompt_token_ids" not in json.loads(beyond.removeprefix(b"data: "))


def test_where_nothing_was_sent_all_of_it_passes_as_it_is():
    event = b'data: {"id": "x",  "choices": []}\n\n'
    assert Seam(()).beyond(event) == (event,)


def _text(text: str, finish: str | None = None, **more: object) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "stop_reason": None, **more}


@given(st.data(), _TEXTS, st.lists(st.integers(0, 9), max_size=6))
def test_a_completion_cut_anywhere_is_one_completion(data, text, tokens):
    def attempt(created: int) -> list[bytes]:
        texts, ids = data.draw(_pieces(text)), [[token] for token in tokens]
        logprobs = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [None], "text_offset": [0]}
        choices = [_text(piece) for piece in texts] + [_text("", token_ids=each, logprobs=logprobs) for each in ids]
        if choices:
            choices[0]["prompt_token_ids"] = [7, 8]
        usage = _event([], created, usage={"total_tokens": 9})
        return [*(_event([choice], created) for choice in choices), _event([_text("", "stop")], created), usage, DONE]

    first, second = attempt(1), attempt(2)
    sent = first[: data.draw(st.integers(0, len(first) - 1))]
    seam = Seam(sent)
    whole = [*sent, *(rest for event in second for rest in seam.beyond(event))]
    assert _assembled(whole) == _assembled(first)


def test_a_completion_that_says_something_else_is_broken():
    with pytest.raises(SeamBroken):
        Seam([_event([_text("ab")])]).beyond(_event([_text("ac")]))


_WITH_IMAGE = {"type": "tool_result", "content": [{"type": "image", "source": {}}]}


@pytest.mark.parametrize(
    ("request_has", "reason"),
    [
        ({}, None),
        ({"n": 1, "logprobs": True, "stop": ["x"], "seed": 3, "min_tokens": 4}, None),
        ({"response_format": {"type": "json_object"}, "tool_choice": "required"}, None),
        ({"presence_penalty": 0, "frequency_penalty": 0.0, "bad_words": []}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, None),
        ({"messages": [{"role": "assistant", "content": None}]}, None),
        ({"n": 2}, "n is above 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "more than text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "more than text"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt": ["one"]}, None),
        ({"prompt": [1, 2]}, None),
        ({"prompt": ["one", "two"]}, "several prompts"),
        ({"prompt": [[1], [2]]}, "several prompts"),
        ({"prompt": "one", "echo": True}, "echo"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "seen"}]}]}, None),
        ({"messages": [{"role": "user", "content": [_WITH_IMAGE]}]}, "more than text"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"prompt": "one", "messages": 5}, None),
        ({"prompt": "one", "messages": ["no message", {"role": "user", "content": [{"type": "text"}, 5]}]}, None),
        ({"messages": [{"content": [{"type": "tool_result", "content": [{"type": []}]}]}]}, "more than text"),
    ],
)
def test_what_cannot_be_resumed_says_why(request_has, reason):
    found = why_not_resumable({"messages": [{"role": "user", "content": "hi"}], **request_has})
    assert found is None if reason is None else reason in found
