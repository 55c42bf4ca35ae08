"""What vLLM's request ids tell, as vLLM 0.32 writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine_ids import PromptTotals, mesh_id

_ID = "0123456789abcdef" * 2
_OTHER = "f" * 32


@pytest.mark.parametrize(
    "engine_id", [f"chatcmpl-{_ID}-1a2b3c4d", f"1_chatcmpl-{_ID}-1a", f"cmpl-{_ID}-0-9f", f"embd-{_ID}-12-00ff", _ID]
)
def test_the_mesh_s_id_is_found_in_the_engine_s(engine_id):
    assert mesh_id(engine_id) == _ID


def test_a_request_of_the_engine_s_own_keeps_its_id():
    assert mesh_id("warmup-7") == "warmup-7"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from(["cmpl", "embd"]))))
def test_prompts_of_a_list_add_up_whatever_their_order_and_their_choices(told):
    """Each prompt once: its other choices and its later steps tell of it again."""
    totals, length = PromptTotals(), {place: 10**place for place in range(10)}
    seen: set[int] = set()
    for place, choice, kind in told:
        seen.add(place)
        total = totals.with_prompt(f"{choice}_{kind}-{_ID}-{place}-1a2b", length[place])
        assert total == sum(length[each] for each in seen)


def test_requests_are_kept_apart_and_a_chat_has_one_prompt():
    totals = PromptTotals()
    assert totals.with_prompt(f"cmpl-{_ID}-0-aa", 5) == 5
    assert totals.with_prompt(f"cmpl-{_OTHER}-1-aa", 7) == 7
    assert totals.with_prompt(f"chatcmpl-{_ID}-12-3", 9) == 9
    assert totals.with_prompt(f"cmpl-{_ID}-1-aa", 6) == 11


def test_only_so_many_requests_are_remembered():
    totals = PromptTotals(most=1)
    totals.with_prompt(f"cmpl-{_ID}-0-aa", 5)
    totals.with_prompt(f"cmpl-{_OTHER}-0-aa", 5)
    assert totals.with_prompt(f"cmpl-{_ID}-1-aa", 6) == 6
