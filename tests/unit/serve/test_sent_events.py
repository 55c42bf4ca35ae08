import json

from hypothesis import given, settings
from hypothesis import strategies as st

from serve.messages import DONE
from serve.sent_events import SentEvents

_EVENTS = st.text().map(lambda text: b"data: " + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n\n")


@settings(deadline=None)
@given(st.lists(st.one_of(_EVENTS, st.just(DONE)), max_size=8), st.sampled_from([1, 3, 2000]))
def test_every_event_comes_back_as_it_was_and_in_its_order(events: list[bytes], times: int):
    sent = SentEvents()
    for event in events * times:
        sent.add(event)
    assert list(sent) == events * times


def test_what_is_kept_is_a_tenth_of_a_long_stream():
    sent, size = SentEvents(), 0
    for place in range(20_000):
        choice = {"index": 0, "delta": {"content": f" word{place * 7919 % 1009}"}, "finish_reason": None}
        chunk = {"id": "chatcmpl-" + "0" * 32, "object": "chat.completion.chunk", "created": 1, "choices": [choice]}
        event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        sent.add(event)
        size += len(event)
    assert sent.kept_bytes < size / 10
