"""A message's stream that another replica took up: what the client gets is one message, whole, with nothing twice."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import SeamBroken
from serve.messages import DONE
from serve.messages_seam import MessagesSeam

_KINDS = {
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
    "thinking": ("thinking_delta", "thinking"),
}
_TEXTS = st.text(alphabet='ab \n😀é\u0301"\\{}', min_size=1, max_size=12)


def _event(kind: str, **said: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **said}, ensure_ascii=False)}\n\n".encode()


def _delta(index: int, kind: str, member: str, text: str) -> bytes:
    return _event("content_block_delta", index=index, delta={"type": kind, member: text})


@st.composite
def _pieces(draw, text: str) -> list[str]:
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=4)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [piece for piece in pieces if piece]


@st.composite
def _stream(draw, blocks: Sequence[tuple[str, str]], attempt: int) -> list[bytes]:
    """The message as one attempt might stream it: in any pieces, with its own random ids."""
    events = [_event("message_start", message={"id": f"msg_{attempt}", "content": []})]
    for index, (kind, text) in enumerate(blocks):
        block: dict[str, Any] = {"type": kind}
        if kind == "tool_use":
            block |= {"id": f"tool_{attempt}_{index}", "name": "look", "input": {}}
        events.append(_event("content_block_start", index=index, content_block=block))
        delta, member = _KINDS[kind]
        events += [_delta(index, delta, member, piece) for piece in draw(_pieces(text))]
        if kind == "thinking":
            events.append(_delta(index, "signature_delta", "signature", f"{attempt:032x}"))
        events.append(_event("content_block_stop", index=index))
    events.append(_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}))
    return [*events, _event("message_stop"), DONE]


def _assembled(events: Iterable[bytes]) -> list[Any]:
    """What a client makes of a stream: each block's texts added up, and the other events in their order."""
    told: list[Any] = []
    for event in events:
        said = {"type": "done"} if event == DONE else json.loads(event.partition(b"data: ")[2])
        last = told[-1] if told else {}
        if said["type"] == last.get("type") == "content_block_delta" and _kind(said) == _kind(last):
            member = next(name for name in said["delta"] if name != "type")
            last["delta"][member] += said["delta"][member]
        else:
            told.append(said)
    return told


def _kind(said: dict[str, Any]) -> tuple[int, str]:
    return said["index"], said["delta"]["type"]


_BLOCKS = st.lists(st.tuples(st.sampled_from(["text", "tool_use", "thinking"]), _TEXTS), min_size=1, max_size=4)


@given(st.data(), _BLOCKS)
def test_a_cut_anywhere_makes_one_message_as_the_first_attempt_began_it(data, blocks):
    first, second = data.draw(_stream(blocks, 1)), data.draw(_stream(blocks, 2))
    sent = first[: data.draw(st.integers(0, len(first) - 1))]
    seam = MessagesSeam(sent)
    whole = _assembled([*sent, *(rest for event in second for rest in seam.beyond(event))])
    expected = _assembled(first)
    for told, wanted in zip(whole, expected, strict=True):
        # Ids and signatures that the client did not have yet are the second attempt's.
        assert _without_random(told) == _without_random(wanted)
    if sent:
        assert whole[0]["message"]["id"] == "msg_1"


def _without_random(said: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(said, sort_keys=True)
    return json.loads(text.replace("msg_2", "msg_1").replace("tool_2_", "tool_1_").replace(f"{2:032x}", f"{1:032x}"))


_START = _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
_STOP = _event("content_block_stop", index=0)


def _says(text: str) -> bytes:
    return _delta(0, "text_delta", "text", text)


@pytest.mark.parametrize(
    ("sent", "again"),
    [
        ([_START, _says("ab")], [_START, _says("ac")]),
        ([_START, _says("ab")], [_START, _says("a"), _STOP]),
        ([_START, _says("a"), _STOP], [_START, _says("a"), _says("b")]),
        ([_START], [_event("content_block_start", index=0, content_block={"type": "tool_use", "name": "look"})]),
        ([_START, _says("ab")], [_event("message_delta", delta={"stop_reason": "end_turn"})]),
    ],
)
def test_a_message_that_contradicts_what_was_sent_is_broken(sent, again):
    seam = MessagesSeam(sent)
    *before, last = again
    for event in before:
        seam.beyond(event)
    with pytest.raises(SeamBroken):
        seam.beyond(last)


def test_no_text_of_the_answer_is_in_the_error():
    seam = MessagesSeam([_START, _says("secret")])
    with pytest.raises(SeamBroken) as broken:
        seam.beyond(_says("canary"))
    assert "secret" not in str(broken.value)
    assert "canary" not in str(broken.value)
