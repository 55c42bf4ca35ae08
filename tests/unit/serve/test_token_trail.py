from hypothesis import given
from hypothesis import strategies as st

from serve.token_trail import TokenTrail


@given(st.lists(st.lists(st.integers(0, 9), max_size=4)), st.data())
def test_each_token_beyond_the_delivered_ones_is_taken_once(outputs, data):
    """An engine may hand over a delivered token and a new one together."""
    whole = [token for output in outputs for token in output]
    delivered = whole[: data.draw(st.integers(0, len(whole)))]
    trail = TokenTrail(delivered)
    taken: list[int] = []
    for output in outputs:
        trail.add(output)
        if data.draw(st.booleans()):
            taken += trail.take()
    taken += trail.take()
    assert [*delivered, *taken] == whole
    assert trail.seen == len(whole)
