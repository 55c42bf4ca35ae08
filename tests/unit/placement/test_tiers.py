# ruff: noqa: RUF001 - prompts in other scripts
import hashlib
import json
import string
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.tier_features import features
from placement.tiers import Tier, TierClassifier, TierSigns, format_weights, parse_weights

_ANY_TEXT = st.text(alphabet=st.characters(), max_size=400)


@pytest.fixture(scope="module")
def classifier():
    return TierClassifier.load()


def _signs(prompt: str, **signs: object) -> TierSigns:
    values = {
        "earlier_turns": 0,
        "has_tools": False,
        "has_schema": False,
        "has_images": False,
        "max_tokens": None,
        "prompt_characters": len(prompt),
    }
    return TierSigns(prompt=prompt, **{**values, **signs})


@pytest.mark.parametrize(
    ("prompt", "tier"),
    [
        ("What is the capital of Finland?", Tier.L0),
        ("Who wrote the novel Dracula?", Tier.L0),
        ("Translate the following text into French: good morning, how are you today?", Tier.L1),
        ("Extract all names and dates from the text below.\n\nAnn met Bob on 3 May 2021 in Graz.", Tier.L1),
        ("Summarize the following article in three sentences.\n\n" + "The council met on Tuesday. " * 60, Tier.L2),
        ("Prove that there are infinitely many primes.", Tier.L3),
        ("Ann has 3 apples and buys 4 more. How many apples does she have now?", Tier.L3),
        ("```c\nint main(){}\n```", Tier.L3),
        ("Write a Python function that reverses a list.", Tier.L3),
        ("Quelle est la capitale de la Norvège ?", Tier.L0),
        ("Traduis le texte suivant en anglais :\n\nLe train est parti à huit heures.", Tier.L1),
        ("¿Por qué el cielo es azul?", Tier.L3),
        ("Warum ist der Himmel am Abend rot?", Tier.L3),
        ("请证明根号三是无理数。", Tier.L3),
        ("なぜ海は青いのですか？", Tier.L3),
        ("اكتب قصة قصيرة عن البحر.", Tier.L3),
        ("Напиши функцию на Python, которая сортирует список.", Tier.L3),
    ],
)
def test_plain_examples(classifier, prompt, tier):
    assert classifier.classify(_signs(prompt)) is tier


@pytest.mark.parametrize(
    "prompt",
    [
        "Extract the proof idea, then prove that the square root of 7 is irrational.",
        "What is the derivative of x^2 sin(x)?",
        "Who would win, a lion or a tiger, and why?",
        "Translate this word problem into an equation and solve it: half of a number plus 3 is 11.",
    ],
)
def test_reasoning_in_the_words_of_a_cheaper_task_is_not_taken_for_one(classifier, prompt):
    assert classifier.classify(_signs(prompt)) is Tier.L3


def test_what_the_model_knows_no_word_of_is_upgraded(classifier):
    assert classifier.classify(_signs("Zxqv brmpf glorn wuthix?")) is Tier.L3
    assert classifier.classify(_signs("")) is Tier.L3


@settings(deadline=None)
@given(prompt=_ANY_TEXT, instructions=_ANY_TEXT)
def test_a_further_sign_never_makes_a_request_cheaper(classifier, prompt, instructions):
    plain = classifier.classify(_signs(prompt, instructions=instructions))
    for more in (
        {"has_tools": True},
        {"has_images": True},
        {"has_schema": True},
        {"earlier_turns": 2, "previous_prompt": "Who wrote Dracula?"},
        {"max_tokens": 16_000},
        {"prompt_characters": 100_000},
    ):
        assert plain.at_most(classifier.classify(_signs(prompt, instructions=instructions, **more)))


@settings(deadline=None)
@given(_ANY_TEXT)
def test_tools_and_images_ask_for_reasoning(classifier, prompt):
    assert classifier.classify(_signs(prompt, has_tools=True)) is Tier.L3
    assert classifier.classify(_signs(prompt, has_images=True)) is Tier.L3


