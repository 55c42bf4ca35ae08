import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.tiers import Tier, TierSigns, classify


def _tier(prompt: str, **signs: object) -> Tier:
    defaults = {"earlier_turns": 0, "has_tools": False, "has_schema": False, "has_images": False}
    return classify(TierSigns(prompt=prompt, **{**defaults, **signs}))


@pytest.mark.parametrize(
    ("prompt", "tier"),
    [
        ("What is the capital of Finland?", Tier.L0),
        ("Translate to French: good morning", Tier.L1),
        ("Summarize the following passage: ...", Tier.L2),
        ("Prove that there are infinitely many primes.", Tier.L3),
        ("Ann has 3 apples and buys 4 more. How many has she?", Tier.L3),
        ("```c\nint main(){}\n```", Tier.L3),
    ],
)
def test_plain_examples(prompt, tier):
    assert _tier(prompt) is tier


def test_what_no_rule_recognises_is_upgraded():
    assert _tier("Hmm, thoughts on all this, then.") is Tier.L3


@given(st.text(max_size=400))
def test_a_sign_never_makes_a_request_cheaper(prompt):
    plain = _tier(prompt)
    assert plain.at_most(_tier(prompt, has_tools=True))
    assert plain.at_most(_tier(prompt, has_images=True))
    assert _tier(prompt) is plain