@settings(deadline=None)
@given(_ANY_TEXT)
def test_a_schema_or_a_history_is_no_lookup(classifier, prompt):
    assert Tier.L1.at_most(classifier.classify(_signs(prompt, has_schema=True)))
    assert Tier.L1.at_most(classifier.classify(_signs(prompt, earlier_turns=1)))


def test_a_follow_up_stays_with_the_tier_of_what_it_follows(classifier):
    followed = _signs("What is the capital of Finland?", earlier_turns=1, previous_prompt="Prove Fermat's theorem.")
    assert classifier.classify(followed) is Tier.L3


@pytest.fixture(scope="module")
def loaded_again():
    return TierClassifier.load()


@settings(deadline=None)
@given(_ANY_TEXT)
def test_the_same_request_has_the_same_tier(classifier, loaded_again, prompt):
    names = features(prompt)
    assert classifier.probabilities(names) == loaded_again.probabilities(features(prompt))
    assert classifier.classify(_signs(prompt)) is loaded_again.classify(_signs(prompt))


@settings(deadline=None)
@given(_ANY_TEXT)
def test_every_feature_is_named_once(prompt):
    names = features(prompt)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("unit", ["a", "7", " ", "\n", "市", "😀", "\ud800", "\x00", "a b ", "(){};", "?", "ـ", "क्"])
def test_a_huge_prompt_costs_no_more_than_its_two_ends(classifier, unit):
    huge = unit * (10_000_000 // len(unit))
    assert len(features(huge)) < 300
    assert Tier.L1.at_most(classifier.classify(_signs(huge)))


def test_only_the_two_ends_of_a_long_prompt_are_read():
    middles = ("the prime " * 2_000, "$x = 2?\n1 " * 2_000)
    head, tail = "Summarize this. " * 40, " Thanks." * 60
    assert features(head + middles[0] + tail) == features(head + middles[1] + tail)


def test_the_weights_are_inside_a_package_of_the_wheel():
    """Hatch puts every file of these packages into the wheel but those that version control ignores."""
    root = Path(__file__).parents[3]
    with (root / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    weights = Path(str(resources.files("placement").joinpath("tier_weights.json")))
    assert weights.is_file()
    assert weights.relative_to(root).parts[0] in wheel["packages"]
    assert set(wheel) == {"packages"}, "an include or exclude could leave the weights out"
    ignored = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    anywhere = [line for line in ignored if not line.startswith("/")]
    assert not [line for line in anywhere if "json" in line]
    assert not [line for line in ignored if "placement" in line]


def test_a_long_answer_or_conversation_asks_for_more_than_a_lookup(classifier):
    asked = "What is the capital of Finland?"
    assert classifier.classify(_signs(asked)) is Tier.L0
    assert classifier.classify(_signs(asked, max_tokens=4_097)) is Tier.L1
    assert classifier.classify(_signs(asked, prompt_characters=24_001)) is Tier.L2


def _trained() -> bytes:
    return format_weights({"any:why": [0.0, 0.1, 0.2, 3.0]}, [0.1, 0.2, 0.3, 0.4], 0.9, {"made_by": "a test"})


def test_weights_survive_their_file():
    probabilities, known = parse_weights(_trained()).probabilities(["any:why", "unknown"])
    assert sum(probabilities) == pytest.approx(1)
    assert max(probabilities) == probabilities[3]
    assert known == 0


@settings(deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused(data):
    whole = _trained()
    at = data.draw(st.integers(0, len(whole) - 2))
    other = data.draw(st.sampled_from(string.printable.strip().encode()))
    damaged = whole[:at] + bytes([other]) + whole[at + 1 :]
    if damaged != whole:
        with pytest.raises(ValueError, match=r"tier_weights\.json is damaged"):
            parse_weights(damaged)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"[1]\n{}", b'{"sha256": "00"}\n{}'])
def test_a_file_that_holds_no_weights_is_refused(data):
    with pytest.raises(ValueError, match="damaged"):
        parse_weights(data)


def test_a_file_of_a_later_release_is_refused():
    with pytest.raises(ValueError, match="format 2"):
        parse_weights(_sealed({"format": 2}))


def _sealed(content: dict[str, object]) -> bytes:
    line = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({"sha256": hashlib.sha256(line.encode()).hexdigest()}).encode() + b"\n" + line.encode()
